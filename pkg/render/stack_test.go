// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/symbol"
)

// TestGeneratedCode: frames of a JIT compiler that have no name are one line, and
// what gives them names is said once, with nothing cut off.
func TestGeneratedCode(t *testing.T) {
	const hint = "generated code: no /tmp/perf-1234567.map (Node: --perf-basic-prof; Java: jcmd PID Compiler.perfmap)"
	frames := []symbol.Frame{{Address: 1, Function: "Java_sun_nio_ch_Net_connect0", Module: "/opt/jdk/lib/libnio.so"}}
	for i := range 8 {
		frames = append(frames, symbol.Frame{Address: uint64(0x7f0000001000 + i), Module: "[jit]", Note: hint})
	}
	frames = append(frames, symbol.Frame{Address: 2, Function: "JavaCalls::call_helper", Module: "/opt/jdk/lib/server/libjvm.so"},
		symbol.Frame{Address: 3, Module: "[jit]", Note: hint})
	l := leaksOf(leak.ByProcess, false)
	l.Stacks = true
	for i := range l.Findings {
		l.Findings[i].Stack = leak.NewStack(frames, false)
	}
	l.Groups = l.Group(leak.ByProcess)[:1]
	got := render(Options{}, func(w *Writer) { w.Leaks(l) })
	for _, want := range []string{"      8 frames of generated code\n", "      1 frame of generated code\n"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%q is not there once", want)
		}
	}
	if n := strings.Count(strings.Join(strings.Fields(got), " "), hint); n != 1 || strings.Contains(got, "[jit]") {
		t.Errorf("the hint is there %d times", n)
	}
	for line := range strings.Lines(got) {
		if utf8.RuneCountInString(line) > Width+1 {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}
