// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

// fake is a root tree with one process in it.
type fake struct {
	t    *testing.T
	root string
}

func (f fake) write(name, content string) {
	f.t.Helper()
	path := filepath.Join(f.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f fake) link(name, to string) {
	f.t.Helper()
	path := filepath.Join(f.root, name)
	os.MkdirAll(filepath.Dir(path), 0o755)
	if err := os.Symlink(to, path); err != nil {
		f.t.Fatal(err)
	}
}

func newFake(t *testing.T, comm string) fake {
	f := fake{t, t.TempDir()}
	f.write("proc/7/stat", fmt.Sprintf("7 (%s) S 3%s 500 0\n", comm, strings.Repeat(" 0", 17)))
	f.write("proc/7/status", "Name:\tx\nTgid:\t7\nUid:\t1\t1000\t1\t1\nNSpid:\t7\t2\n")
	f.write("etc/passwd", "root:x:0:0::/:/bin/sh\nada:x:1000:1000::/:/bin/sh\ntwin:x:1000:1000::/:/bin/sh\nbad\n")
	f.link("proc/7/exe", "/usr/bin/x (deleted)")
	return f
}

func TestFake(t *testing.T) {
	f := newFake(t, "a) R 1 (b\n\x1b[2J")
	f.write("proc/7/cmdline", "x\x00\x00--y\n\x00"+strings.Repeat("z", 1<<20))
	f.write("proc/7/cgroup", "4:memory:/docker/x\n0::/system.slice/x.service\n")
	f.write("sys/fs/cgroup/cgroup.controllers", "")
	f.write("sys/fs/cgroup/system.slice/x.service/cgroup.procs", "")
	r := New(Options{Root: f.root, Cmdline: true})
	p, err := r.Lookup(event.Task{PID: 7, Start: 500*tick + 5})
	if err != nil {
		t.Fatal(err)
	}
	if p.Comm != "a) R 1 (b\n\x1b[2J" || p.PPID != 3 || p.Start != 500*tick || p.NSPID != 2 || p.UID != 1000 || p.User != "ada" || p.Exe != "/usr/bin/x" || !p.ExeDeleted {
		t.Errorf("%+v", p)
	}
	if len(p.Cmdline) != 4 || p.Cmdline[2] != "--y\n" || !p.CmdlineCut || len(p.Cmdline[3]) > maxCmdline {
		t.Errorf("command line of %d words, cut %v", len(p.Cmdline), p.CmdlineCut)
	}
	if p.Cgroup.Unit != "x.service" || p.Cgroup.ID == 0 {
		t.Errorf("%+v", p.Cgroup)
	}
	if c, ok := r.Cgroup(p.Cgroup.ID); !ok || c != p.Cgroup {
		t.Errorf("by id: %+v, %v", c, ok)
	}
	info, _ := os.Stat(f.root)
	if c, ok := r.Cgroup(info.Sys().(*syscall.Stat_t).Ino); ok {
		t.Errorf("a foreign id: %+v", c)
	}
}

func TestNoCgroupV2(t *testing.T) {
	f := newFake(t, "x")
	f.write("proc/7/cgroup", "9:name=systemd:/system.slice/y.service\n4:memory:/m\n0::/\n")
	r := New(Options{Root: f.root})
	p, err := r.Lookup(event.Task{PID: 7})
	if err != nil || p.Cgroup.Unit != "y.service" || p.Cgroup.ID != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if c, ok := r.Cgroup(1); ok {
		t.Errorf("%+v", c)
	}
}

func TestContainerUserIsNotTheHosts(t *testing.T) {
	f := newFake(t, "x")
	f.write("proc/7/cgroup", "0::/docker/"+strings.Repeat("a", 64)+"\n")
	if p, err := New(Options{Root: f.root}).Lookup(event.Task{PID: 7}); err != nil || p.User != "" || p.UID != 1000 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestGarbage(t *testing.T) {
	for _, stat := range []string{"", "(", ")(", "7 (x) S", "7 (x) S y" + strings.Repeat(" 0", 30), strings.Repeat("\xff", 1<<20)} {
		f := newFake(t, "x")
		f.write("proc/7/stat", stat)
		if p, err := New(Options{Root: f.root}).Lookup(event.Task{PID: 7}); err == nil || errors.Is(err, ErrGone) {
			t.Errorf("%.20q: %+v, %v", stat, p, err)
		}
	}
}

func TestBounded(t *testing.T) {
	f := newFake(t, "x")
	r := New(Options{Root: f.root, Size: 3})
	for pid := range 10 {
		f.write(fmt.Sprintf("proc/1%d/stat", pid), fmt.Sprintf("1%d (x) S 1%s 500 0\n", pid, strings.Repeat(" 0", 17)))
		f.write(fmt.Sprintf("proc/1%d/status", pid), "")
		if _, err := r.Lookup(event.Task{PID: uint32(10 + pid), Start: 500 * tick}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		r.Lookup(event.Task{PID: 19, Start: 500 * tick})
	}
	if s := r.Stats(); s != (Stats{Hits: 2, Reads: 10, Evicted: 7, Held: 3}) {
		t.Errorf("%+v", s)
	}
}

func TestWatchedInodeIsHexadecimal(t *testing.T) {
	f := newFake(t, "x")
	f.link("proc/7/fd/3", "socket:[612465]")
	f.link("proc/7/fd/4", "anon_inode:[eventpoll]")
	f.write("proc/7/fdinfo/4", "pos:\t0\ntfd:        3 events:       19 data:                3  pos:0 ino:1234 sdev:9\n")
	f.write("proc/7/task/7/syscall", "running\n")
	r := New(Options{Root: f.root})
	if w, err := r.Waits(7, 3); err != nil || w.Kind != WaitNone { // the number was another file's
		t.Errorf("%+v, %v", w, err)
	}
	f.write("proc/7/fdinfo/4", "tfd:        9 events: 40000000 data: 3  pos:0 ino:95871 sdev:9\n")
	if w, err := r.Waits(7, 3); err != nil || w.Kind != WaitWatched || w.Events != 1<<30 {
		t.Errorf("%+v, %v", w, err)
	}
	f.write("proc/7/fdinfo/4", "")
	f.link("proc/7/fd/5", "anon_inode:[io_uring]")
	if w, err := r.Waits(7, 3); err != nil || w.Kind != WaitUnknown || w.Detail == "" {
		t.Errorf("%+v, %v", w, err)
	}
}
