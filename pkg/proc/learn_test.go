// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"os"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

func task(pid uint32, start int64, comm string) event.Task {
	return event.Task{PID: pid, Start: start, Comm: event.MakeComm(comm)}
}

// TestLearn: what the kernel told is known of a process that has exited, and of
// the programs that it ran before its last one.
func TestLearn(t *testing.T) {
	r := New(Options{Recorded: true})
	const group = "/system.slice/nginx.service"
	r.Learn(task(7, 1e9, "sh"), &event.Process{Image: 1, PPID: 6, InnerPID: 2, PIDNS: 9, UID: 33, Cgroup: 5, Group: group, Exe: "/bin/sh"})
	r.Learn(task(7, 1e9, "nginx"), &event.Process{Image: 2, PPID: 6, InnerPID: 2, PIDNS: 9, UID: 33, Cgroup: 5, Group: group, Exe: "/usr/sbin/nginx", ExeDeleted: true})
	r.Learn(task(7, 1e9, "nginx"), &event.Process{Image: 2, PPID: 1, InnerPID: 2, PIDNS: 9, UID: 33, Cgroup: 5, Group: group}) // it exits
	for comm, exe := range map[string]string{"sh": "/bin/sh", "nginx": "/usr/sbin/nginx", "": "/usr/sbin/nginx", "renamed": "/usr/sbin/nginx"} {
		p, err := r.Lookup(task(7, 1e9, comm))
		if err != nil {
			t.Fatal(err)
		}
		if p.Exe != exe || p.NSPID != 2 || p.PIDNS != 9 || p.UID != 33 || p.Cgroup.Unit != "nginx.service" || p.Cgroup.ID != 5 {
			t.Errorf("%q: %+v, want %s", comm, p, exe)
		}
	}
	for _, other := range []event.Task{task(7, 2e9, "sh"), task(8, 1e9, "sh")} {
		if p, err := r.Lookup(other); !errors.Is(err, ErrGone) {
			t.Errorf("%d at %d: %+v, %v", other.PID, other.Start, p, err)
		}
	}
	if s := r.Stats(); s.Learned != 3 || s.Reads != 0 || s.Held != 1 {
		t.Errorf("%+v", s)
	}
}

// TestLearnIsBounded: a process that runs one program after the other.
func TestLearnIsBounded(t *testing.T) {
	r := New(Options{Recorded: true})
	for i := range uint32(100) {
		r.Learn(task(7, 1e9, "sh"), &event.Process{Image: i + 1, Exe: "/bin/sh", Group: "/x"})
	}
	n := 0
	for p := r.cache.get(task(7, 0, "")).p; p != nil; p = p.before {
		n++
	}
	if n != maxImages {
		t.Errorf("%d programs are remembered, want %d", n, maxImages)
	}
}

// TestLearnLive: the command line comes from /proc, the rest stands as told.
func TestLearnLive(t *testing.T) {
	for _, cmdline := range []bool{false, true} {
		r := New(Options{Cmdline: cmdline})
		self, err := r.Lookup(event.Task{PID: uint32(os.Getpid())})
		if err != nil {
			t.Fatal(err)
		}
		r = New(Options{Cmdline: cmdline})
		who := task(self.PID, self.Start+1, self.Comm) // /proc has it in ticks
		r.Learn(who, &event.Process{Image: 3, PPID: self.PPID, UID: self.UID, Group: "/told", Exe: self.Exe})
		p, err := r.Lookup(who)
		if err != nil {
			t.Fatal(err)
		}
		if reads := r.Stats().Reads; (p.Cmdline != nil) != cmdline || (reads != 0) != cmdline {
			t.Errorf("cmdline %v: %q after %d reads", cmdline, p.Cmdline, reads)
		}
		if p.Exe != self.Exe || p.User != self.User {
			t.Errorf("%+v, want %+v", p, self)
		}
	}
}

// TestGoneStaysGone: what has exited is looked for once, unless the kernel tells of it.
func TestGoneStaysGone(t *testing.T) {
	r := New(Options{})
	gone := event.Task{PID: 1 << 22, Start: 5e9, Comm: event.MakeComm("curl")}
	for range 3 {
		if _, err := r.Lookup(gone); !errors.Is(err, ErrGone) {
			t.Fatal(err)
		}
	}
	if s := r.Stats(); s.Reads != 1 || s.Misses != 3 {
		t.Errorf("%d reads, %d misses, want 1, 3", s.Reads, s.Misses)
	}
	r.Learn(gone, &event.Process{Image: 1, Exe: "/usr/bin/curl"})
	if p, err := r.Lookup(gone); err != nil || p.Exe != "/usr/bin/curl" {
		t.Error(p, err)
	}
}
