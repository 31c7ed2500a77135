// SPDX-License-Identifier: Apache-2.0

package story

import (
	"bytes"
	"fmt"
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
		{"several, held by the same", func(h *host) {
			perl := event.Task{PID: 5000, Comm: event.MakeComm("perl")}
			h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", nil, 3, shop, perl)
			h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", nil, 4, shop, perl)
		}, "its listener is that of one of java[4242]", "  half-open, listener java[4242], perl[5000]\n", `"stated.socket.holders":[]`},
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

// TestQueues: what waits to be accepted is not held by anybody, and where several
// listen on a port, not even known to be for this process.
func TestQueues(t *testing.T) {
	other := event.Task{PID: 32199, Comm: event.MakeComm("python3")}
	h := &host{c: census.New(now)}
	queued := func(n uint32) func(*event.Sighting) {
		return func(s *event.Sighting) { s.Unread, s.Unsent = n, 5 }
	}
	h.socket(event.StateListen, "0.0.0.0:7600", "0.0.0.0:0", queued(1), 3, shop)
	h.socket(event.StateListen, "0.0.0.0:7600", "0.0.0.0:0", queued(3), 3, other)
	h.socket(event.StateListen, "0.0.0.0:7700", "0.0.0.0:0", queued(1), 4, shop)
	waits := func(s *event.Sighting) { s.Flags, s.Inode, s.References = event.FlagNoSocket, 0, 0 }
	for _, end := range []string{"10.0.0.9:1", "10.0.0.9:2", "10.0.0.9:3", "10.0.0.9:4"} {
		h.socket(event.StateEstablished, "10.0.0.5:7600", end, waits, -1)
	}
	h.socket(event.StateEstablished, "10.0.0.5:7700", "10.0.0.9:5", waits, -1)
	h.socket(event.StateSynRecv, "10.0.0.5:7600", "10.0.0.9:6", request, -1)
	h.socket(event.StateEstablished, "10.0.0.5:7600", "10.0.0.9:7", nil, 9, shop)
	h.c.Complete(nil)
	text := string(teller().Process(nil, shop, only(h, shop.PID), 0))
	for _, want := range []string{
		"3 TCP sockets:\n  1 LISTEN on 0.0.0.0:7600\n  1 LISTEN on 0.0.0.0:7700\n  1 ESTABLISHED, came in at port 7600, oldest ≥1m00s\n\n",
		"  4 unaccepted at port 7600, oldest ≥1m00s, shared with python3[32199]: its own queue has 1\n",
		"  1 unaccepted at port 7700, oldest ≥1m00s\n",
		"  1 half-open at port 7600, shared with python3[32199]\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if text := string(teller().Sockets(nil, h.c.Sockets, 0)); !strings.Contains(text, "4 ESTABLISHED, not accepted, came in at port 7600") {
		t.Error(text)
	}
}

// TestRequests: a listener that is flooded says so.
func TestRequests(t *testing.T) {
	for _, tt := range []struct {
		halfOpen int
		says     string
		full     bool
	}{
		{0, "0 connections wait in its queue, 17 may. ", false},
		{1, "1 connection is half-open. ", false},
		{15, "15 connections are half-open. ", false},
		{16, "16 connections are half-open, which uses up its backlog of 16: SYN cookies serve further SYNs, or these are dropped", true},
		{17, "17 connections are half-open, which uses up its backlog of 16", true},
	} {
		h := &host{c: census.New(now)}
		h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", func(s *event.Sighting) { s.Unsent = 16 }, 3, shop)
		for i := range tt.halfOpen {
			h.socket(event.StateSynRecv, "10.0.0.5:80", fmt.Sprintf("10.0.0.9:%d", 40000+i), request, -1)
		}
		h.c.Complete(nil)
		h.c.Drop(func(s *census.Socket) bool { return s.HalfOpen() })
		text := oneLine(teller().Sockets(nil, h.c.Sockets, 1)) + " "
		if !strings.Contains(text, tt.says) || strings.Contains(text, "cookies") != tt.full || strings.Contains(text, "half-open") != (tt.halfOpen > 0) {
			t.Errorf("%d half-open: %q", tt.halfOpen, text)
		}
	}
}

// TestGrammar: one is not several.
func TestGrammar(t *testing.T) {
	h := &host{c: census.New(now)}
	h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", func(s *event.Sighting) { s.Unread, s.Unsent = 1, 5 }, 3, shop)
	h.socket(event.StateEstablished, "10.0.0.5:80", "10.0.0.9:40001", func(s *event.Sighting) { s.Unsent, s.Unread, s.LastReceived, s.BytesReceived = 1, 1, now-60e9, 1 }, 4, shop)
	h.socket(event.StateCloseWait, "10.0.0.5:80", "10.0.0.9:40002", func(s *event.Sighting) { s.Unread, s.Flags, s.LastSegment = 1, event.FlagDone, 0 }, 5, shop)
	h.c.Complete(nil)
	text := oneLine(teller().Sockets(nil, h.c.Sockets[:3], 2)) + oneLine(teller().Process(nil, shop, h.c.Sockets, 0)) + oneLine(teller().Sockets(nil, h.c.Sockets, 3))
	for _, want := range []string{
		"1 connection waits in its queue, 6 may.", "1B of ours waits to be sent", "1B waits, the last of which", "And 1 more: stated ls shows it.",
		"Of 1 it is not known whether it has been in its state", "1 is in trouble", "And 1 more that is stuck or in trouble",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}
