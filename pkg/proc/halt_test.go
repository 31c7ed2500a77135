// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
)

// TestHalt stops a process and lets it go on.
func TestHalt(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	r := New(Options{})
	for _, step := range []struct {
		signal syscall.Signal
		want   HaltKind
	}{{0, Runs}, {syscall.SIGSTOP, Stopped}, {syscall.SIGCONT, Runs}} {
		if err := cmd.Process.Signal(step.signal); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			h, err := r.Halt(event.Task{PID: uint32(cmd.Process.Pid)})
			if err == nil && h.Kind == step.want {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after signal %d: %v, %v, want %v", step.signal, h, err, step.want)
			}
		}
	}
}

// TestParseHalt: by the words of the kernel.
func TestParseHalt(t *testing.T) {
	for status, want := range map[string]Halt{
		"Name:\tx\nState:\tT (stopped)\nTracerPid:\t0\n":       {Kind: Stopped},
		"Name:\tx\nState:\tt (tracing stop)\nTracerPid:\t77\n": {Kind: Traced, Tracer: 77},
		"Name:\tx\nState:\tZ (zombie)\nTracerPid:\t0\n":        {Kind: EndedMain},
		"Name:\tx\nState:\tS (sleeping)\nTracerPid:\t77\n":     {},
		"Name:\tState\\n: T\nState:\tR (running)\n":            {},
		"State:\n": {},
		"":         {},
	} {
		if got := parseHalt(status); got != want {
			t.Errorf("%q: %v, want %v", status, got, want)
		}
	}
}

// TestFrozen: a cgroup that is frozen stops all in it.
func TestFrozen(t *testing.T) {
	f := newFake(t, "x")
	f.write("proc/7/cgroup", "0::/x\n")
	f.write("sys/fs/cgroup/cgroup.controllers", "")
	for events, want := range map[string]HaltKind{"populated 1\nfrozen 0\n": Runs, "populated 1\nfrozen 1\n": Frozen} {
		f.write("sys/fs/cgroup/x/cgroup.events", events)
		if h, err := New(Options{Root: f.root}).Halt(event.Task{PID: 7}); err != nil || h.Kind != want {
			t.Errorf("%q: %v, %v", events, h, err)
		}
	}
}
