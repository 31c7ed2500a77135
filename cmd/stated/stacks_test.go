// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// place is a group of --by stack.
type place struct {
	Sockets int    `json:"stated.leak.sockets"`
	Stack   string `json:"code.stacktrace"`
	At      int    `json:"stated.leak.stack.sockets"`
	Unknown int    `json:"stated.leak.stack.unknown"`
	Cut     string `json:"stated.leak.stack.cut"`
	Path    string `json:"process.executable.path"`
}

// leakedAt runs a program in a network namespace of its own, tells it when
// stated watches, and returns where stated says that its sockets were opened.
func leakedAt(t *testing.T, program ...string) (places []place) {
	t.Helper()
	load := exec.Command("unshare", append([]string{"-n", "sh", "-c", `ip link set lo up; exec "$@"`, "sh"}, program...)...)
	load.Dir, load.Stderr = t.TempDir(), os.Stderr // Node leaves a log where it runs
	tell, err := load.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	told, err := load.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { tell.Close(); load.Wait() }()
	lines := bufio.NewScanner(told)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("%s said %q", program[0], lines.Text())
	}
	netns := fmt.Sprintf("/proc/%d/ns/net", load.Process.Pid)
	cmd := exec.Command(stated, "leaks", "--for", "90s", "--stacks", "--by", "stack", "--min-age", "0s", "--netns", netns, "-o", "json")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watching := bufio.NewReader(stderr)
	if line, err := watching.ReadString('\n'); err != nil || !strings.Contains(line, "watching") {
		t.Fatalf("%q %v", line, err)
	}
	fmt.Fprintln(tell)
	if !lines.Scan() || lines.Text() != "leaked" {
		t.Errorf("%s said %q", program[0], lines.Text())
	}
	cmd.Process.Signal(os.Interrupt)
	rest, _ := io.ReadAll(watching)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 4 {
		t.Fatalf("exit code %d: %s%s", code, rest, out.String())
	}
	for line := range strings.Lines(out.String()) {
		var p place
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		places = append(places, p)
	}
	return places
}

// expect checks that there is a group for each function, of the right size, and
// no other.
func expect(t *testing.T, places []place, want map[string]int) {
	t.Helper()
	got := make(map[string]int)
	for _, p := range places {
		name := "?"
		for function := range want {
			if strings.Contains("\n"+p.Stack, function) {
				name += function
			}
		}
		got[strings.TrimPrefix(name, "?")] += p.Sockets
		if p.At != p.Sockets || p.Unknown != 0 {
			t.Errorf("%d sockets, %d at the stack, %d unknown", p.Sockets, p.At, p.Unknown)
		}
	}
	if !maps.Equal(got, want) || len(places) != len(want) {
		t.Errorf("%d groups: %v, want %v: %+v", len(places), got, want, places)
	}
}

func compiler(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func script(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func requireProgram(t *testing.T, name string) {
	t.Helper()
	requireRoot(t)
	if _, err := exec.LookPath(name); err != nil {
		notInstalled(t, name)
	}
}

// notInstalled skips the test, but in CI, where .ci/run installs what is wanted.
func notInstalled(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("STATED_KERNEL_TEST") != "" {
		t.Fatal("not installed: ", what)
	}
	t.Skip("not installed: ", what)
}

func TestStacksOfGo(t *testing.T) {
	requireProgram(t, "go")
	bin := filepath.Join(t.TempDir(), "leakgo")
	for name, flags := range map[string]string{"plain": "", "stripped": "-s -w"} {
		t.Run(name, func(t *testing.T) {
			compiler(t, "go", "build", "-ldflags", flags, "-o", bin, "./testdata/leakgo")
			places := leakedAt(t, bin)
			expect(t, places, map[string]int{"\nmain.openInPool ": 3, "\nmain.openForReport ": 2})
			for _, p := range places {
				if p.Cut != "" || !strings.Contains(p.Stack, "leakgo/main.go:") {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}

// TestStacksOfC: connect() and accept() of the C library have no frame, so the
// walk alone would miss the function that matters.
func TestStacksOfC(t *testing.T) {
	requireProgram(t, "gcc")
	bin := filepath.Join(t.TempDir(), "leak")
	for name, tt := range map[string]struct {
		flags string
		cut   bool
		line  bool
		args  []string
	}{
		"frame pointers":    {"-O2 -g -fno-omit-frame-pointer", false, true, nil},
		"no lines":          {"-O1 -fno-omit-frame-pointer", false, false, nil},
		"no linkage table":  {"-O1 -fno-omit-frame-pointer -fno-plt", false, false, nil},
		"static":            {"-O1 -fno-omit-frame-pointer -static", false, false, nil},
		"threads":           {"-O1 -fno-omit-frame-pointer -pthread", false, false, []string{"threads"}},
		"no frame pointers": {"-O2 -fomit-frame-pointer", true, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			compiler(t, append([]string{"gcc", "-o", bin, "testdata/leak.c"}, strings.Fields(tt.flags)...)...)
			places := leakedAt(t, append([]string{bin}, tt.args...)...)
			expect(t, places, map[string]int{"\nopen_in_pool": 3, "\nopen_for_report": 2, "\naccept_request": 1})
			for _, p := range places {
				if (p.Cut != "") != tt.cut || strings.Contains(p.Stack, "leak.c:") != tt.line {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}

// TestStacksOfNode: functions that V8 generated, by its perf map.
func TestStacksOfNode(t *testing.T) {
	requireProgram(t, "node")
	places := leakedAt(t, "node", "--no-deprecation", "--perf-basic-prof", "--interpreted-frames-native-stack", script(t, "leak.js"))
	got := map[string]int{}
	for _, p := range places { // by different ways to the same function
		for _, function := range []string{"openInPool", "openForReport"} {
			if strings.Contains(p.Stack, function+" ") {
				got[function] += p.Sockets
			}
		}
	}
	if !maps.Equal(got, map[string]int{"openInPool": 3, "openForReport": 2}) {
		t.Errorf("%v: %+v", got, places)
	}
}

// TestStacksOfPython: the functions of the interpreter, or why there are none.
func TestStacksOfPython(t *testing.T) {
	requireProgram(t, "python3")
	sockets := 0
	for _, p := range leakedAt(t, "python3", script(t, "leak.py")) {
		sockets += p.Sockets
		if p.Stack == "" || p.Cut == "" && !strings.Contains(p.Stack, "main") {
			t.Errorf("neither whole nor cut: %+v", p)
		}
	}
	if sockets != 5 {
		t.Errorf("%d sockets, want 5", sockets)
	}
}

// TestStacksAfterExec: a stack of a program that the process does not run any
// more is not named by the program that it runs now.
func TestStacksAfterExec(t *testing.T) {
	requireProgram(t, "python3")
	places := leakedAt(t, "python3", script(t, "leak.py"), "exec")
	if len(places) == 0 || !slices.ContainsFunc(places, func(p place) bool { return strings.Contains(p.Cut, "executed another program") }) {
		t.Errorf("%+v", places)
	}
}
