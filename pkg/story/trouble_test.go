// SPDX-License-Identifier: Apache-2.0

package story

import (
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
)

// TestTroubles: nothing is said to be well where the kernel knows better, and
// nothing to be wrong that may end in a moment.
func TestTroubles(t *testing.T) {
	const well = "Nothing is wrong with it"
	for _, tt := range []struct {
		name      string
		state     event.State
		change    func(*event.Sighting)
		says, not []string
	}{
		{"quiet", event.StateEstablished, nil, []string{well}, []string{"Next:"}},
		{"on its way", event.StateEstablished, func(s *event.Sighting) { s.Unsent = 500 }, []string{well}, []string{"Next:"}},
		{"window closed", event.StateEstablished, func(s *event.Sighting) { s.Unsent, s.Shut, s.Probes = 9000, true, 1 },
			[]string{"The peer's window is closed", "stated explain 10.0.0.9:40001."}, []string{well, "ping", "probes"}},
		{"window closed, no answer", event.StateEstablished, func(s *event.Sighting) { s.Unsent, s.Shut, s.Probes = 9000, true, 4 },
			[]string{"The peer's window is closed", "last 4 probes", "ping -c 3 10.0.0.9"}, []string{well, "stated explain"}},
		{"no answer", event.StateEstablished, func(s *event.Sighting) { s.Unsent, s.Timeouts = 500, 4 },
			[]string{"ran out 4 times in a row", "ETIMEDOUT", "ping -c 3 10.0.0.9"}, []string{well, "window"}},
		{"no answer once", event.StateEstablished, func(s *event.Sighting) { s.Unsent, s.Timeouts = 500, 1 },
			[]string{"ran out 1 time, and"}, []string{well}},
		{"keep-alives", event.StateEstablished, func(s *event.Sighting) { s.Probes = 3 },
			[]string{"of the last 3 keep-alive probes none", "ping"}, []string{well}},
		{"a keep-alive", event.StateEstablished, func(s *event.Sighting) { s.Probes = 1 }, []string{well}, []string{"Next:"}},
		{"left unread", event.StateEstablished, func(s *event.Sighting) { s.Unread, s.BytesReceived, s.LastReceived = 700, 900, now-40e9 },
			[]string{"Our process does not read: 700B wait, the last of which came 40.0s ago", "gdb -p 4242"}, []string{well, "call (int)close"}},
		{"just came", event.StateEstablished, func(s *event.Sighting) { s.Unread, s.BytesReceived, s.LastReceived = 700, 900, now-2e9 },
			[]string{"may be about to do so"}, []string{well, "Next:"}},
		{"both", event.StateEstablished, func(s *event.Sighting) {
			s.Unsent, s.Timeouts, s.Unread, s.BytesReceived, s.LastReceived = 500, 2, 700, 900, now-40e9
		}, []string{"does not acknowledge", "does not read"}, []string{well}},
		{"FIN of nobody", event.StateFinWait1, func(s *event.Sighting) { s.Unsent, s.Timeouts, s.Flags, s.Inode = 1, 3, event.FlagDead, 0 },
			[]string{"ran out 3 times in a row", "the kernel waits for the peer"}, []string{"ETIMEDOUT", "1B"}},
		{"CLOSE_WAIT", event.StateCloseWait, func(s *event.Sighting) { s.Unsent, s.Timeouts, s.Flags = 9, 3, event.FlagDone },
			[]string{"ran out 3 times in a row", "It is stuck, verdict drained"}, nil},
		{"SYN", event.StateSynSent, func(s *event.Sighting) { s.Unsent, s.Timeouts, s.Began, s.LastSegment = 1, 3, now-9e9, now-1e9 },
			[]string{"the peer has not answered our SYN", "at least 9.00s: the first SYN went then", "sent 3 more times", "ping -c 3 10.0.0.9"}, []string{"1B", "timer"}},
		{"silent", event.StateEstablished, func(s *event.Sighting) { s.Unsent, s.Timeouts, s.Began, s.LastSegment = 500, 4, now-9e9, now-1e9 },
			[]string{"at least 9.00s: no segment of the peer has come since"}, []string{"no segment has come or gone"}},
		{"a download", event.StateEstablished, func(s *event.Sighting) {
			s.BytesReceived, s.LastReceived, s.Began, s.LastSegment = 900, now-1e9, now-9e9, now-1e9
		}, []string{"at least 9.00s: the peer acknowledged something then"}, []string{"no segment"}},
		{"a download, by sock_diag", event.StateEstablished, func(s *event.Sighting) {
			s.BytesReceived, s.LastReceived, s.LastSegment, s.Limited = 900, now-1e9, now-9e9, true
		}, []string{"at least 9.00s: the peer acknowledged something then"}, []string{"no segment"}},
		{"silent, by sock_diag", event.StateEstablished, func(s *event.Sighting) {
			s.BytesSent, s.LastSent, s.LastSegment, s.Limited = 900, now-1e9, now-9e9, true
		}, []string{"at least 9.00s: no segment of the peer has come since"}, []string{"come or gone"}},
	} {
		h := &host{c: census.New(now)}
		h.socket(tt.state, "10.0.0.5:8080", "10.0.0.9:40001", tt.change, 20, shop)
		if s := h.c.Sockets[0]; s.Flags.Has(event.FlagDead) {
			s.Holders = nil
		}
		h.c.Complete(nil)
		text := strings.Join(strings.Fields(string(teller().Socket(nil, h.c.Sockets[0]))), " ")
		for _, part := range tt.says {
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

// TestTroubledProcess: what is in trouble comes behind what is stuck, and is no
// such.
func TestTroubledProcess(t *testing.T) {
	h := &host{c: census.New(now)}
	closed := func(s *event.Sighting) { s.Unsent, s.Shut, s.Probes = 9000, true, 1 }
	h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40001", nil, 20, shop)
	h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40002", closed, 21, shop)
	told := func(examples int) string {
		h.c.Complete(nil)
		return strings.Join(strings.Fields(string(teller().Process(nil, shop, h.c.Sockets, examples))), " ")
	}
	text := told(2)
	for _, part := range []string{"None of them is stuck. 1 is in trouble: data does not get through", "10.0.0.9:40002 It is in ESTABLISHED", "window is closed"} {
		if !strings.Contains(text, part) {
			t.Errorf("does not say %q: %s", part, text)
		}
	}
	if strings.Contains(text, "40001") {
		t.Errorf("tells of what is well: %s", text)
	}
	h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40003", closed, 22, shop)
	h.socket(event.StateCloseWait, "10.0.0.5:8080", "10.0.0.9:40004", func(s *event.Sighting) { s.LastSegment = now - 60e9 }, 23, shop)
	text = told(1)
	for _, part := range []string{"1 is stuck for", "2 more are in trouble", "10.0.0.9:40004 It is in CLOSE_WAIT", "And 2 more that are stuck or in trouble: --examples 3 tells of each."} {
		if !strings.Contains(text, part) {
			t.Errorf("does not say %q: %s", part, text)
		}
	}
}

// TestCalledInVain: a listener of this host that drops our SYN is named, and one that
// may be another host's is not.
func TestCalledInVain(t *testing.T) {
	const here, away = "the listener is here, and drops our SYN", "ping -c 3"
	full := func(s *event.Sighting) { s.Unread, s.Unsent = 3, 2 }
	room := func(s *event.Sighting) { s.Unread, s.Unsent = 2, 2 }
	for _, tt := range []struct {
		name, listener, local, peer string
		queue                       func(*event.Sighting)
		says, not                   string
	}{
		{"loopback", "127.0.0.1:80", "127.0.0.1:40001", "127.0.0.1:80", full, here, away},
		{"any address", "[::]:80", "10.0.0.5:40001", "10.0.0.5:80", full, here, away},
		{"room", "127.0.0.1:80", "127.0.0.1:40001", "127.0.0.1:80", room, away, here},
		{"another port", "127.0.0.1:81", "127.0.0.1:40001", "127.0.0.1:80", full, away, here},
		{"another host", "0.0.0.0:80", "10.0.0.5:40001", "10.0.0.9:80", full, away, here},
	} {
		h := &host{c: census.New(now)}
		h.socket(event.StateListen, tt.listener, "0.0.0.0:0", tt.queue, 3, shop)
		h.socket(event.StateSynSent, tt.local, tt.peer, func(s *event.Sighting) { s.Timeouts = 3 }, 20, shop)
		h.c.Complete(nil)
		text := oneLine(teller().Socket(nil, h.c.Sockets[1]))
		if !strings.Contains(text, tt.says) || strings.Contains(text, tt.not) {
			t.Errorf("%s: %s", tt.name, text)
		}
		if told := strings.Contains(text, "has 3 of at most 3 and belongs to java[4242]") && strings.Contains(text, "stated explain 4242/3"); told != (tt.says == here) {
			t.Errorf("%s: the listener: %s", tt.name, text)
		}
	}
}
