// SPDX-License-Identifier: Apache-2.0

package story

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/render"
)

// request makes a sighting one of a connection whose handshake is not over.
func request(s *event.Sighting) {
	s.Flags, s.Inode, s.References, s.LastSegment, s.Opened = event.FlagMini|event.FlagNoSocket, 0, 0, 0, false
}

// oneLine undoes the wrapping.
func oneLine(b []byte) string { return strings.Join(strings.Fields(string(b)), " ") }

// TestHalfOpen: nobody holds it yet, which is not that nobody does any more.
func TestHalfOpen(t *testing.T) {
	for _, tt := range []struct {
		name           string
		change         func(*host)
		says, ls, json string
	}{
		{"one", func(h *host) { h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", nil, 3, shop) },
			"half-open: no process has it before accept(); its listener is java[4242]: java", "  half-open, listener java[4242]\n", `"stated.process.source":"listener","process.pid":4242`},
		{"none", func(*host) {}, "its listener was not found", "  half-open\n", `"stated.socket.holders":[]`},
		{"of nobody", func(h *host) { h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", nil, -1) },
			"its listener is on 0.0.0.0:80, and no process was found", "  half-open\n", `"stated.socket.holders":[]`},
		{"several", func(h *host) {
			h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", nil, 3, shop)
			h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", nil, 3, event.Task{PID: 5, Comm: event.MakeComm("perl")})
		}, "its listener is that of one of java[4242]", "  half-open, listener java[4242], perl[5]\n", `"stated.socket.holders":[]`},
	} {
		h := &host{c: census.New(now)}
		tt.change(h)
		h.socket(event.StateSynRecv, "10.0.0.5:80", "10.0.0.9:40001", request, -1)
		h.c.Complete(nil)
		s := h.c.Sockets[len(h.c.Sockets)-1]
		if text := oneLine(teller().Socket(nil, s)); !strings.Contains(text, tt.says) || strings.Contains(text, "any more") {
			t.Errorf("%s: no %q in %q", tt.name, tt.says, text)
		}
		h.c.Drop(func(have *census.Socket) bool { return have != s })
		for format, want := range map[render.Format]string{render.FormatText: tt.ls, render.FormatJSON: tt.json} {
			var out bytes.Buffer
			w := render.New(&out, render.Options{Format: format})
			w.Sockets(h.c, func(event.Task) render.Process { return render.Process{} })
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in %s", tt.name, want, out.String())
			}
		}
		its := filter.Filter{Filter: event.Filter{PIDs: []uint32{shop.PID}}}
		if want := strings.Contains(tt.says, "java"); its.Socket(s) != want || Of(s, shop.PID) != want {
			t.Errorf("%s: belongs to the process: %v, %v", tt.name, its.Socket(s), Of(s, shop.PID))
		}
	}
}
