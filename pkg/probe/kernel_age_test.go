// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/kerneltest/peer"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestAgesOfTheUnanswered: while the peer is silent, what we send once more makes a
// connection no younger: neither one that waits for an answer to its SYN, nor one whose
// data nobody acknowledges.
func TestAgesOfTheUnanswered(t *testing.T) {
	in := openInspector(t)
	p := openTier(t, Options{})
	inSpace(t, func(sp *space) {
		v4, v6 := network(1)
		dev, err := peer.Open(v4, v6)
		check(err)
		defer dev.Close()
		s := &script{space: sp, dev: dev, kernel4: v4.Addr(), peer4: v4.Addr().Next()}
		begun, _ := Now()
		calling, _ := s.connecting()
		called, _ := Now()
		talking, _ := s.connected()
		answered, _ := Now()
		must(unix.Write(talking, []byte("hello?")))
		until("retransmissions", func() bool {
			return must(unix.GetsockoptTCPInfo(calling, unix.IPPROTO_TCP, unix.TCP_INFO)).Retransmits > 0 &&
				must(unix.GetsockoptTCPInfo(talking, unix.IPPROTO_TCP, unix.TCP_INFO)).Retransmits > 1
		})
		const tick = 20e6 // of the slowest clock, and one more
		seen := 0
		check(in.Sockets(event.AllStates, func(o *event.Sighting) {
			latest := map[event.State]int64{event.StateSynSent: called, event.StateEstablished: answered}[o.New]
			if o.Netns != sp.inode || o.Kind != event.KindSnapshot || latest == 0 {
				return
			}
			seen++
			if o.Began < begun-tick || o.Began > latest+tick {
				t.Errorf("%s: begun %d ms after the first call, want %d at most", o.New, (o.Began-begun)/1e6, (latest-begun)/1e6)
			}
			if o.LastSegment < latest {
				t.Errorf("%s: nothing was sent once more", o.New)
			}
		}))
		if seen != 2 {
			t.Errorf("%d sockets seen, want 2", seen)
		}
		table := tableFor(p, &ender{})
		looked(t, p, table, sp.inode)
		known := 0
		table.All(func(c *lifecycle.Conn) {
			if c.Netns != sp.inode || c.State != event.StateSynSent {
				return
			}
			known++
			if at := c.Spans.Last().Start; at < begun-tick || at > called+tick {
				t.Errorf("the table has it begun %d ms after the first call, want %d at most", (at-begun)/1e6, (called-begun)/1e6)
			}
		})
		if known != 1 {
			t.Errorf("the table has %d of them", known)
		}
	})
}
