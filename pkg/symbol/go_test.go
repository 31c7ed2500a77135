// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The program prints its own stack: the addresses, then what its runtime calls them.
const goSource = `package main

import ("fmt"; "os"; "runtime")

//go:noinline
func leaf() []uintptr { pcs := make([]uintptr, 32); return pcs[:runtime.Callers(1, pcs)] }

func inlined() []uintptr {
	return leaf()
}

type T[V any] struct{ v V }

//go:noinline
func (t *T[V]) Method() []uintptr {
	return inlined()
}

func main() {
	var pcs []uintptr
	func() { pcs = (&T[int]{}).Method() }()
	// In runtime.Callers an inlined call is an entry of its own; as a stack of the
	// kernel has it, there is one address for both.
	for _, pc := range pcs { fmt.Printf("pc %#x\n", pc) }
	fs := runtime.CallersFrames(pcs)
	for {
		f, more := fs.Next()
		fmt.Printf("frame %s:%s:%d\n", f.Function, f.File, f.Line)
		if !more { break }
	}
	fmt.Println()
	os.Stdin.Read(make([]byte, 1))
}
`

func TestGo(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	write(t, dir+"/a.go", goSource)
	for name, c := range map[string]struct {
		args  []string
		lines bool // DWARF is there: inlined calls are named
	}{
		"plain":        {nil, true},
		"stripped":     {[]string{"-ldflags=-s -w"}, false},
		"pie":          {[]string{"-buildmode=pie"}, true},
		"pie stripped": {[]string{"-buildmode=pie", "-ldflags=-s -w"}, false},
		"external":     {[]string{"-ldflags=-linkmode=external"}, true}, // .text begins with C
	} {
		t.Run(name, func(t *testing.T) {
			bin := "./" + strings.ReplaceAll(name, " ", "_")
			build(t, dir, append(append([]string{"go", "build", "-o", bin}, c.args...), "a.go")...)
			pid, lines := run(t, dir, nil, bin)
			checkGo(t, open(t, New(Options{Lines: c.lines}), pid), lines, c.lines)
		})
	}
}

// TestGoExternalStripped: where a C linker put other code first and the symbols are
// gone, Go's table cannot be placed: no name is better than a wrong one.
func TestGoExternalStripped(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.go", goSource)
	build(t, dir, "go", "build", "-o", "a", "-ldflags=-linkmode=external -s -w", "a.go")
	pid, lines := run(t, dir, nil, "./a")
	p := open(t, New(Options{}), pid)
	for _, l := range lines {
		if !strings.HasPrefix(l, "pc ") {
			continue
		}
		for _, f := range p.Frames([]uint64{addrOf(t, l)}) {
			if f.Function != "" || f.Note == "" || f.Module == "" {
				t.Errorf("%+v", f)
			}
		}
	}
}

func checkGo(t *testing.T, p *Process, lines []string, inlined bool) {
	var pcs []uint64
	var want, got []string
	for _, l := range lines {
		if rest, ok := strings.CutPrefix(l, "frame "); ok {
			want = append(want, rest)
		} else if addr := addrOf(t, l); true {
			pcs = append(pcs, addr)
		}
	}
	fs := p.Frames(pcs)
	for _, f := range fs {
		got = append(got, fmt.Sprintf("%s:%s:%d", f.Function, f.File, f.Line))
	}
	if Cut(fs) != "" {
		t.Errorf("whole, but cut: %s", Cut(fs))
	}
	// runtime.Callers gives inlined calls addresses of their own; ours come from
	// one address with the call inside: each of the runtime's names must be there, in order.
	i := 0
	for _, w := range want {
		fn, pos, _ := strings.Cut(w, ":")
		if !inlined && (fn == "main.inlined" || strings.HasSuffix(fn, ".Method") || fn == "main.main" || strings.HasPrefix(fn, "main.main.")) {
			continue // the outer function with the inner position: checked below
		}
		for i < len(got) && !(strings.HasPrefix(got[i], trimGeneric(fn)) && strings.HasSuffix(got[i], pos)) {
			i++
		}
		if i == len(got) {
			t.Errorf("no %s in order in\n%s", w, strings.Join(got, "\n"))
			return
		}
	}
	if all := strings.Join(got, " "); !strings.Contains(all, ".Method:") || !strings.Contains(all, "main.main:") || strings.Contains(all, "main.inlined") != inlined {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
}

// trimGeneric: the runtime prints [...] for type arguments, the tables have them in full.
func trimGeneric(s string) string {
	before, _, _ := strings.Cut(s, "[")
	return before
}

func TestKernelThreadAndGone(t *testing.T) {
	if p, err := New(Options{}).Open(1 << 30); err == nil {
		t.Errorf("%+v", p)
	} else if !strings.Contains(err.Error(), "memory map") {
		t.Error(err)
	}
	p := open(t, New(Options{}), uint32(os.Getpid()))
	for _, addr := range []uint64{0, 1, 0x1000, ^uint64(0)} {
		if f := p.Frames([]uint64{addr})[0]; f.Function != "" || f.Note == "" {
			t.Errorf("%#x: %+v", addr, f)
		}
	}
}
