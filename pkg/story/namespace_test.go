// SPDX-License-Identifier: Apache-2.0

package story

import (
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
)

// TestNamespace: what to do next is to be done where the socket is.
func TestNamespace(t *testing.T) {
	for _, tt := range []struct {
		name      string
		netns     uint32 // the socket's
		inside    uint32
		says, not []string
	}{
		{"ours", 1, 9, []string{"  ip route get 10.0.0.9\n  ping -c 3 10.0.0.9\n"}, []string{"netns", "nsenter"}},
		{"another", 2, 9, []string{"40001 netns:2\n", "  nsenter -t 9 -n ip route get 10.0.0.9\n  nsenter -t 9 -n ping -c 3 10.0.0.9\n"}, []string{"must run"}},
		{"another, nobody in it", 2, 0, []string{"40001 netns:2\n", "  ip route get", "must run in network namespace 2"}, []string{"nsenter"}},
		{"not known", 0, 9, []string{"  ip route get"}, []string{"netns", "nsenter"}},
	} {
		h := &host{c: census.New(now)}
		h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40001", func(s *event.Sighting) { s.Netns, s.Unsent, s.Timeouts = tt.netns, 500, 4 }, 20, shop)
		h.c.Complete(nil)
		teller := teller()
		teller.Netns, teller.Inside = 1, func(*census.Socket) uint32 { return tt.inside }
		text := string(teller.Sockets(nil, h.c.Sockets, 1))
		for _, part := range tt.says {
			if !strings.Contains(text, part) && !strings.Contains(oneLine([]byte(text)), part) {
				t.Errorf("%s: does not say %q:\n%s", tt.name, part, text)
			}
		}
		for _, part := range tt.not {
			if strings.Contains(text, part) {
				t.Errorf("%s: says %q:\n%s", tt.name, part, text)
			}
		}
		process := string(teller.Process(nil, shop, h.c.Sockets, 0))
		if marked := strings.Contains(process, "oldest ≥1m00s netns:2\n"); marked != (tt.netns == 2) {
			t.Errorf("%s: marked in a list: %v\n%s", tt.name, marked, process)
		}
	}
}

// TestLinkLocal: an address that each interface has a route to is asked for where it is.
func TestLinkLocal(t *testing.T) {
	h := &host{c: census.New(now)}
	h.socket(event.StateSynSent, "[fe80::1]:40001", "[fe80::9]:80", func(s *event.Sighting) { s.Timeouts = 2 }, 5, shop)
	h.c.Complete(nil)
	text := string(teller().Socket(nil, h.c.Sockets[0]))
	if want := "  ip neigh show fe80::9\n  ping -c 3 fe80::9%DEVICE\n"; !strings.Contains(text, want) || !strings.Contains(oneLine([]byte(text)), "DEVICE that the first of these shows.") {
		t.Errorf("no %q in %s", want, text)
	}
}
