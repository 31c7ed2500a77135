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

// connecting is longer than connect() takes from SYN_SENT to a port, before
// which a socket is not hashed (tcp_v4_connect in net/ipv4/tcp_ipv4.c).
const connecting = 1e9

// snapshot takes over what one shows of a socket, and returns its connection.
func (t *Table) snapshot(e *event.Event) *Conn {
	if e.Flags.Has(event.FlagMini) && e.New != event.StateNewSynRecv {
		t.foundLingering(e)
		return nil
	}
	if e.Socket == 0 {
		t.stats.Ignored++
		return nil
	}
	c := t.conns[e.Socket]
	switch {
	case c == nil && e.New == event.StateNewSynRecv:
		return t.halfOpen(e, AtLeast)
	case c == nil && e.New == event.StateClose:
		t.stats.Ignored++ // a socket that was never connected, or ended before us
		return nil
	case c == nil:
		c = t.open(e)
		c.Spans.Add(foundIn(e))
		return t.found(c, e)
	case c.held && aliveAgain(c, e):
		in := foundIn(e)
		if in.Start != 0 && in.Start <= c.End {
			in.Start = e.Time // that was what ended
		}
		t.stats.Repaired.Moved++
		return t.found(t.bornUntold(c, e, in), e)
	}
	t.touch(c, e.Time)
	if c.End != 0 || e.Flags.Has(event.FlagMini) {
		return c
	}
	c.halfOpen = false // its birth was lost
	if e.Kind == event.KindSnapshot && c.State != e.New {
		t.gap(c)
		t.stats.Repaired.Moved++
		c.State = e.New
		c.Spans.Add(Span{Start: e.Time, State: e.New, Known: Inferred})
	}
	t.learn(c, e)
	return c
}

// aliveAgain reports whether a snapshot shows that the socket of c, which has
// ended, has another connection. A snapshot reads the state after its time and under
// a lock, so one of later than the end was settled shows no state from before it;
// who lists descriptors has no lock.
func aliveAgain(c *Conn, e *event.Event) bool {
	return e.Kind == event.KindSnapshot && e.Flags&(event.FlagMini|event.FlagPartial) == 0 && e.New != event.StateClose &&
		e.Time > c.End+settle
}

// foundIn is the state in which a snapshot found a socket, and since when at least.
func foundIn(e *event.Event) Span {
	began := min(e.Began, e.Time)
	if e.New == event.StateListen {
		began = 0 // no segment makes one
	}
	return Span{Start: began, State: e.New, Known: AtLeast}
}

// found is the first sight of c, in the state of its only span.
func (t *Table) found(c *Conn, e *event.Event) *Conn {
	switch e.New {
	case event.StateListen:
		c.Role = RoleListener
	case event.StateSynSent:
		c.Role = RoleClient
	default:
		if e.Flags&(event.FlagNoSocket|event.FlagDead|event.FlagMini|event.FlagMPTCP) == event.FlagNoSocket {
			c.Role = RoleServer // it waits for accept()
		}
	}
	c.State = e.New
	t.touch(c, e.Time)
	t.learn(c, e)
	t.observer.Transition(c, e)
	return c
}

// sweep ends what a snapshot should have shown and did not. It means that an
// event was lost, or that nothing could have told the end.
func (t *Table) sweep(e *event.Event) {
	if t.snapshots == nil {
		t.snapshots = make(map[uint32]sweep)
	}
	switch e.Kind {
	case event.KindSnapshotBegin:
		// Of a namespace with one socket it is told again behind that socket: the
		// kernel counts objects when it has found the next one (bpf_seq_read).
		if _, again := t.snapshots[e.Netns]; !again {
			t.snapshots[e.Netns] = sweep{begin: e.Time, lost: t.stats.Lost}
		}
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
	t.sweepHeld()
	t.sweepLingers()
	clear(t.snapshots)
	t.swept, t.holders = t.now, 0
}

// sweepHeld forgets what ended with its descriptor open and is in no list of
// descriptors any more: that it was closed then may be among the events that were
// lost. Of one that waits for accept(), or is being passed on, no list tells.
func (t *Table) sweepHeld() {
	if t.holders == 0 || t.swept == 0 || t.lossAt >= t.swept {
		return // no list of descriptors, or not a whole one
	}
	for c := t.quiet.next; c != &t.quiet && c.LastEvent < t.swept; {
		next := c.next
		if c.finished && c.HeldClosed() && t.lossAt >= c.End {
			if c.missed++; c.missed < missedEnough {
				t.doubtful = true
			} else {
				t.stats.Repaired.Gone++
				t.remove(c)
			}
		}
		c = next
	}
}

func (t *Table) sweepConn(c *Conn) {
	s := t.snapshots[c.Netns]
	if !s.done || c.LastEvent >= s.begin || c.End != 0 || c.Protocol != event.ProtoTCP {
		return
	}
	if c.Local.Port() == 0 && c.LastEvent > s.begin-connecting || c.Netns == 0 && orphaned(c.State) {
		return
	}
	if c.missed++; c.missed < missedEnough {
		t.doubtful = true
		return
	}
	gone := event.Event{Time: s.begin, Netns: c.Netns, Socket: c.Socket, Protocol: c.Protocol, Family: c.Family, Local: c.Local.AddrPort(), Peer: c.Peer.AddrPort()}
	if c.halfOpen {
		t.stats.Repaired.Gone++
		c.Outcome, c.Why = OutcomeHandshakeFailed, WhyRequestNotShown
		t.endRequest(c, &gone)
		return
	}
	c.Outcome, c.Why = OutcomeUnknown, WhyNotShown
	t.endUntold(c, &gone)
}

// orphaned says whether a socket may be in that state without a process: it may
// then be in a namespace that nobody has a way into, and that no snapshot shows.
func orphaned(s event.State) bool {
	return s == event.StateFinWait1 || s == event.StateFinWait2 || s == event.StateLastAck || s == event.StateClosing
}

// endUntold ends c, whose outcome is set, as a snapshot showed at e.
func (t *Table) endUntold(c *Conn, e *event.Event) {
	t.stats.Repaired.Gone++
	t.gap(c)
	c.End = max(e.Time, c.Spans.Last().Start)
	state := c.State
	c.State = event.StateClose
	t.say(c, e, event.KindState, state, event.StateClose)
	t.finish(c)
	t.remove(c)
}

// sweepLingers casts no doubt: mini sockets whose end is not told go all the
// time, and the next snapshot in its turn is soon enough.
func (t *Table) sweepLingers() {
	var gone []*linger
	for l := range t.lingers.at.all() {
		s, shown := t.snapshots[l.Netns], l.shown
		l.shown = false
		if !s.done || shown || max(l.start, l.first) >= s.begin {
			continue
		}
		if l.missed++; l.missed >= missedEnough {
			gone = append(gone, l)
		}
	}
	// a map has no order, but a replay must
	slices.SortFunc(gone, func(a, b *linger) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.first, b.first), cmp.Compare(a.socket, b.socket),
			cmp.Compare(a.local.port, b.local.port), cmp.Compare(a.peer.port, b.peer.port))
	})
	for _, l := range gone {
		t.stats.Repaired.Linger++
		t.endLinger(l, t.snapshots[l.Netns].begin, event.EndUnknown)
	}
}

// Doubtful reports whether a snapshot missed something that one more would
// decide.
func (t *Table) Doubtful() bool { return t.doubtful }
