// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

func self() event.Task { return event.Task{PID: uint32(os.Getpid())} }

func TestLookupSelf(t *testing.T) {
	p, err := New(Options{Cmdline: true}).Lookup(self())
	if err != nil {
		t.Fatal(err)
	}
	exe, _ := os.Executable()
	if p.Exe != exe || p.PPID != uint32(os.Getppid()) || p.UID != uint32(os.Geteuid()) || p.Gone || p.Kernel || p.ExeDeleted {
		t.Errorf("%+v", p)
	}
	if !slices.Equal(p.Cmdline, os.Args) {
		t.Errorf("command line %q, want %q", p.Cmdline, os.Args)
	}
	if u, err := user.Current(); err == nil && p.User != u.Username {
		t.Errorf("user %q, want %q", p.User, u.Username)
	}
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	if p.Start <= 0 || p.Start > now.Nano() {
		t.Errorf("start %d, now is %d", p.Start, now.Nano())
	}
	if p.NSPID == 0 || p.PIDNS == 0 {
		t.Errorf("pid namespace: %+v", p)
	}
}

// child starts a process that lives until stop is called.
func child(t *testing.T) (pid uint32, stop func()) {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop = func() { in.Close(); cmd.Wait() }
	t.Cleanup(stop)
	return uint32(cmd.Process.Pid), stop
}

func TestExitedProcessStaysNamed(t *testing.T) {
	now := time.Unix(0, 0)
	r := New(Options{Now: func() time.Time { return now }})
	pid, stop := child(t)
	p, err := r.Lookup(event.Task{PID: pid})
	if err != nil {
		t.Fatal(err)
	}
	if p.Comm != "cat" || p.PPID != uint32(os.Getpid()) {
		t.Fatalf("%+v", p)
	}
	stop()
	now = now.Add(time.Hour)
	for _, start := range []int64{p.Start, p.Start + tick - 1, 0} {
		q, err := r.Lookup(event.Task{PID: pid, Start: start})
		if err != nil || !q.Gone || q.Comm != "cat" || q.Exe != p.Exe {
			t.Errorf("start %d: %+v, %v", start, q, err)
		}
	}
	if p.Gone {
		t.Error("a Process changed after it was returned")
	}
	if _, err := New(Options{}).Lookup(event.Task{PID: pid}); !errors.Is(err, ErrGone) {
		t.Errorf("never seen: %v", err)
	}
}

// TestZombieKeepsItsProgram: what exits has no program any more, while its sockets are closed.
func TestZombieKeepsItsProgram(t *testing.T) {
	now := time.Unix(0, 0)
	r := New(Options{Cmdline: true, Now: func() time.Time { return now }})
	cmd := exec.Command("cat")
	in, _ := cmd.StdinPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	pid := uint32(cmd.Process.Pid)
	before, err := r.Lookup(event.Task{PID: pid})
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	var info unix.Siginfo // waits, but leaves the zombie
	if err := unix.Waitid(unix.P_PID, int(pid), &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	after, err := r.Lookup(event.Task{PID: pid, Start: before.Start})
	if err != nil || after == before || after.Exe != before.Exe || after.Exe == "" || !slices.Equal(after.Cmdline, before.Cmdline) || after.Cgroup != before.Cgroup {
		t.Errorf("%+v, %v\nbefore %+v", after, err, before)
	}
	if fresh, err := New(Options{}).Lookup(event.Task{PID: pid}); err != nil || fresh.Exe != "" {
		t.Errorf("the test proves nothing: %+v, %v", fresh, err)
	}
}

func TestReuseRefused(t *testing.T) {
	r := New(Options{})
	p, err := r.Lookup(self())
	if err != nil {
		t.Fatal(err)
	}
	for _, start := range []int64{p.Start - 1, p.Start + tick} {
		if q, err := r.Lookup(event.Task{PID: p.PID, Start: start}); !errors.Is(err, ErrReused) {
			t.Errorf("start %d: %+v, %v", start, q, err)
		}
	}
	if _, err := r.Lookup(event.Task{PID: uint32(otherThread(t))}); !errors.Is(err, ErrReused) {
		t.Errorf("a thread's id: %v", err)
	}
}

func otherThread(t *testing.T) int {
	for tid := range tids(t) {
		if tid != os.Getpid() {
			return tid
		}
	}
	t.Fatal("one thread only")
	return 0
}

func tids(t *testing.T) map[int]bool {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[int]bool)
	for _, e := range entries {
		out[int(parseID(e.Name()))] = true
	}
	return out
}

// conn returns one end of a TCP connection over loopback, as a plain descriptor.
func conn(t *testing.T) (fd int, ino uint64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // which resets what it has not accepted
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return int(f.Fd()), st.Ino
}

func TestHolders(t *testing.T) {
	fd, ino := conn(t)
	_, other := conn(t)
	dup, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	passed := os.NewFile(uintptr(dup), "")
	defer passed.Close()
	cmd := exec.Command("cat")
	cmd.ExtraFiles = []*os.File{passed}
	in, _ := cmd.StdinPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()

	got, scan, err := New(Options{}).Holders(map[uint64]struct{}{ino: {}})
	if err != nil {
		t.Fatal(err)
	}
	if scan.Processes < 2 || got[other] != nil {
		t.Errorf("scan %+v, holders of a socket not asked for: %v", scan, got[other])
	}
	want := map[uint32][]int{uint32(cmd.Process.Pid): {3}, uint32(os.Getpid()): {fd, dup}}
	for _, h := range got[ino] {
		for _, fd := range want[h.PID] {
			if !slices.Contains(h.FDs, fd) {
				t.Errorf("%+v lacks %d", h, fd)
			}
		}
		delete(want, h.PID)
	}
	if len(want) != 0 || len(got[ino]) != 2 {
		t.Errorf("holders %+v, not found: %v", got[ino], want)
	}
}

func TestFDs(t *testing.T) {
	r := New(Options{})
	before, limit, err := r.FDs(uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for range 100 {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	after, _, err := r.FDs(uint32(os.Getpid()))
	for _, f := range files {
		f.Close()
	}
	if err != nil || after < before+95 {
		t.Errorf("%d before, %d after opening 100: %v", before, after, err)
	}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); limit != lim.Cur {
		t.Errorf("limit %d, want %d", limit, lim.Cur)
	}
}

func BenchmarkLookupHit(b *testing.B) {
	r := New(Options{})
	p, err := r.Lookup(self())
	if err != nil {
		b.Fatal(err)
	}
	task := event.Task{PID: p.PID, Start: p.Start}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Lookup(task); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookupRead(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New(Options{}).Lookup(self()); err != nil {
			b.Fatal(err)
		}
	}
}

func mustDup(t *testing.T, fd int) int {
	t.Helper()
	dup, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	return dup
}

// TestCgroupByID asks the kernel, and walks the tree as where that is not allowed.
func TestCgroupByID(t *testing.T) {
	r := New(Options{})
	mount := r.tree.mount()
	if mount == "" {
		t.Skip("no cgroup v2 here")
	}
	name := "/stated-test-" + strconv.Itoa(os.Getpid())
	if err := os.MkdirAll(mount+name+"/docker/"+webID, 0o755); err != nil {
		t.Skip(err)
	}
	remove := func() {
		for _, dir := range []string{name + "/docker/" + webID, name + "/docker", name} {
			os.Remove(mount + dir)
		}
	}
	defer remove()
	path := name + "/docker/" + webID
	id := r.tree.idOf(path)
	if c, ok := r.Cgroup(id); !ok || c.Path != path || c.ID != id || c.Container.ID != webID {
		t.Errorf("%+v, %v", c, ok)
	}
	if got, err := openByID(mount, id); os.Getuid() == 0 && (err != nil || got != path) {
		t.Errorf("by handle: %q, %v", got, err)
	}
	walked := cgroupTree{byID: make(map[uint64]string)}
	if walked.walk(mount); walked.byID[id] != path {
		t.Errorf("by walking: %q", walked.byID[id])
	}
	remove()
	if c, ok := r.Cgroup(id); !ok || c.Path != path {
		t.Errorf("forgotten: %+v, %v", c, ok)
	}
	if c, ok := New(Options{}).Cgroup(id); ok {
		t.Errorf("removed, but found: %+v", c)
	}
}
