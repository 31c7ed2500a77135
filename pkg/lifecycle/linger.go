// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"net/netip"

	"github.com/stated-tcp/stated/pkg/event"
)

// timeWaitLen is TCP_TIMEWAIT_LEN in include/net/tcp.h, which cannot be set. A
// mini socket in FIN_WAIT2 lasts no longer (tcp_rcv_state_process, __tcp_close:
// what is above it is spent in the full socket).
const timeWaitLen = 60e9

// lostLen is when what was seen to begin has ended for sure, its end lost.
const lostLen = 2*timeWaitLen + 5e9

// lingerKey names a mini socket as the kernel's hash table does. An address is
// kept as 16 bytes, so that the key has no pointer.
type lingerKey struct {
	local, peer         [16]byte
	localPort, peerPort uint16
	netns               uint32
}

func keyOf(netns uint32, local, peer netip.AddrPort) lingerKey {
	return lingerKey{local.Addr().As16(), peer.Addr().As16(), local.Port(), peer.Port(), netns}
}

// linger is what a connection left behind: little, as there may be many.
type linger struct {
	lingerKey
	socket   event.SocketID
	start    int64 // of state; 0 unknown
	deadline int64 // when it has ended, if nothing says so before
	shown    int64 // by the last snapshot
	first    int64 // Conn.FirstEvent
	cgroup   uint64
	owner    Owner
	uid      uint32
	uidKnown bool
	epoch    uint32
	family   uint16
	state    event.State
	known    Known
	role     Role
	ownID    bool
	missed   uint8
	due      int64 // the second of lingers.due that has it, 0 none
	slot     int   // where it is in that
}

// lingers are the mini sockets of the host, and when to look at each again:
// every linger is in one second of due, until that second has come or it ends.
type lingers struct {
	at      map[lingerKey]*linger
	due     map[int64][]*linger
	second  int64 // looked at so far
	scratch Conn
	free    []*linger
}

// Lingering calls f for each connection that is left in a mini socket, in no
// order. The Conn is valid during the call and knows no more than its addresses,
// its owner and the one state it is in.
func (t *Table) Lingering(f func(*Conn)) {
	for _, l := range t.lingers.at {
		f(t.lingers.conn(l))
	}
}

// conn shows l as a connection.
func (ls *lingers) conn(l *linger) *Conn {
	addr := func(a [16]byte, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), port)
	}
	c := &ls.scratch
	*c = Conn{
		Socket: l.socket, OwnID: l.ownID, Epoch: l.epoch, Netns: l.netns, UID: l.uid, UIDKnown: l.uidKnown, Cgroup: l.cgroup,
		Family: l.family, Protocol: event.ProtoTCP, Local: addr(l.local, l.localPort), Peer: addr(l.peer, l.peerPort),
		Role: l.role, Owner: l.owner, Acceptor: -1, State: l.state, FirstEvent: l.first,
		Spans: append(c.Spans[:0], Span{Start: l.start, State: l.state, Known: l.known}),
	}
	return c
}

func (t *Table) addLinger(l linger) {
	ls := &t.lingers
	if ls.at == nil {
		ls.at, ls.due = make(map[lingerKey]*linger), make(map[int64][]*linger)
		ls.second = t.now / 1e9
	}
	if old := ls.at[l.lingerKey]; old != nil {
		t.endLinger(old, t.now, event.EndUnknown)
	}
	if len(ls.at) >= t.opts.MaxConns {
		t.stats.Evicted++
		return
	}
	p := new(linger)
	if n := len(ls.free); n > 0 {
		p, ls.free = ls.free[n-1], ls.free[:n-1]
	}
	*p = l
	ls.at[l.lingerKey] = p
	ls.plan(p)
	t.stats.Lingering++
}

func (ls *lingers) plan(l *linger) {
	l.due = max(l.deadline/1e9, ls.second) + 1
	l.slot = len(ls.due[l.due])
	ls.due[l.due] = append(ls.due[l.due], l)
}

// forget lets l, which is in at no more, be used again. On a host whose ports come again at once, those
// that have ended would soon be many more than those that are there.
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
	for ls.second < t.now/1e9 {
		if len(ls.due) == 0 {
			ls.second = t.now / 1e9
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
	last := c.Spans[len(c.Spans)-1]
	switch {
	case c.mini != event.StateNone:
		c.Lingers, c.LingersKnown, c.LingerStart = c.mini, Seen, c.miniAt
	case c.Outcome != OutcomeClosed || c.Protocol == event.ProtoMPTCP || c.end.Has(event.FlagPartial),
		last.State != event.StateFinWait2 && last.State != event.StateClosing:
		return
	case t.opts.SeesTimeWait && (t.lossAt == 0 || t.lossAt < last.Start):
		return // inet_twsk_alloc found no room: tcp_max_tw_buckets
	default:
		c.Lingers, c.LingersKnown, c.LingerStart = event.StateFinWait2, Inferred, c.End
		if c.end.Has(event.FlagDone) {
			c.Lingers = event.StateTimeWait
		}
	}
	if !c.Local.IsValid() || !c.Peer.IsValid() {
		return
	}
	l := linger{
		lingerKey: keyOf(c.Netns, c.Local, c.Peer), socket: c.Socket, start: c.LingerStart, first: c.FirstEvent, cgroup: c.Cgroup,
		owner: c.Owner, uid: c.UID, uidKnown: c.UIDKnown, epoch: c.Epoch, family: c.Family, state: c.Lingers, known: c.LingersKnown, role: c.Role, ownID: c.OwnID,
	}
	l.deadline = l.start + lostLen
	if l.known == Inferred {
		l.deadline = l.start + timeWaitLen
		if l.state == event.StateFinWait2 {
			l.deadline += timeWaitLen // and then TIME_WAIT, at most
		}
	}
	t.addLinger(l)
}

// unlinger takes back what was inferred: a RST was sent instead.
func (t *Table) unlinger(c *Conn) {
	c.Lingers, c.LingerStart = event.StateNone, 0
	if l := t.lingers.at[keyOf(c.Netns, c.Local, c.Peer)]; l != nil && l.socket == c.Socket {
		delete(t.lingers.at, l.lingerKey)
		t.lingers.forget(l)
		t.stats.Lingering--
	}
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
		c.mini, c.miniAt = e.New, e.Time
		return
	}
	l := t.lingers.at[keyOf(e.Netns, e.Local, e.Peer)]
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
	old.Spans = append(old.Spans, Span{Start: e.Time, State: e.New, Known: known})
	old.State, old.LastEvent = e.New, e.Time
	t.say(old, e, event.KindState, event.StateFinWait2, e.New)
}

func (t *Table) timeWaitEnd(e *event.Event) {
	l := t.lingers.at[keyOf(e.Netns, e.Local, e.Peer)]
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
	delete(ls.at, l.lingerKey)
	defer ls.forget(l)
	t.stats.Lingering--
	c := ls.conn(l)
	c.State, c.Outcome = event.StateClose, OutcomeClosed
	c.LingerEnd, c.LingerCause = max(at, l.start), cause
	c.End, c.LastEvent = c.LingerEnd, c.LingerEnd
	e := event.Event{Time: c.End, Socket: l.socket, Netns: l.netns, Family: l.family, Protocol: event.ProtoTCP, Local: c.Local, Peer: c.Peer, Cause: cause}
	t.say(c, &e, event.KindState, l.state, event.StateClose)
}

// replaced ends what the addresses of a new connection were left in: the
// kernel gave them out again before the time was up (tcp_twsk_unique for
// connect(), tcp_timewait_state_process for a SYN).
func (t *Table) replaced(c *Conn, e *event.Event) {
	if len(t.lingers.at) == 0 || !c.Local.IsValid() || !c.Peer.IsValid() {
		return
	}
	l := t.lingers.at[keyOf(c.Netns, c.Local, c.Peer)]
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
	key := keyOf(e.Netns, e.Local, e.Peer)
	l := t.lingers.at[key]
	if l == nil {
		t.addLinger(linger{
			lingerKey: key, socket: e.Socket, first: e.Time, family: e.Family, state: e.New, known: AtLeast,
			deadline: e.Time + lostLen, shown: e.Time,
		})
		if l = t.lingers.at[key]; l != nil {
			t.say(t.lingers.conn(l), e, e.Kind, e.New, e.New)
		}
		return
	}
	l.shown, l.missed = e.Time, 0
	if l.state != e.New {
		t.changeLinger(l, e, Inferred)
		l.deadline = e.Time + timeWaitLen
	}
}
