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

// TestElsewhere: who waits on a socket does not hold it once more.
func TestElsewhere(t *testing.T) {
	for name, tt := range map[string]struct {
		references uint32
		waited     bool
		fds        []int32
		want       int
	}{
		"held":               {1, false, []int32{5}, 0},
		"polled":             {2, true, []int32{5}, 0},
		"watched by epoll":   {1, true, []int32{5}, 0},
		"polled, and in SCM": {3, true, []int32{5}, 1},
		"duplicated":         {3, true, []int32{5, 6}, 0},
		"in SCM":             {2, false, []int32{5}, 1},
		"in io_uring only":   {1, true, nil, 1},
	} {
		s := Socket{Sighting: event.Sighting{References: tt.references, Waited: tt.waited}}
		if tt.fds != nil {
			s.Holders = []Holder{{FDs: tt.fds}}
		}
		if got := s.Elsewhere(); got != tt.want {
			t.Errorf("%s: %d", name, got)
		}
	}
}
