// SPDX-License-Identifier: Apache-2.0

package story

import (
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/render"
)

// TestOther: of a peer on this very host nobody must go and look elsewhere.
func TestOther(t *testing.T) {
	perl := event.Task{PID: 19930, Comm: event.MakeComm("perl")}
	for _, tt := range []struct {
		name      string
		peer      func(*host)
		says, not []string
	}{
		{"elsewhere", func(*host) {}, []string{"on its host, stated explain 10.0.0.5:7024."}, []string{"other end"}},
		{"in another namespace", func(h *host) {
			h.socket(event.StateEstablished, "10.0.0.5:7024", "10.0.0.5:40001", func(s *event.Sighting) { s.Netns = 2 }, 5, perl)
		}, []string{"on its host, stated explain"}, []string{"other end"}},
		{"here", func(h *host) { h.socket(event.StateEstablished, "10.0.0.5:7024", "10.0.0.5:40001", nil, 5, perl) },
			[]string{"Its other end is here: perl[19930].", "stated explain 19930/5"}, []string{"on its host"}},
		{"here, and stopped", func(h *host) { h.socket(event.StateEstablished, "10.0.0.5:7024", "10.0.0.5:40001", nil, 5, shop) },
			[]string{"java[4242] is stopped"}, nil},
		{"not accepted", func(h *host) {
			h.socket(event.StateListen, "10.0.0.5:7024", "0.0.0.0:0", nil, 3, perl)
			h.socket(event.StateEstablished, "10.0.0.5:7024", "10.0.0.5:40001", func(s *event.Sighting) { s.Flags, s.Inode = event.FlagNoSocket, 0 }, -1)
		}, []string{"Its other end is here: not accepted, listener perl[19930].", "stated explain 19930 "}, []string{"on its host"}},
		{"of nobody", func(h *host) {
			h.socket(event.StateFinWait2, "10.0.0.5:7024", "10.0.0.5:40001", func(s *event.Sighting) { s.Flags, s.Inode = event.FlagDead, 0 }, -1)
		}, []string{"Its other end is here, in FIN_WAIT2, and no process has it."}, nil},
		{"of somebody", func(h *host) { h.socket(event.StateEstablished, "10.0.0.5:7024", "10.0.0.5:40001", nil, -1) },
			[]string{"Its other end is here, in ESTABLISHED, and no process was found that has it."}, nil},
	} {
		h := &host{c: census.New(now)}
		h.socket(event.StateEstablished, "10.0.0.5:40001", "10.0.0.5:7024", func(s *event.Sighting) { s.Unsent, s.Shut, s.Probes = 3.8e6, true, 1 }, 20, event.Task{PID: 6})
		tt.peer(h)
		h.c.Complete(nil)
		teller := teller()
		teller.Processes = func(t event.Task) render.Process {
			if t.PID == shop.PID {
				return render.Process{Halted: render.HaltStopped}
			}
			return render.Process{}
		}
		text := oneLine(teller.Socket(nil, h.c.Sockets[0])) + " "
		for _, part := range append(tt.says, "3.8MB of ours wait to be sent or to be acknowledged.") {
			if !strings.Contains(text, part) {
				t.Errorf("%s: does not say %q: %s", tt.name, part, text)
			}
		}
		for _, part := range tt.not {
			if strings.Contains(text, part) {
				t.Errorf("%s: says %q: %s", tt.name, part, text)
			}
		}
	}
}
