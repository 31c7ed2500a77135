// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/proc"
)

// TestNamespaceLive: sockets in another network namespace are marked, and a process
// is found through which commands get there.
func TestNamespaceLive(t *testing.T) {
	requireRoot(t)
	argv := python(t)
	if argv == nil {
		notInstalled(t, "python3")
	}
	p := plant(t, false, append(argv, "data_unread")...)
	pid := strconv.Itoa(p.pid)
	processes := newProcesses(proc.Options{}, nil)
	there, err := processes.Resolver.Netns(uint32(p.pid))
	if err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprintf(" netns:%d\n", there)
	for _, args := range [][]string{{"ls", "--pid", pid}, {"explain", pid}} {
		if out, _, _ := runStated(t, args...); !strings.Contains(out, mark) {
			t.Errorf("stated %s: no %q in\n%s", args[0], mark, out)
		}
	}
	if out, _, _ := runStated(t, "ls", "--netns", strconv.Itoa(int(processes.here()))); strings.Contains(out, " netns:") {
		t.Errorf("what is in ours is marked:\n%s", out)
	}

	in := func(netns uint32, holders ...uint32) uint32 {
		s := &census.Socket{}
		s.Netns = netns
		for _, pid := range holders {
			s.Holders = append(s.Holders, census.Holder{Task: event.Task{PID: pid}})
		}
		return processes.in(s)
	}
	self, its := uint32(os.Getpid()), uint32(p.pid)
	if got := in(there, self, its); got != its {
		t.Errorf("of two holders, one of them elsewhere: %d, want %d", got, its)
	}
	if got := in(there); got != 0 {
		t.Errorf("of nobody: %d", got)
	}
	s := &census.Socket{Holders: []census.Holder{{Task: event.Task{PID: its}}}}
	s.Netns = there
	processes.place(&census.Census{Sockets: []*census.Socket{s}})
	if got := in(there); got != its {
		t.Errorf("of nobody, with another socket there: %d, want %d", got, its)
	}
}
