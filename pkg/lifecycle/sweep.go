// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"slices"

	"github.com/stated-tcp/stated/pkg/event"
)

// sweep is what a snapshot of one network namespace has got to.
type sweep struct {
	begin int64
	lost  uint64 // Stats.Lost then
	done  bool   // all of its sockets were shown
}

// missedEnough: the kernel's iterator may pass over a socket when its hash
// table changes below it, but not twice.
const missedEnough = 2

// sweep ends what a snapshot should have shown and did not. It means that an
// event was lost, or that nothing could have told the end.
func (t *Table) sweep(e *event.Event) {
	if t.snapshots == nil {
		t.snapshots = make(map[uint32]sweep)
	}
	switch e.Kind {
	case event.KindSnapshotBegin:
		t.snapshots[e.Netns] = sweep{begin: e.Time, lost: t.stats.Lost}
		return
	case event.KindSnapshotDone:
		s, ok := t.snapshots[e.Netns]
		s.done = ok && s.lost == t.stats.Lost
		t.snapshots[e.Netns] = s
		return
	}
	t.doubtful = false
	last := int64(0)
	for _, s := range t.snapshots {
		last = max(last, s.begin)
	}
	for c := t.quiet.next; c != &t.quiet && c.LastEvent < last; {
		next := c.next
		t.sweepConn(c)
		c = next
	}
	t.sweepLingers()
	clear(t.snapshots)
}

func (t *Table) sweepConn(c *Conn) {
	s := t.snapshots[c.Netns]
	// not hashed before it has a port: tcp_v4_connect
	if !s.done || c.LastEvent >= s.begin || c.End != 0 || c.Protocol != event.ProtoTCP || c.Local.Port() == 0 {
		return
	}
	if c.missed++; c.missed < missedEnough {
		t.doubtful = true
		return
	}
	t.stats.Repaired++
	gone := event.Event{Time: s.begin, Netns: c.Netns, Socket: c.Socket, Protocol: c.Protocol, Family: c.Family, Local: c.Local, Peer: c.Peer}
	if c.halfOpen {
		c.Outcome, c.Why = OutcomeHandshakeFailed, "a snapshot found it gone; what ended it was not seen"
		t.endRequest(c, &gone)
		return
	}
	t.gap(c)
	c.Outcome, c.Why = OutcomeUnknown, "a snapshot found it gone: its end was not told"
	c.End = max(gone.Time, c.Spans[len(c.Spans)-1].Start)
	state := c.State
	c.State = event.StateClose
	t.say(c, &gone, event.KindState, state, event.StateClose)
	t.finish(c)
	t.remove(c)
}

func (t *Table) sweepLingers() {
	var gone []*linger
	for _, l := range t.lingers.at {
		s := t.snapshots[l.netns]
		if !s.done || max(l.start, l.shown, l.first) >= s.begin {
			continue
		}
		if l.missed++; l.missed >= missedEnough {
			gone = append(gone, l)
		} else {
			t.doubtful = true
		}
	}
	// a map has no order, but a replay must
	slices.SortFunc(gone, func(a, b *linger) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.first, b.first), cmp.Compare(a.socket, b.socket),
			cmp.Compare(a.localPort, b.localPort), cmp.Compare(a.peerPort, b.peerPort))
	})
	for _, l := range gone {
		t.stats.Repaired++
		t.endLinger(l, t.snapshots[l.netns].begin, event.EndUnknown)
	}
}

// Doubtful reports whether a snapshot missed something that one more would
// decide.
func (t *Table) Doubtful() bool { return t.doubtful }
