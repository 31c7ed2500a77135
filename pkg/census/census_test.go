// SPDX-License-Identifier: Apache-2.0

package census

import (
	"net/netip"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestRestore: what events told of a connection is given back to a socket that has
// ended, but not to one that was disconnected, which is nobody's leak.
func TestRestore(t *testing.T) {
	local, peer := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:443")
	conn := &lifecycle.Conn{Shared: &lifecycle.Shared{Netns: 1}, Local: lifecycle.EndpointOf(local), Peer: lifecycle.EndpointOf(peer),
		End: 90e9, State: event.StateClose, Spans: lifecycle.PathOf(lifecycle.Span{Start: 80e9, State: event.StateEstablished})}
	for name, tt := range map[string]struct {
		local, peer string // as the kernel has them
		want        netip.AddrPort
		hidden      bool
	}{
		"reset":        {"10.0.0.1:0", "10.0.0.2:443", peer, true},
		"disconnected": {"0.0.0.0:0", "10.0.0.2:0", netip.MustParseAddrPort("10.0.0.2:0"), false},
	} {
		s := socket(event.StateClose, tt.local, tt.peer)
		s.Socket = 5
		c := New(100e9)
		c.Add(&s)
		c.Complete(func(event.SocketID) *lifecycle.Conn { return conn })
		got := c.Sockets[0]
		if got.Hidden() != tt.hidden || got.Peer != tt.want || tt.hidden != (got.Local == local) {
			t.Errorf("%s: %s %s, hidden %v", name, got.Local, got.Peer, got.Hidden())
		}
	}
}
