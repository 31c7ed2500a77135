// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// build runs a compiler in dir.
func build(t *testing.T, dir string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GO111MODULE=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run starts a program that prints lines up to an empty one and then waits.
func run(t *testing.T, dir string, attr *syscall.SysProcAttr, args ...string) (pid uint32, lines []string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.SysProcAttr, cmd.Stderr = dir, attr, os.Stderr
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	sc := bufio.NewScanner(out)
	for sc.Scan() && sc.Text() != "" {
		lines = append(lines, sc.Text())
	}
	return uint32(cmd.Process.Pid), lines
}

func open(t *testing.T, s *Symbolizer, pid uint32) *Process {
	t.Helper()
	p, err := s.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// The program prints "name offset address", the function in which the
// instruction before address is, offset ? where the program does not know it.
const cSource = `
#include <stdio.h>
#include <string.h>
static __attribute__((noinline)) int local_fn(int x) { return x * 7 + 1; }
__attribute__((noinline)) int global_fn(int x) { return local_fn(x) + 3; }
#ifdef LIB
extern int lib_fn(int);
#endif
int main(void) {
	printf("local_fn %p\nglobal_fn %p\nmain %p\n", (void *)local_fn, (void *)global_fn, (void *)main);
#ifdef LIB
	printf("lib_fn %p\n", (void *)lib_fn);
#endif
	printf("\n"); fflush(stdout);
	return getchar() + global_fn(2) - 17 == 'x';
}`

// check compares with what the program says: the byte after each function's first.
func check(t *testing.T, p *Process, lines []string, hidden string) {
	t.Helper()
	if len(lines) < 3 {
		t.Fatalf("the program said %q", lines)
	}
	for _, l := range lines {
		name, hex, _ := strings.Cut(l, " ")
		addr, err := strconv.ParseUint(hex, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		fs := p.Frames([]uint64{addr + 1})
		f := fs[len(fs)-1]
		if strings.Contains(hidden, name) {
			if f.Function == name || f.Module == "" {
				t.Errorf("%s should not be known: %+v", name, f)
			}
			continue
		}
		if f.Function != name || f.Offset != 1 || f.Module == "" {
			t.Errorf("%s: %+v", l, fs)
		}
	}
}

func TestC(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.c", cSource)
	write(t, dir+"/lib.c", "__attribute__((noinline)) int lib_fn(int x) { return x + 1; }\n")
	build(t, dir, "gcc", "-O1", "-shared", "-fPIC", "-o", "libx.so", "lib.c")
	for name, c := range map[string]struct {
		flags  string
		strip  string
		hidden string
	}{
		"pie":             {"-O1 -fPIE -pie", "", ""},
		"fixed":           {"-O1 -fno-pie -no-pie", "", ""},
		"library":         {"-O1 -fPIE -pie -DLIB -L. -lx -Wl,-rpath," + dir, "", ""},
		"exported only":   {"-O1 -rdynamic", "-s", "local_fn"},
		"stripped":        {"-O1 -fno-pie -no-pie", "-s", "local_fn global_fn main"},
		"high load":       {"-O1 -fno-pie -no-pie -Wl,-Ttext-segment=0x10000000", "", ""},
		"separate code":   {"-O1 -Wl,-z,separate-code", "", ""},
		"one segment":     {"-O1 -Wl,-z,noseparate-code", "", ""},
		"debugging lines": {"-O1 -g", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			bin := strings.ReplaceAll(name, " ", "_")
			flags := strings.Fields(c.flags)
			build(t, dir, append([]string{"gcc", "-o", bin, "a.c"}, flags...)...)
			if c.strip != "" {
				build(t, dir, "strip", c.strip, bin)
			}
			pid, lines := run(t, dir, nil, "./"+bin)
			check(t, open(t, New(Options{Lines: strings.Contains(c.flags, "-g")}), pid), lines, c.hidden)
		})
	}
}

func TestDebugLink(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.c", cSource)
	build(t, dir, "gcc", "-g", "-O1", "-Wl,--build-id=none", "-o", "a", "a.c")
	build(t, dir, "objcopy", "--only-keep-debug", "a", "a.debug")
	build(t, dir, "strip", "-s", "a")
	build(t, dir, "objcopy", "--add-gnu-debuglink=a.debug", "a")
	pid, lines := run(t, dir, nil, "./a")
	check(t, open(t, New(Options{Lines: true}), pid), lines, "")

	f, err := os.OpenFile(dir+"/a.debug", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("x")) // not of this build any more
	f.Close()
	check(t, open(t, New(Options{}), pid), lines, "local_fn global_fn main")
}

// TestBuildIDInRoot runs in a root of its own, where alone the debug file is.
func TestBuildIDInRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("chroot needs root")
	}
	dir := t.TempDir()
	write(t, dir+"/a.c", cSource)
	build(t, dir, "gcc", "-static", "-O1", "-Wl,--build-id=0xabcdef0123456789", "-o", "a", "a.c")
	sub := dir + "/usr/lib/debug/.build-id/ab"
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	build(t, dir, "objcopy", "--only-keep-debug", "a", sub+"/cdef0123456789.debug")
	build(t, dir, "strip", "-s", "a")
	pid, lines := run(t, "/", &syscall.SysProcAttr{Chroot: dir}, "/a")
	s := New(Options{})
	check(t, open(t, s, pid), lines, "")
	if n := len(s.files); n != 1 {
		t.Errorf("%d files remembered", n)
	}
}

func TestDeletedFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.c", cSource)
	build(t, dir, "gcc", "-O1", "-o", "a", "a.c")
	pid, lines := run(t, dir, nil, "./a")
	os.Remove(dir + "/a")
	p := open(t, New(Options{}), pid)
	if fs := p.Frames([]uint64{addrOf(t, lines[0]) + 1}); os.Getuid() != 0 {
		if !strings.Contains(fs[0].Note, "deleted") {
			t.Errorf("%+v", fs)
		}
		return
	}
	check(t, p, lines, "")
}

func addrOf(t *testing.T, line string) uint64 {
	t.Helper()
	_, hex, _ := strings.Cut(line, " ")
	addr, err := strconv.ParseUint(hex, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestCxxAndVDSO(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.cc", `
#include <cstdio>
#include <dlfcn.h>
namespace net { template <class T> struct pool { __attribute__((noinline)) static T take(T x) { return x * 3; } }; }
int main() {
	printf("%p\n", (void *)&net::pool<int>::take);
	void *v = dlopen("linux-vdso.so.1", RTLD_NOLOAD | RTLD_LAZY);
	printf("%p\n\n", v ? dlsym(v, "__vdso_clock_gettime") : nullptr); fflush(stdout);
	return getchar() + net::pool<int>::take(2);
}`)
	build(t, dir, "g++", "-O1", "-o", "a", "a.cc", "-ldl")
	pid, lines := run(t, dir, nil, "./a")
	p := open(t, New(Options{}), pid)
	for i, want := range []string{"net::pool<int>::take(int)", "clock_gettime"} {
		addr := addrOf(t, "x "+strings.Replace(lines[i], "(nil)", "0x0", 1))
		if addr == 0 {
			continue // no such function in the vdso of this architecture
		}
		if f := p.Frames([]uint64{addr + 1})[0]; f.Function != want && f.Function != "__vdso_"+want || f.Offset != 1 {
			t.Errorf("%s: %+v", want, f)
		}
	}
}

func TestInlinedC(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.c", `#include <stdio.h>
static void *pc;
static inline __attribute__((always_inline)) void inner(void) {
	__asm__ volatile("leaq 1f(%%rip), %0\n1:\n\tnop" : "=r"(pc));
}
static inline __attribute__((always_inline)) void outer(void) {
	inner();
}
__attribute__((noinline)) void host(void) {
	outer();
}
int main(void) { host(); printf("pc %p\n\n", pc); fflush(stdout); return getchar(); }
`)
	src, _ := os.ReadFile(dir + "/a.c")
	if machineName() != "x86_64" {
		write(t, dir+"/a.c", strings.Replace(string(src), `__asm__ volatile("leaq 1f(%%rip), %0\n1:\n\tnop" : "=r"(pc));`, "here: pc = &&here; __asm__ volatile(\"nop\" ::: \"memory\");", 1))
	}
	build(t, dir, "gcc", "-O1", "-g", "-o", "a", "a.c")
	pid, lines := run(t, dir, nil, "./a")
	fs := open(t, New(Options{Lines: true}), pid).Frames([]uint64{addrOf(t, lines[0]) + 1})
	var got []string
	for _, f := range fs {
		got = append(got, fmt.Sprintf("%s:%s:%d:%v", f.Function, filepath.Base(f.File), f.Line, f.Inlined))
	}
	if want := "inner:a.c:4:true outer:a.c:7:true host:a.c:10:false"; strings.Join(got, " ") != want {
		t.Errorf("%s\nwant %s", strings.Join(got, " "), want)
	}
}

// TestLineOfMain: GCC puts main into a section in front of the rest, a sequence
// of its own at the end of the line table.
func TestLineOfMain(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.c", cSource)
	build(t, dir, "gcc", "-O2", "-g", "-o", "a", "a.c")
	pid, lines := run(t, dir, nil, "./a")
	p := open(t, New(Options{Lines: true}), pid)
	for _, l := range lines {
		fs := p.Frames([]uint64{addrOf(t, l) + 1})
		if f := fs[len(fs)-1]; !strings.HasSuffix(f.File, "a.c") || f.Line == 0 {
			t.Errorf("%s: %+v", l, fs)
		}
	}
}

func machineName() string {
	out, _ := exec.Command("uname", "-m").Output()
	return strings.TrimSpace(string(out))
}
