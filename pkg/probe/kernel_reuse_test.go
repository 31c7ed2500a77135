// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"cmp"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestReconnect: a socket that had a connection, and has another one, is told with
// the port of each, and as one socket.
func TestReconnect(t *testing.T) {
	for _, tier := range tiers {
		t.Run(tier.name, func(t *testing.T) {
			p := openTier(t, tier.opts)
			var want, got []string
			netns := inSpace(t, func(s *space) {
				l, at := s.listen(local4(), 8, 0)
				c := s.socket(unix.AF_INET, 0)
				for range 2 {
					check(unix.Connect(c, at))
					want = append(want, addrOf(must(unix.Getsockname(c))).String())
					s.close(s.accept(l))
					readEOF(c)
					disconnect(c)
				}
				s.close(l)
			})
			if p.Partial() {
				netns = 0 // the classic tracepoint does not tell it
			}
			var first event.SocketID
			for _, c := range collect(t, p, netns, 5).conns {
				if c.Role != lifecycle.RoleClient {
					continue
				}
				got = append(got, c.Local.String())
				if first = cmp.Or(first, c.Socket); c.Socket != first && !p.Partial() {
					t.Errorf("two sockets: %x, %x", first, c.Socket)
				}
			}
			compare(t, "ports", got, want)
		})
	}
}
