// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "github.com/stated-tcp/stated/pkg/event"

// timeWaitLen is TCP_TIMEWAIT_LEN in include/net/tcp.h, which cannot be set. A
// mini socket in FIN_WAIT2 lasts no longer (tcp_rcv_state_process, __tcp_close:
// what is above it is spent in the full socket).
const timeWaitLen = 60e9

// lostLen is when what was seen to begin has ended for sure, its end lost.
const lostLen = 2*timeWaitLen + 5e9

// linger is what a connection left behind: little, as there may be many.
type linger struct {
	*Shared
	socket      event.SocketID
	start       int64 // of state; 0 unknown
	deadline    int64 // when it has ended, if nothing says so before
	first       int64 // Conn.FirstEvent
	local, peer Endpoint
	due         uint32 // the second of lingers.due that has it, 0 none
	slot        uint32 // where it is in that
	state       event.State
	known       Known
	role        Role
	ownID       bool
	shown       bool  // by a snapshot that is not done yet
	missed      uint8 // snapshots in a row that did not show it
}

func (l *linger) key() lingerKey { return lingerKey{l.local, l.peer, l.Netns} }

// lingers are the mini sockets of the host, and when to look at each again:
// every linger is in one second of due, until that second has come or it ends.
type lingers struct {
	at      index
	due     map[uint32][]*linger
	second  uint32 // looked at so far
	scratch Conn
	free    []*linger
}

// of finds what an event of a mini socket is about, nil if it is not there. Two VRFs,
// or SO_BINDTODEVICE, may have the same addresses in one namespace: it was of the other.
func (ls *lingers) of(e *event.Event) *linger {
	l := ls.at.get(keyOf(e))
	if l != nil && l.another(e) {
		return nil
	}
	return l
}

// another reports whether an event is of another mini socket, with the same addresses.
func (l *linger) another(e *event.Event) bool {
	return l.socket != 0 && e.Socket != 0 && l.socket != e.Socket && !l.ownID
}

// Lingering calls f for each connection that is left in a mini socket, in no
// order. The Conn is valid during the call and knows no more than its addresses,
// its owner and the one state it is in.
func (t *Table) Lingering(f func(*Conn)) {
	for l := range t.lingers.at.all() {
		f(t.lingers.conn(l))
	}
}

// conn shows l as a connection.
func (ls *lingers) conn(l *linger) *Conn {
	c := &ls.scratch
	*c = Conn{
		Shared: l.Shared, Socket: l.socket, OwnID: l.ownID, Local: l.local, Peer: l.peer, Role: l.role,
		State: l.state, FirstEvent: l.first, leftBehind: true, Spans: PathOf(Span{Start: l.start, State: l.state, Known: l.known}),
	}
	return c
}

func (t *Table) addLinger(l linger) {
	ls := &t.lingers
	if ls.due == nil {
		ls.due = make(map[uint32][]*linger)
		ls.second = uint32(t.now / 1e9)
	}
	switch old := ls.at.get(l.key()); {
	case old == nil:
	case old.socket != 0 && old.socket == l.socket:
		t.dropLinger(old) // a snapshot showed it before the end of its connection was told
	default:
		t.endLinger(old, t.now, event.EndUnknown)
	}
	if t.stats.Lingering >= t.opts.MaxConns {
		t.stats.Unfollowed++
		return
	}
	p := new(linger)
	if n := len(ls.free); n > 0 {
		p, ls.free = ls.free[n-1], ls.free[:n-1]
	}
	*p = l
	ls.at.put(p)
	ls.plan(p)
	t.stats.Lingering++
}

func (ls *lingers) plan(l *linger) {
	l.due = max(uint32(l.deadline/1e9), ls.second) + 1
	l.slot = uint32(len(ls.due[l.due]))
	ls.due[l.due] = append(ls.due[l.due], l)
}

// forget lets l, which is in at no more, be used again. On a host whose ports
// come again at once, those that have ended would soon be many more than those
// that are there.
func (ls *lingers) forget(l *linger) {
	if list := ls.due[l.due]; l.due != 0 {
		last := list[len(list)-1]
		list[l.slot], last.slot = last, l.slot
		list[len(list)-1] = nil
		ls.due[l.due] = list[:len(list)-1]
		if len(list) == 1 {
			delete(ls.due, l.due)
		}
	}
	ls.free = append(ls.free, l)
}

// expire ends what has lasted its time.
func (t *Table) expire() {
	ls := &t.lingers
	for now := uint32(t.now / 1e9); ls.second < now; {
		if len(ls.due) == 0 {
			ls.second = now
			return
		}
		ls.second++
		list := ls.due[ls.second]
		delete(ls.due, ls.second)
		for _, l := range list {
			l.due = 0
			switch {
			case l.deadline > t.now:
				ls.plan(l)
			case l.known == Inferred && l.state == event.StateTimeWait:
				t.endLinger(l, l.deadline, event.EndTimer)
			default:
				t.endLinger(l, l.deadline, event.EndUnknown) // gone by now at the latest
			}
		}
	}
}

// linger keeps what a connection that has just ended leaves behind: seen, or
// inferred from its last state. SOCK_DONE tells TIME_WAIT from FIN_WAIT2, as
// tcp_fin sets it first.
func (t *Table) linger(c *Conn, e *event.Event) {
	last := c.Spans.Last()
	switch {
	case c.mini != event.StateNone:
		c.Lingers, c.LingersKnown = c.mini, Seen
	case c.Outcome != OutcomeClosed || c.Protocol == event.ProtoMPTCP || c.end.Has(event.FlagPartial),
		last.State != event.StateFinWait2 && last.State != event.StateClosing:
		return
	case t.opts.SeesTimeWait && (t.lossAt == 0 || t.lossAt < last.Start) && !c.justFound(e):
		if e.Flags.Has(event.FlagTimeWaitFull) {
			t.stats.Crowded++
		}
		return // inet_twsk_alloc found no room
	case e.Flags.Has(event.FlagTimeWaitFull):
		t.stats.Crowded++
		c.Crowded = true
		return
	default:
		c.Lingers, c.LingersKnown, c.LingerStart = event.StateFinWait2, Inferred, c.End
		if c.end.Has(event.FlagDone) {
			c.Lingers = event.StateTimeWait
		}
	}
	if !c.Local.IsValid() || !c.Peer.IsValid() {
		return
	}
	l := lingerOf(c)
	l.deadline = l.start + lostLen
	if l.known == Inferred {
		l.deadline = l.start + timeWaitLen
		if l.state == event.StateFinWait2 {
			l.deadline += timeWaitLen // and then TIME_WAIT, at most
		}
	}
	t.addLinger(l)
}

// justFound reports whether c was first seen in the state in which it ended, by the
// event of its end or, right before that, in a list of descriptors, which has no lock:
// KindTimeWait, which comes before both, was then ignored.
func (c *Conn) justFound(e *event.Event) bool {
	return c.Spans.Len() == 1 && c.Spans.Last().Known == AtLeast && c.FirstEvent > e.Time-settle
}

// lingerOf is what c left behind, by c.Lingers and its neighbours.
func lingerOf(c *Conn) linger {
	return linger{
		Shared: c.Shared, socket: c.Socket, start: c.LingerStart, first: c.FirstEvent, local: c.Local, peer: c.Peer,
		state: c.Lingers, known: c.LingersKnown, role: c.Role, ownID: c.OwnID,
	}
}

// unlinger takes back what was inferred: a RST was sent instead.
func (t *Table) unlinger(c *Conn) {
	c.Lingers, c.LingerStart = event.StateNone, 0
	if l := t.lingers.at.get(lingerKey{c.Local, c.Peer, c.Netns}); l != nil && l.socket == c.Socket {
		t.dropLinger(l)
	}
}

// dropLinger forgets l, and tells nobody.
func (t *Table) dropLinger(l *linger) {
	t.lingers.at.delete(l)
	t.lingers.forget(l)
	t.stats.Lingering--
}

// timeWait is told before the connection's -> CLOSE (tcp_time_wait), and again
// when the timer is set anew.
func (t *Table) timeWait(e *event.Event) {
	c := t.conns[e.Socket]
	if e.Old == event.StateNone {
		if c == nil || c.End != 0 {
			t.stats.Ignored++
			return
		}
		t.touch(c, e.Time)
		c.mini, c.LingerStart = e.New, e.Time
		return
	}
	l := t.lingers.of(e)
	if l == nil {
		t.stats.Ignored++
		return
	}
	l.deadline = e.Time + lostLen
	if l.state == e.New {
		return // the peer's FIN came again
	}
	if c != nil && c.End != 0 && !c.finished {
		c.Lingers, c.LingersKnown, c.LingerStart = e.New, Seen, e.Time
	}
	t.changeLinger(l, e, Seen)
}

// changeLinger is FIN_WAIT2 -> TIME_WAIT.
func (t *Table) changeLinger(l *linger, e *event.Event, known Known) {
	old := t.lingers.conn(l)
	l.state, l.start, l.known = e.New, e.Time, known
	old.Spans.Add(Span{Start: e.Time, State: e.New, Known: known})
	old.State, old.LastEvent = e.New, e.Time
	t.say(old, e, event.KindState, event.StateFinWait2, e.New)
}

func (t *Table) timeWaitEnd(e *event.Event) {
	l := t.lingers.of(e)
	if l == nil {
		t.stats.Ignored++
		return
	}
	cause := e.Cause
	if cause == event.EndTimer && l.state == event.StateTimeWait && l.start != 0 && l.known == Seen && e.Time-l.start < timeWaitLen-1e9 {
		cause = event.EndUnknown // earlier than any timer: the hook that tells early ends is missing
	}
	if c := t.conns[e.Socket]; c != nil && c.End != 0 && !c.finished {
		c.LingerEnd, c.LingerCause = e.Time, cause
	}
	t.endLinger(l, e.Time, cause)
}

// endLinger tells that a mini socket is gone. Where nobody told us, the end is
// inferred.
func (t *Table) endLinger(l *linger, at int64, cause event.EndCause) {
	ls := &t.lingers
	ls.at.delete(l)
	defer ls.forget(l)
	t.stats.Lingering--
	c := ls.conn(l)
	c.State, c.Outcome = event.StateClose, OutcomeClosed
	c.LingerEnd, c.LingerCause = max(at, l.start), cause
	c.End, c.LastEvent = c.LingerEnd, c.LingerEnd
	e := event.Event{Time: c.End, Socket: l.socket, Netns: l.Netns, Family: l.Family, Protocol: event.ProtoTCP,
		Local: c.Local.AddrPort(), Peer: c.Peer.AddrPort(), Cause: cause}
	t.say(c, &e, event.KindState, l.state, event.StateClose)
}

// replaced ends what the addresses of a new connection were left in: the
// kernel gave them out again before the time was up (tcp_twsk_unique for
// connect(), tcp_timewait_state_process for a SYN).
func (t *Table) replaced(c *Conn, e *event.Event) {
	if t.stats.Lingering == 0 || !c.Local.IsValid() || !c.Peer.IsValid() {
		return
	}
	l := t.lingers.at.get(lingerKey{c.Local, c.Peer, c.Netns})
	if l == nil {
		return
	}
	cause := event.EndSyn
	if c.Role == RoleClient {
		cause = event.EndReused
	}
	t.endLinger(l, e.Time, cause)
}

// foundLingering is a mini socket that a snapshot shows.
func (t *Table) foundLingering(e *event.Event) {
	if !e.Local.IsValid() || !e.Peer.IsValid() {
		t.stats.Ignored++
		return
	}
	key := keyOf(e)
	l := t.lingers.at.get(key)
	if l != nil && l.another(e) {
		t.endLinger(l, e.Time, event.EndUnknown) // the addresses were used again, and left again
		l = nil
	}
	if l == nil {
		found := linger{
			Shared: t.shares.of(&Shared{Netns: e.Netns, Family: e.Family, Protocol: event.ProtoTCP}),
			socket: e.Socket, first: e.Time, local: key.local, peer: key.peer, state: e.New, known: AtLeast,
		}
		if c := t.conns[e.Socket]; c != nil && c.End == 0 && c.Protocol == event.ProtoTCP {
			if !t.leavesUntold(c, e) {
				return
			}
			found = t.leftUntold(c, e)
		}
		found.deadline, found.shown = e.Time+lostLen, true
		t.addLinger(found)
		if l = t.lingers.at.get(key); l != nil {
			t.say(t.lingers.conn(l), e, e.Kind, e.New, e.New)
		}
		return
	}
	l.shown, l.missed = true, 0
	if l.state != e.New {
		t.changeLinger(l, e, Inferred)
		l.deadline = e.Time + timeWaitLen
	}
}

// leavesUntold decides whether the events of c's end are missing, when a snapshot
// shows its mini socket. That is hashed before -> CLOSE is told (tcp_time_wait in
// net/ipv4/tcp_minisocks.c), so the first snapshot to show it may have come in
// between: the next one decides, in its turn.
func (t *Table) leavesUntold(c *Conn, e *event.Event) bool {
	if c.mini != event.StateNone {
		return false // KindTimeWait was told, and the rest comes
	}
	if c.leaving {
		return true
	}
	t.touch(c, e.Time)
	c.leaving = true
	return false
}

// leftUntold ends c, of which a snapshot shows the mini socket: tcp_time_wait
// gives it the socket's cookie and makes it of a socket that both ends closed or
// will close well, which then ends. The events of that were not told.
func (t *Table) leftUntold(c *Conn, e *event.Event) linger {
	c.Local, c.Peer = EndpointOf(e.Local), EndpointOf(e.Peer)
	c.Outcome, c.Lingers, c.LingersKnown, c.LingerStart = OutcomeClosed, e.New, AtLeast, 0
	l := lingerOf(c)
	t.endUntold(c, e)
	return l
}
