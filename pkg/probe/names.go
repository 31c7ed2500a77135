// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"iter"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/stated-tcp/stated/pkg/event"
)

// names joins what sock_diag shows with the events of the classic tracepoint. An
// event there has a number of our own, which the kernel side gives an address, and
// the tuple; sock_diag has the cookie, the tuple and the network namespace. What
// they share is the tuple, so it joins them:
//
//   - An event with a number that is new, and no birth, is of the one socket that
//     was shown with its tuple before: the events go on under its cookie.
//   - A socket that is shown with a cookie that is new is the one of which events
//     told with its tuple: it is told under the number that those had.
//   - Where there are several it is none of them, as addresses may be the same in
//     two network namespaces, and are in listeners with SO_REUSEPORT. What began
//     before our eyes then goes on under its number, and is known to be there;
//     what was shown is not told, as it may be one of those. Only the first look
//     at a namespace may take one for another, of which it shows but one.
//
// sock_diag does not stand in the ring, so a sighting may be older than events.
// Three rules make up for that:
//
//   - It is told only when all events have been told that may have happened before
//     it was read (Probe.tell), so it is never newer than the table.
//   - A socket that changed its state, or ended, after the list was asked for keeps
//     what the event said, if the sighting differs.
//   - Where no event came since, a sighting that differs is right: an event is
//     missing.
//
// Half-open connections are not told: what becomes of them has another number, and
// no tuple at first (inet_csk_clone_lock before 6.18).
//
// It belongs to the goroutine that reads, but for of and look.
type names struct {
	mu       sync.Mutex // guards byCookie against of
	byCookie map[event.SocketID]*socket
	byOwn    map[event.SocketID]*socket
	byTuple  map[tuple]*socket // the first of its ring
	// ended has what was closed while somebody looks. Forgotten when nobody does;
	// in a look that takes too long the rest is left out.
	ended   map[tuple]closure
	looking atomic.Int32
	listed  map[uint32]int64 // when the last look began that showed all of a namespace
	limit   int              // sockets in a map, should their ends not be told
}

type tuple struct{ local, peer netip.AddrPort }

// socket is a TCP socket that is there, as far as we know.
type socket struct {
	id     event.SocketID // by which it is told
	own    event.SocketID // number of the kernel side, 0 no event yet
	cookie event.SocketID // 0 never shown
	tuple
	state   event.State
	netns   uint32 // 0 never shown
	family  uint16
	born    int64 // when an event told its birth, 0 none did
	changed int64 // time of its last event, 0 none
	shown   int64 // when it was last looked at
	missed  uint8 // looks in a row that did not show it
	// The ring of those with the same tuple, nil in none: first those without a
	// cookie, and of these first what was shown last.
	prev, next *socket
}

type closure struct{ at, born int64 }

// slack is how long before a list was asked for an event may have been stamped
// whose change of state the list does not show yet: the tracepoint stands before
// the store, and a task may be preempted in between. Nanoseconds.
const slack = 50e6

// maxNames is more than connections are kept, unless told otherwise; of 300 bytes each.
const maxNames = 1 << 20

func newNames() *names {
	return &names{byCookie: make(map[event.SocketID]*socket), byOwn: make(map[event.SocketID]*socket),
		byTuple: make(map[tuple]*socket), ended: make(map[tuple]closure),
		listed: make(map[uint32]int64), limit: maxNames}
}

// of is the number under which a socket is told.
func (n *names) of(cookie event.SocketID, flags event.Flags) (event.SocketID, event.Flags) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.byCookie[cookie]; s != nil && s.id != cookie {
		return s.id, flags | event.FlagOwnID
	}
	return cookie, flags
}

// event takes over what an event tells, and gives it the number under which its
// socket is known.
func (n *names) event(e *event.Event) {
	if e.Kind != event.KindState || e.Protocol != event.ProtoTCP || e.Socket == 0 {
		return // sock_diag shows the subflows of an MPTCP connection only
	}
	s := n.byOwn[e.Socket]
	if s == nil {
		if isBirth(e) {
			s = &socket{id: e.Socket, born: e.Time}
		} else if s = n.before(e); s == nil {
			s = &socket{id: e.Socket}
		}
		s.own = e.Socket
		n.evict(n.byOwn)
		n.byOwn[e.Socket] = s
	}
	// the local port of a client comes late, the peer of a server
	if e.New == event.StateListen || e.Peer.Port() != 0 && (e.Local.Port() != 0 || s.local.Port() == 0) {
		n.move(s, tuple{e.Local, e.Peer})
	}
	s.state, s.changed, s.family = e.New, e.Time, e.Family
	if s.id != e.Socket {
		e.Socket = s.id
		e.Flags &^= event.FlagOwnID
	}
	e.Netns = s.netns
	if e.New == event.StateClose {
		n.forget(s)
		if n.looking.Load() > 0 && len(n.ended) < n.limit {
			n.ended[s.tuple] = closure{e.Time, s.born}
		}
	}
}

func isBirth(e *event.Event) bool {
	if e.Old == event.StateListen {
		return e.New != event.StateClose && e.New != event.StateListen
	}
	return e.Old == event.StateClose && e.New != event.StateClose
}

// before finds the socket of an event that was there before events told of it.
func (n *names) before(e *event.Event) *socket {
	var found, fitting *socket
	several := false
	for s := range n.with(tuple{e.Local, e.Peer}) {
		switch {
		case s.own != 0:
		case s.state != e.Old:
			several = several || found != nil
			found = s
		case fitting != nil:
			return nil
		default:
			fitting = s
		}
	}
	switch {
	case fitting != nil:
		return fitting
	case several:
		return nil
	}
	return found // an event is missing
}

// sighting makes of a socket that sock_diag showed the events that tell of it. It
// was asked for at the time begun, nanoseconds since boot, in a look that began at
// the time look.
func (n *names) sighting(shown *event.Sighting, begun, look int64) []event.Event {
	e := shown.Event
	begun -= slack
	if e.Flags.Has(event.FlagMini) {
		if e.New == event.StateSynRecv || n.reused(&e, begun) {
			return nil
		}
		if s := n.byCookie[e.Socket]; s != nil {
			n.forget(s) // its end was not told; the table ends it, or will
		}
		return []event.Event{e}
	}
	s := n.byCookie[e.Socket]
	if s == nil {
		first := n.unnamed(tuple{e.Local, e.Peer})
		end, ended := n.ended[tuple{e.Local, e.Peer}]
		switch {
		case first != nil && first.next != first && first.next.cookie == 0:
			return n.stillThere(first.tuple, e.Time, look)
		case first != nil:
			s = first
		case ended && end.at >= begun:
			return nil
		default:
			s = &socket{id: e.Socket, state: e.New}
		}
		n.leave(s) // has another place in its ring now
		s.cookie = e.Socket
		n.join(s)
		n.evict(n.byCookie)
		n.mu.Lock()
		n.byCookie[e.Socket] = s
		n.mu.Unlock()
	}
	s.shown, s.missed, s.netns, s.family = e.Time, 0, e.Netns, e.Family
	if s.state != e.New && s.changed >= begun {
		return nil
	}
	s.state, e.Began = e.New, shown.LastSegment
	n.move(s, tuple{e.Local, e.Peer})
	e.Socket = s.id
	if s.id == s.own {
		e.Flags |= event.FlagOwnID
	}
	return []event.Event{e}
}

// unnamed is the first socket with that tuple of which only events told, and the
// next one in its ring is another if there are several. The local port is chosen
// after the first event (inet_hash_connect).
func (n *names) unnamed(t tuple) *socket {
	for _, t := range []tuple{t, {netip.AddrPortFrom(t.local.Addr(), 0), t.peer}} {
		if s := n.byTuple[t]; s != nil && s.cookie == 0 {
			return s
		}
	}
	return nil
}

// stillThere says of the unnamed sockets with that tuple no more than that they
// are, once in a look: of n sockets that are alike n are shown.
func (n *names) stillThere(t tuple, at, look int64) (events []event.Event) {
	for s := range n.with(t) {
		if s.cookie != 0 || s.shown >= look {
			break // as all that follow
		}
		s.shown, s.missed = at, 0
		events = append(events, event.Event{
			Kind: event.KindSnapshot, Old: s.state, New: s.state, Flags: event.FlagOwnID | event.FlagPartial, Time: at, Socket: s.id,
			Protocol: event.ProtoTCP, Family: s.family, Local: s.local, Peer: s.peer, FD: -1,
		})
	}
	return events
}

// reused reports whether the addresses of a mini socket were given to a new
// connection since.
func (n *names) reused(e *event.Event, since int64) bool {
	t := tuple{e.Local, e.Peer}
	if n.ended[t].born >= since {
		return true
	}
	for s := range n.with(t) {
		if s.born >= since {
			return true
		}
	}
	return false
}

// look begins one, in the goroutine that looks.
func (n *names) look() { n.looking.Add(1) }

// showed says that all sockets of a network namespace have been shown in the look
// that began then.
func (n *names) showed(netns uint32, look int64) {
	n.listed[netns] = max(n.listed[netns], look)
}

// looked ends the look that began then, complete if it listed all namespaces that
// it found. What two in a row did not show is gone, as the table has it
// (lifecycle.missedEnough): its end was not told. Of what was never shown it is
// not known in which namespace it is; in one that only a descriptor keeps which we
// may not see, it is forgotten too early, and its events go on under its number.
func (n *names) looked(look int64, complete bool) {
	if n.looking.Add(-1) == 0 {
		clear(n.ended)
	}
	for _, of := range []map[event.SocketID]*socket{n.byOwn, n.byCookie} {
		for id, s := range of {
			if s.shown >= look || s.changed >= look-slack || id != s.id || !complete && (s.netns == 0 || n.listed[s.netns] < look) {
				continue
			}
			if s.missed++; s.missed > 1 {
				n.forget(s)
			}
		}
	}
	maps.DeleteFunc(n.listed, func(_ uint32, at int64) bool { return at < look })
}

// evict makes room for one more in a map of sockets: of some it forgets the one of
// which nothing was heard for longest.
func (n *names) evict(of map[event.SocketID]*socket) {
	if len(of) < n.limit {
		return
	}
	var oldest *socket
	some := 0
	for _, s := range of {
		if oldest == nil || max(s.shown, s.changed) < max(oldest.shown, oldest.changed) {
			oldest = s
		}
		if some++; some == 8 {
			break
		}
	}
	n.forget(oldest)
}

func (n *names) move(s *socket, t tuple) {
	if s.tuple == t {
		return
	}
	n.leave(s)
	s.tuple = t
	n.join(s)
}

// with are the sockets with that tuple.
func (n *names) with(t tuple) iter.Seq[*socket] {
	return func(yield func(*socket) bool) {
		first := n.byTuple[t]
		for s := first; s != nil && yield(s); {
			if s = s.next; s == first {
				return
			}
		}
	}
}

// join puts a socket in front of those with its tuple; one with a cookie behind
// them.
func (n *names) join(s *socket) {
	first := n.byTuple[s.tuple]
	if s.tuple == (tuple{}) {
		return
	}
	if first == nil {
		s.prev, s.next = s, s
	} else {
		s.prev, s.next = first.prev, first
		s.prev.next, s.next.prev = s, s
	}
	if s.cookie == 0 {
		s.shown = 0 // or it would hide those behind it from stillThere
	}
	if first == nil || s.cookie == 0 {
		n.byTuple[s.tuple] = s
	}
}

func (n *names) leave(s *socket) {
	switch {
	case s.next == nil:
		return
	case s.next == s:
		delete(n.byTuple, s.tuple)
	case n.byTuple[s.tuple] == s:
		n.byTuple[s.tuple] = s.next
	}
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
}

func (n *names) forget(s *socket) {
	n.leave(s)
	delete(n.byOwn, s.own)
	n.mu.Lock()
	if n.byCookie[s.cookie] == s {
		delete(n.byCookie, s.cookie)
	}
	n.mu.Unlock()
}
