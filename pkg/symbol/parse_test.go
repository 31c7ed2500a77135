// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestParseMaps(t *testing.T) {
	got, err := parseMaps(strings.NewReader(`00400000-00401000 r-xp 00002000 fe:00 325835      /usr/bin/a b (deleted)
00401000-00402000 rw-p 00000000 00:00 0
00402000-00403000 r-xp 00000000 00:00 0
00403000-00404000 r-xp 00000000 00:01 7   /memfd:jit (deleted)
00300000-00404000 r-xp 00000000 00:00 0   overlapping
garbage
00405000-00405000 r-xp 00000000 00:00 0   empty
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`))
	want := []mapping{
		{start: 0x400000, end: 0x401000, offset: 0x2000, dev: 0xfe << 32, ino: 325835, path: "/usr/bin/a b", deleted: true},
		{start: 0x402000, end: 0x403000},
		{start: 0x403000, end: 0x404000, dev: 1, ino: 7, path: "/memfd:jit", deleted: true},
		{start: 0xffffffffff600000, end: 0xffffffffff601000, path: "[vsyscall]"},
	}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v\nwant %v", got, err, want)
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("00400000-00401000 r-xp 00002000 fe:00 325835      /usr/bin/a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, _ := parseMaps(bytes.NewReader(b))
		for i, m := range ms {
			if m.start >= m.end || i > 0 && m.start < ms[i-1].end {
				t.Errorf("%+v", ms)
			}
		}
	})
}

func TestParsePerfMap(t *testing.T) {
	m := parsePerfMap(strings.NewReader("1000 10 old\n0x2000 20 LazyCompile:~f /a b.js:1\n1000 10 new\n3000 0 empty\nffffffffffffffff 10 wraps\n" +
		"4000 10 " + strings.Repeat("n", 1<<20) + "\n5000 10\nbad\n6000 8 last"))
	for pc, want := range map[uint64]string{0xfff: "", 0x1000: "new", 0x100f: "new", 0x1010: "", 0x2001: "LazyCompile:~f /a b.js:1", 0x3000: "", 0x6007: "last", 0x6008: ""} {
		if got, _, ok := m.find(pc); got != want || ok != (want != "") {
			t.Errorf("%#x: %q, want %q", pc, got, want)
		}
	}
	if name, _, _ := m.find(0x4000); len(name) != maxPerfName {
		t.Errorf("a name of %d bytes", len(name))
	}
}

func FuzzParsePerfMap(f *testing.F) {
	f.Add([]byte("1000 10 a\n1000 8 b\n"), uint64(0x1001))
	f.Fuzz(func(t *testing.T, b []byte, pc uint64) {
		m := parsePerfMap(bytes.NewReader(b))
		if name, start, ok := m.find(pc); ok && (name == "" || start > pc) {
			t.Errorf("%q from %#x for %#x", name, start, pc)
		}
	})
}

// FuzzELF holds loading to no crash and no endless work, whatever the file.
func FuzzELF(f *testing.F) {
	if b, err := os.ReadFile("/bin/true"); err == nil && len(b) < 1<<20 {
		f.Add(b, uint64(0x2000))
	}
	f.Fuzz(func(t *testing.T, b []byte, offset uint64) {
		mod := loadModule(bytes.NewReader(b), int64(len(b)), true, nil)
		if mod.err == nil {
			mod.frames(Frame{}, offset)
		}
	})
}

// TestPerfMap has this process be the one with generated code.
func TestPerfMap(t *testing.T) {
	code, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(code)
	addr := uint64(uintptr(unsafe.Pointer(&code[0]))) + 32
	path := fmt.Sprintf("/tmp/perf-%d.map", os.Getpid())
	ask := func() Frame {
		p := open(t, New(Options{}), uint32(os.Getpid()))
		return p.Frames([]uint64{addr + 1})[0]
	}
	if f := ask(); f.Module != "[jit]" || f.Function != "" || !strings.Contains(f.Note, path) {
		t.Errorf("no map: %+v", f)
	}
	write(t, path, fmt.Sprintf("%x 40 Lcom/example/Pool;::take\n", addr-16))
	defer os.Remove(path)
	if f := ask(); f.Function != "Lcom/example/Pool;::take" || f.Offset != 17 {
		t.Errorf("%+v", f)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if f := ask(); f.Function != "" || !strings.Contains(f.Note, "belongs to user 12345") {
			t.Errorf("of a stranger: %+v", f)
		}
	}
	os.Rename(path, path+".real")
	defer os.Remove(path + ".real")
	os.Symlink(path+".real", path)
	if f := ask(); f.Function != "" || f.Note == "" {
		t.Errorf("by a symbolic link: %+v", f)
	}
	os.Remove(path)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if f := ask(); f.Function != "" || !strings.Contains(f.Note, "no regular file") {
		t.Errorf("a pipe: %+v", f)
	}
}
