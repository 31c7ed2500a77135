// SPDX-License-Identifier: Apache-2.0

package census

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

// TestAnswering: who would answer a call, of all that listen on a port.
func TestAnswering(t *testing.T) {
	for _, tt := range []struct{ called, listeners, want string }{
		{"127.0.0.1:80", "0.0.0.0:80", "0.0.0.0:80"},
		{"127.0.0.1:80", "[::]:80", "[::]:80"},
		{"[::1]:80", "0.0.0.0:80", ""},
		{"[::1]:80", "0.0.0.0:80 [::]:80", "[::]:80"},
		{"127.0.0.1:80", "0.0.0.0:80 [::]:80", "0.0.0.0:80"},
		{"127.0.0.1:80", "0.0.0.0:80 127.0.0.1:80", ""}, // which is found by its address
		{"127.0.0.1:80", "0.0.0.0:81 10.0.0.5:80", ""},
		{"127.0.0.1:80", "0.0.0.0:80 0.0.0.0:80", "0.0.0.0:80 0.0.0.0:80"},
		{"10.9.9.9:80", "0.0.0.0:80", ""}, // a peer's
		{"0.0.0.0:80", "[::]:80", ""},
		{"127.0.0.1:80", "0.0.0.0:80/2 127.0.0.1:80", "0.0.0.0:80"},
	} {
		c := New(100)
		for i, l := range strings.Fields(tt.listeners) {
			at, other, _ := strings.Cut(l, "/")
			s := &event.Sighting{Event: event.Event{New: event.StateListen, Socket: event.SocketID(i + 1), Netns: uint32(len(other)), Local: netip.MustParseAddrPort(at)}}
			c.Add(s)
		}
		called := netip.MustParseAddrPort(tt.called)
		var got []string
		for _, s := range c.Answering(called, func(*Socket) bool { return called.Addr().IsLoopback() }) {
			got = append(got, s.Local.String())
		}
		if want := strings.Fields(tt.want); !slices.Equal(got, want) {
			t.Errorf("%s of %s: %v, want %v", tt.called, tt.listeners, got, want)
		}
	}
}
