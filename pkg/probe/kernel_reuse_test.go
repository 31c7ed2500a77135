// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestPortOfTheNext: a socket that had a connection, and has another one, is told
// with the port of each.
func TestPortOfTheNext(t *testing.T) {
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
			for _, c := range collect(t, p, netns, 5).conns {
				if c.Role == lifecycle.RoleClient {
					got = append(got, c.Local.String())
				}
			}
			compare(t, "ports", got, want)
		})
	}
}
