// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

func TestCut(t *testing.T) {
	for _, c := range []struct {
		last Frame
		want string
	}{
		{Frame{Function: "_start", Module: "/bin/a"}, ""},
		{Frame{Function: "__libc_start_main@@GLIBC_2.34", Module: "/lib/libc.so.6"}, ""},
		{Frame{Function: "runtime.goexit.abi0", Module: "/bin/a"}, ""},
		{Frame{Function: "connect", Module: "/lib/libc.so.6"}, "libc.so.6"},
		{Frame{Module: "[jit]"}, "generated code"},
		{Frame{Address: 1}, "its address is none"},
	} {
		if got := Cut([]Frame{{Function: "f"}, c.last}); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.last, got, c.want)
		}
	}
	if Cut(nil) == "" {
		t.Error("no frames, and not cut")
	}
}

// TestNode names a function that V8 compiled.
func TestNode(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip(err)
	}
	const src = `
const fs = require("fs"), map = "/tmp/perf-" + process.pid + ".map";
process.on("exit", () => fs.unlinkSync(map));
function hotLoop(n) { let s = 0; for (let i = 0; i < n; i++) s = (s * 31 + i) | 0; return s; }
let line;
const spin = () => {
	for (let i = 0; i < 2000; i++) hotLoop(1000);
	line = fs.readFileSync(map, "utf8").split("\n").filter(l => /:\*'?hotLoop|:\*hotLoop|JS:.*hotLoop/.test(l)).pop();
	if (!line) return setImmediate(spin);
	console.log(JSON.stringify(line) + "\n");
	process.stdin.on("end", () => process.exit()).resume();
};
spin();`
	pid, lines := run(t, t.TempDir(), nil, "node", "--perf-basic-prof", "-e", src)
	var line string
	if len(lines) != 1 || json.Unmarshal([]byte(lines[0]), &line) != nil {
		t.Fatalf("node said %q", lines)
	}
	addr := strings.Fields(line)[0]
	p := open(t, New(Options{}), pid)
	f := p.Frames([]uint64{addrOf(t, "x 0x"+strings.TrimPrefix(addr, "0x")) + 1})[0]
	if f.Module != "[jit]" || !strings.Contains(f.Function, "hotLoop") || f.Offset != 1 {
		t.Errorf("%s: %+v", line, f)
	}
}
