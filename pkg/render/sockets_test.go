// SPDX-License-Identifier: Apache-2.0

package render

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
)

// troubled is a census of one socket in trouble.
func troubled(state event.State, change func(*event.Sighting)) *census.Census {
	const now = 100e9
	s := event.Sighting{Event: event.Event{Kind: event.KindSnapshot, New: state, Old: state, Time: now, Socket: 1, Netns: 1, Protocol: event.ProtoTCP,
		Local: netip.MustParseAddrPort("10.0.0.5:8080"), Peer: netip.MustParseAddrPort("10.0.0.9:40001"), FD: -1}, Inode: 5}
	change(&s)
	c := census.New(now)
	c.Add(&s)
	c.Complete(nil)
	return c
}

// TestTroubleRecords: a record has the facts of which explain makes sentences, and
// none of them where all is well.
func TestTroubleRecords(t *testing.T) {
	troubles := map[string]bool{"stated.tcp.window_closed": true, "stated.tcp.timeouts": true, "stated.tcp.probes": true,
		"stated.tcp.rx_queue_age_ns": true, "stated.listener.queue_full": true}
	all, allowed := schemas(t), properties(t, "tcp.socket")
	for key := range troubles {
		if _, ok := allowed[key]; !ok {
			t.Errorf("the schema has no %s", key)
		}
	}
	for _, tt := range []struct {
		name   string
		state  event.State
		change func(*event.Sighting)
		want   string // part of the record; "": none of the troubles
	}{
		{"quiet", event.StateEstablished, func(*event.Sighting) {}, ""},
		{"all read", event.StateEstablished, func(s *event.Sighting) { s.BytesReceived, s.LastReceived = 700, 60e9 }, ""},
		{"end of file only", event.StateCloseWait, func(s *event.Sighting) { s.Unread, s.Flags, s.LastReceived = 1, event.FlagDone, 60e9 }, ""},
		{"window closed", event.StateEstablished, func(s *event.Sighting) { s.Unsent, s.Shut, s.Probes = 9000, true, 4 },
			`"stated.tcp.tx_queue_bytes":9000,"stated.tcp.window_closed":true,"stated.tcp.probes":4`},
		{"no answer", event.StateEstablished, func(s *event.Sighting) { s.Unsent, s.Timeouts = 500, 255 }, `"stated.tcp.tx_queue_bytes":500,"stated.tcp.timeouts":255`},
		{"SYN", event.StateSynSent, func(s *event.Sighting) { s.Unsent, s.Timeouts = 1, 3 }, `"stated.tcp.timeouts":3`},
		{"left unread", event.StateEstablished, func(s *event.Sighting) { s.Unread, s.LastReceived = 700, 60e9 },
			`"stated.tcp.rx_queue_bytes":700,"stated.tcp.tx_queue_bytes":0,"stated.tcp.rx_queue_age_ns":40000000000`},
		{"left unread, since when is not known", event.StateEstablished, func(s *event.Sighting) { s.Unread = 700 }, ""},
		{"room for one more", event.StateListen, func(s *event.Sighting) { s.Unread, s.Unsent = 2, 2 }, ""},
		{"queue full", event.StateListen, func(s *event.Sighting) { s.Unread, s.Unsent = 3, 2 },
			`"stated.listener.queue":3,"stated.listener.queue_limit":2,"stated.listener.queue_full":true`},
	} {
		line := render(Options{Format: FormatJSON}, func(w *Writer) { w.Sockets(troubled(tt.state, tt.change), nil) })
		if !strings.Contains(line, tt.want) {
			t.Errorf("%s: no %s in %s", tt.name, tt.want, line)
		}
		for key := range validate(t, all, line) {
			if tt.want == "" && troubles[key] {
				t.Errorf("%s: %s in %s", tt.name, key, line)
			}
		}
	}
}
