// SPDX-License-Identifier: Apache-2.0

package story

import (
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/render"
)

// TestHalted: what a stopped process does not do needs no other reason.
func TestHalted(t *testing.T) {
	const stopped = "java[4242] is stopped (SIGSTOP or a debugger), and reads, accepts and closes nothing: kill -CONT 4242."
	runs := event.Task{PID: 5, Comm: event.MakeComm("perl")}
	for _, tt := range []struct {
		name      string
		p         render.Process
		state     event.State
		change    func(*event.Sighting)
		tasks     []event.Task
		says, not []string
	}{
		{"young", render.Process{Halted: render.HaltStopped}, event.StateEstablished, func(s *event.Sighting) { s.Unread, s.BytesReceived, s.LastReceived = 700, 700, now-2e9 },
			[]event.Task{shop}, []string{stopped, "It waits until the process goes on."}, []string{"about to"}},
		{"left unread", render.Process{Halted: render.HaltStopped}, event.StateEstablished, func(s *event.Sighting) { s.Unread, s.BytesReceived, s.LastReceived = 700, 700, now-40e9 },
			[]event.Task{shop}, []string{stopped, "Next: let it go on, then look again. kill -CONT 4242"}, []string{"gdb", "stuck"}},
		{"CLOSE_WAIT", render.Process{Halted: render.HaltStopped}, event.StateCloseWait, func(s *event.Sighting) { s.Unread, s.Flags = 1, event.FlagDone },
			[]event.Task{shop}, []string{stopped, "It is stuck, verdict eof_unread", "kill -CONT 4242"}, []string{"gdb", "pool"}},
		{"CLOSE_WAIT, young", render.Process{Halted: render.HaltStopped}, event.StateCloseWait, func(s *event.Sighting) {
			s.Unread, s.Flags, s.LastSegment, s.LastReceived = 1, event.FlagDone, now-2e9, now-3e9
		},
			[]event.Task{shop}, []string{stopped, "It stays so while the process does nothing"}, []string{"about to"}},
		{"one of two", render.Process{Halted: render.HaltStopped}, event.StateCloseWait, func(s *event.Sighting) { s.Unread, s.Flags = 1, event.FlagDone },
			[]event.Task{shop, runs}, []string{stopped, "gdb -p 5"}, []string{"Next: let"}},
		{"traced", render.Process{Halted: render.HaltTraced, Tracer: 77}, event.StateCloseWait, func(s *event.Sighting) { s.Unread, s.Flags = 1, event.FlagDone },
			[]event.Task{shop}, []string{"java[4242] is stopped by its debugger, process 77,"}, []string{"CONT", "gdb"}},
		{"frozen", render.Process{Halted: render.HaltFrozen, Cgroup: "/a\x1b"}, event.StateCloseWait, func(s *event.Sighting) { s.Unread, s.Flags = 1, event.FlagDone },
			[]event.Task{shop}, []string{`is frozen with its cgroup /a\x1b, and`}, []string{"CONT", "gdb"}},
		{"main thread ended", render.Process{Halted: render.HaltEnded}, event.StateCloseWait, func(s *event.Sighting) { s.Unread, s.Flags = 1, event.FlagDone },
			[]event.Task{shop}, []string{"java[4242] has ended its main thread", "gdb -p 4242"}, []string{"CONT"}},
	} {
		h := &host{c: census.New(now)}
		h.socket(tt.state, "10.0.0.5:8080", "10.0.0.9:40001", tt.change, 20, tt.tasks...)
		h.c.Complete(nil)
		teller := teller()
		teller.Processes = func(t event.Task) render.Process {
			if t.PID == shop.PID {
				return tt.p
			}
			return render.Process{}
		}
		text := oneLine(teller.Socket(nil, h.c.Sockets[0]))
		for _, part := range tt.says {
			if !strings.Contains(text, part) {
				t.Errorf("%s: does not say %q: %s", tt.name, part, text)
			}
		}
		for _, part := range tt.not {
			if strings.Contains(strings.ReplaceAll(text, "It is stuck", ""), part) {
				t.Errorf("%s: says %q: %s", tt.name, part, text)
			}
		}
		if text, want := oneLine(teller.Process(nil, shop, h.c.Sockets, 0)), tt.says[0]; !strings.Contains(text, want) {
			t.Errorf("%s: the process: no %q in %s", tt.name, want, text)
		}
	}
}
