// SPDX-License-Identifier: Apache-2.0

// Package census counts the TCP sockets of a host at one moment: in which state
// each is, since when, who holds it, which listener it came from. What an
// inspection of the kernel shows is joined with what the events told, where
// there were any. It is pure: the looking is done by who calls Add.
package census

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Holder is a process and its descriptors of one socket.
type Holder struct {
	event.Task
	FDs []int32 // ascending
}

// Age is how long a socket has been in its state, in nanoseconds.
type Age struct {
	Min int64 // at least; 0 nothing known
	Max int64 // at most; 0 not known
	// Known is Seen where Min and Max are the same, because an event told the
	// beginning; Inferred where Min is no proof, but the likely age; else
	// AtLeast.
	Known lifecycle.Known
}

// Socket is one socket of the census.
type Socket struct {
	event.Sighting
	Age       Age
	Role      lifecycle.Role
	RoleKnown lifecycle.Known // Seen, or Inferred from Evidence
	Evidence  Evidence
	Holders   []Holder // by pid
	// Listeners are those that the connection may have come through, and for one
	// that was not accepted, in whose queue it waits: several with SO_REUSEPORT.
	Listeners []*Socket
	// Called are the listeners that one in SYN_SENT calls, where its peer is this host
	// itself, in the same network namespace: several with SO_REUSEPORT.
	Called []*Socket
	// Requests counts the half-open connections of a listener that shares its port
	// with none.
	Requests int
	// Other is the other end, where that is in the census and in the same network
	// namespace; else nil.
	Other *Socket
	// Whole is the MPTCP connection that a subflow is of; nil unknown, and of what is
	// no subflow. Its Holders are the subflow's, too.
	Whole *Socket
	// Idle is how long nothing but the FIN had come or gone before the peer
	// closed, in nanoseconds; only where the FIN was seen. 0 unknown.
	Idle int64
}

// Multipath reports whether it is an MPTCP connection, or a listener for such. A
// connection is carried by subflows, which are TCP sockets without a descriptor, and
// in states of their own. What it has transferred, and what waits, is not known.
func (s *Socket) Multipath() bool { return s.Protocol == event.ProtoMPTCP }

// Subflow reports whether it is one of an MPTCP connection: what a process sees is
// the state of that.
func (s *Socket) Subflow() bool { return s.Flags.Has(event.FlagMPTCP) && !s.Multipath() }

// Queued reports whether it is known what waits to be read and to be acknowledged.
func (s *Socket) Queued() bool { return !s.Multipath() || s.New == event.StateListen }

// NotAccepted reports whether the connection waits in the queue of a listener:
// no struct socket has been made for it, and no descriptor was closed either.
func (s *Socket) NotAccepted() bool {
	return s.Flags.Has(event.FlagNoSocket) && s.Flags&(event.FlagDead|event.FlagMini|event.FlagMPTCP) == 0 && s.New != event.StateListen
}

// HalfOpen reports whether the handshake is not over yet: what the kernel has of
// the connection belongs to the listener, and to no process before accept().
func (s *Socket) HalfOpen() bool {
	return s.Flags.Has(event.FlagMini) && (s.New == event.StateSynRecv || s.New == event.StateNewSynRecv)
}

// Listened reports whether the connection is its listener's as yet.
func (s *Socket) Listened() bool { return s.NotAccepted() || s.HalfOpen() }

// Owners returns the processes that hold the socket. Of a connection that nobody
// accepted these are the holders of its listener.
func (s *Socket) Owners() []event.Task {
	var tasks []event.Task
	add := func(holders []Holder) {
		for _, h := range holders {
			if !slices.ContainsFunc(tasks, func(have event.Task) bool { return have.PID == h.PID }) {
				tasks = append(tasks, h.Task)
			}
		}
	}
	add(s.Holders)
	if s.Listened() {
		for _, l := range s.Listeners {
			add(l.Holders)
		}
	}
	return tasks
}

// Queue returns how many connections wait in the queue of a listener, and how
// many may: one more than its backlog (sk_acceptq_is_full in include/net/sock.h).
func (s *Socket) Queue() (waiting, limit int64) {
	return int64(s.Unread), int64(s.Unsent) + 1
}

// Hidden reports whether the connection has ended while its descriptor is open:
// no table of the kernel shows it. A socket that was never connected, or was
// disconnected, has no peer (tcp_disconnect in net/ipv4/tcp.c).
func (s *Socket) Hidden() bool {
	return s.New == event.StateClose && s.Opened && s.Peer.Port() != 0
}

// Elsewhere returns how many references to the open file are not among the
// descriptors that were found: held by a system call at work, a message on a
// unix socket, io_uring, or a process that came meanwhile. While somebody waits on
// a socket that a process holds, one does not count: poll() and select() refer to
// the file until they return (__pollwait in fs/select.c), as does recv() of one
// thread of several, and that is no other holder. epoll does not, so one of
// somebody else may be missed.
func (s *Socket) Elsewhere() int {
	if s.Kernel() {
		return 0 // the kernel's own reference
	}
	n := int(s.References)
	for _, h := range s.Holders {
		n -= len(h.FDs)
	}
	if s.Waited && len(s.Holders) > 0 {
		n--
	}
	return max(n, 0)
}

// Kernel reports whether the kernel itself has the socket, for NFS, SMC or the
// like, and no process a descriptor of it.
func (s *Socket) Kernel() bool {
	return s.Flags.Has(event.FlagKernel) && len(s.Holders) == 0 && !s.Orphan() && !s.Listened()
}

// Orphan reports whether no process holds the socket any more: the kernel
// finishes the connection alone.
func (s *Socket) Orphan() bool {
	return s.Flags&(event.FlagDead|event.FlagMini) != 0 && !s.HalfOpen()
}

// Census is the sockets of a host at one moment. Add all sightings, then
// Complete, then read Sockets.
type Census struct {
	Now     int64 // nanoseconds since boot, when it began
	Sockets []*Socket

	byInode map[uint64]*Socket // of several subflows the first
	wholes  map[uint64]*Socket // MPTCP connections, by inode: it is their subflows', too
	seen    map[event.SocketID]bool
}

// New begins a census.
func New(now int64) *Census {
	return &Census{Now: now, byInode: make(map[uint64]*Socket), wholes: make(map[uint64]*Socket), seen: make(map[event.SocketID]bool)}
}

// Add takes one sighting, first those of sockets, then those of holders. A
// socket that moved from one bucket of the kernel's table to another while they
// were walked may come twice; it counts once.
func (c *Census) Add(s *event.Sighting) {
	if s.Kind == event.KindHolder {
		c.hold(s)
		return
	}
	if s.Socket != 0 {
		if c.seen[s.Socket] {
			return
		}
		c.seen[s.Socket] = true
	}
	c.put(s)
}

func (c *Census) put(s *event.Sighting) *Socket {
	socket := &Socket{Sighting: *s}
	if s.New == event.StateListen && s.Flags.Has(event.FlagMPTCP) {
		socket.Protocol = event.ProtoMPTCP // one listens for the other: it counts once
	}
	c.Sockets = append(c.Sockets, socket)
	if s.Protocol == event.ProtoMPTCP {
		c.wholes[s.Inode] = socket
	} else if s.Inode != 0 && c.byInode[s.Inode] == nil {
		c.byInode[s.Inode] = socket
	}
	return socket
}

func (c *Census) hold(s *event.Sighting) {
	socket := c.byInode[s.Inode]
	if s.Protocol == event.ProtoMPTCP {
		if s.New != event.StateListen {
			socket = c.wholes[s.Inode] // is in no table of the kernel that is listed
		} else if socket == nil {
			return // began to listen since the sockets were listed
		} else {
			socket.Protocol = event.ProtoMPTCP
		}
	}
	if socket == nil {
		// In CLOSE, of MPTCP, or opened since the sockets were listed.
		socket = c.put(s)
		socket.Task, socket.FD = event.Task{}, -1
	}
	i, found := slices.BinarySearchFunc(socket.Holders, s.Task.PID, func(h Holder, pid uint32) int { return cmp.Compare(h.PID, pid) })
	if !found {
		socket.Holders = slices.Insert(socket.Holders, i, Holder{Task: s.Task})
	}
	h := &socket.Holders[i]
	if at, found := slices.BinarySearch(h.FDs, s.FD); !found {
		h.FDs = slices.Insert(h.FDs, at, s.FD)
	}
}

// Unheld returns the sockets that should have a descriptor, and none was found.
func (c *Census) Unheld() map[*Socket]bool {
	left := make(map[*Socket]bool)
	for _, s := range c.Sockets {
		if s.Inode != 0 && len(s.Holders) == 0 && !s.Flags.Has(event.FlagMPTCP) {
			left[s] = true
		}
	}
	return left
}

// Drop forgets sockets.
func (c *Census) Drop(which func(*Socket) bool) { c.Sockets = slices.DeleteFunc(c.Sockets, which) }

// History finds what the events told of a socket; nil: nothing.
type History func(event.SocketID) *lifecycle.Conn

// join gives the subflows their connection. A struct socket is the same file's for
// all of them (mptcp_sock_graft in net/mptcp). Each change of state of the connection
// is made by a segment of one.
func (c *Census) join() {
	for _, s := range c.Sockets {
		if s.Inode == 0 || s.Multipath() {
			continue
		}
		switch w := c.wholes[s.Inode]; {
		case w != nil:
			s.Flags |= event.FlagMPTCP // also where the peer does not speak MPTCP
			s.Whole, s.Holders = w, w.Holders
			w.LastSegment = max(w.LastSegment, s.LastSegment)
		case s.Subflow() && len(s.Holders) == 0:
			s.Holders = c.byInode[s.Inode].Holders
		}
	}
}

// Complete joins listeners and histories to the sockets that were added.
func (c *Census) Complete(history History) {
	c.join()
	listeners := make(map[endpoint][]*Socket)
	for _, s := range c.Sockets {
		if s.New == event.StateListen {
			key := endpoint{s.Netns, s.Local.Port()}
			listeners[key] = append(listeners[key], s)
		}
	}
	conns := make([]*lifecycle.Conn, len(c.Sockets))
	for i, s := range c.Sockets {
		if history != nil && s.Socket != 0 {
			conns[i] = history(s.Socket)
		}
		if conns[i] != nil {
			restore(&s.Event, conns[i])
		}
		s.Listeners = match(s, s.Local.Addr(), listeners[endpoint{s.Netns, s.Local.Port()}])
		if s.New == event.StateSynSent && s.callsItself() {
			s.Called = match(s, s.Peer.Addr(), listeners[endpoint{s.Netns, s.Peer.Port()}])
		}
	}
	roles := newRoles(c.Sockets)
	for i, s := range c.Sockets {
		s.Role, s.RoleKnown, s.Evidence = roles.of(s, conns[i])
	}
	roles.agree(c.Sockets)
	for _, s := range c.Sockets {
		if w := s.Whole; w != nil && w.Local == s.Local && w.Peer == s.Peer && s.strength() > w.strength() {
			w.Role, w.RoleKnown, w.Evidence = s.Role, s.RoleKnown, s.Evidence
		}
	}
	for i, s := range c.Sockets {
		if s.Role != lifecycle.RoleServer && !s.NotAccepted() {
			s.Listeners = nil
		}
		if s.HalfOpen() && len(s.Listeners) == 1 {
			s.Listeners[0].Requests++
		}
		s.Age = age(s, conns[i])
		if last := max(s.LastReceived, s.LastSent); s.New == event.StateCloseWait && s.Age.Known == lifecycle.Seen && last != 0 {
			s.Idle = max(s.Time-s.Age.Min-last, 0)
		}
	}
}

type endpoint struct {
	netns uint32
	port  uint16
}

// restore gives a socket back what the kernel cleared on the way down. What is in
// CLOSE without a peer was disconnected, and is not that connection's any more.
func restore(e *event.Event, c *lifecycle.Conn) {
	if disconnected := e.New == event.StateClose && e.Peer.Port() == 0; !disconnected {
		if c.Local.IsValid() {
			e.Local = c.Local.AddrPort()
		}
		if c.Peer.IsValid() {
			e.Peer = c.Peer.AddrPort()
		}
	}
	if e.Netns == 0 {
		e.Netns = c.Netns
	}
	e.Owner, e.OwnerSource = c.Owner.Task, c.Owner.Source
}

// callsItself reports whether the peer's address is one of this host: loopback, or
// our own, which the kernel chooses towards itself (fib_lookup in the table local).
func (s *Socket) callsItself() bool {
	return s.Peer.Addr().IsLoopback() || s.Peer.Addr() == s.Local.Addr()
}

// match returns the listeners on an address, or those on any: for IPv4 before those
// for both families (compute_score in net/ipv4/inet_hashtables.c). None is s itself.
func match(s *Socket, addr netip.Addr, listeners []*Socket) []*Socket {
	var exact, four, any []*Socket
	for _, l := range listeners {
		switch on := l.Local.Addr(); {
		case l == s:
		case on == addr:
			exact = append(exact, l)
		case on == netip.IPv4Unspecified() && addr.Is4():
			four = append(four, l)
		case on == netip.IPv6Unspecified():
			any = append(any, l)
		}
	}
	switch {
	case exact != nil:
		return exact
	case four != nil:
		return four
	}
	return any
}

// age takes the event that began the state where there is one. Else a bound:
// every change of state is made by a segment that comes or goes, so the state
// began no later than the last one did (in CLOSE none follows, so it began just
// then), and CLOSE_WAIT no earlier than the last payload came, as nothing comes
// behind a FIN. ESTABLISHED began before its payload, whatever came since. The best
// bound counts.
func age(s *Socket, c *lifecycle.Conn) (a Age) {
	now := s.Time
	a.Known = lifecycle.AtLeast
	if c != nil {
		start, known := int64(0), lifecycle.AtLeast
		switch last := c.Spans.Last(); {
		case c.End != 0 && s.New == event.StateClose:
			start, known = c.End, lifecycle.Seen
		case c.End == 0 && last.State == s.New:
			start, known = c.Since()
		}
		if start != 0 {
			a.Min = max(now-start, 0)
			if a.Known = known; known == lifecycle.Seen {
				a.Max = a.Min
				return a
			}
		}
	}
	if s.Since != 0 {
		a.Min = max(a.Min, now-s.Since)
	}
	if s.Began != 0 {
		a.Min = max(a.Min, now-s.Began)
	}
	if s.LastSegment != 0 {
		a.Min = max(a.Min, now-s.LastSegment)
		if s.New == event.StateClose {
			a.Known = lifecycle.Inferred
		}
	}
	if at := s.payload(); at != 0 {
		a.Min = max(a.Min, now-at)
	}
	if s.New == event.StateCloseWait && s.LastReceived != 0 {
		a.Max = max(now-s.LastReceived, a.Min) // jiffies may lag behind
	}
	return a
}

// How much later payload may have come or gone than is told: two ticks of a slow
// clock, and with sock_diag the time that its answer took.
const (
	late        = 20e6
	lateLimited = 1e9
)

// payload is when some has certainly come or gone in ESTABLISHED, 0 if that is not
// known. With Fast Open it may begin a round trip before that.
func (s *Socket) payload() int64 {
	if s.New != event.StateEstablished {
		return 0
	}
	at := s.LastReceived
	if at == 0 || s.LastSent != 0 {
		at = min(cmp.Or(at, s.LastSent), s.LastSent)
	}
	if at == 0 {
		return 0
	}
	at += late + int64(s.SRTT)*1e3
	if s.Limited {
		at += lateLimited
	}
	return at
}

// ByPayload reports whether the age follows from payload: other segments came or
// went since.
func (s *Socket) ByPayload() bool {
	at := s.payload()
	return at != 0 && s.Age.Known == lifecycle.AtLeast && s.Age.Min == s.Time-at
}
