// SPDX-License-Identifier: Apache-2.0

// Package lifecycle turns events into connections: which states each went
// through and for how long, who owned it, how it ended. It is the only place
// where stated infers anything, and what it infers is marked so.
//
// It is pure: no I/O, no goroutine, no clock. The same events give the same
// connections, live or replayed.
package lifecycle

import (
	"fmt"
	"slices"

	"github.com/stated-tcp/stated/pkg/event"
)

// Known says how a fact came to us.
type Known uint8

const (
	Seen     Known = iota // an event said so
	Inferred              // it follows from other facts
	AtLeast               // it began before we looked: the duration is a lower bound
)

func (k Known) String() string { return [...]string{"seen", "inferred", "at_least"}[k] }

// Role is our side's part in a connection.
type Role uint8

const (
	RoleUnknown      Role = iota // began before us, and nothing tells
	RoleClient                   // we called connect()
	RoleServer                   // a listener of ours took it
	RoleListener                 // waits for connections
	RoleSimultaneous             // both sides connected at once (RFC 9293 3.5, figure 7)
)

var roleNames = [...]string{"unknown", "client", "server", "listener", "simultaneous"}

func (r Role) String() string { return roleNames[r] }

// ParseRole is the inverse of String.
func ParseRole(s string) (Role, bool) {
	for i, name := range roleNames {
		if name == s {
			return Role(i), true
		}
	}
	return RoleUnknown, false
}

// MarshalText is String.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParseRole.
func (r *Role) UnmarshalText(text []byte) error {
	role, ok := ParseRole(string(text))
	if *r = role; !ok {
		return fmt.Errorf("no role %q", text)
	}
	return nil
}

// Initiator is who ended the connection first, by FIN or by RST.
type Initiator uint8

const (
	InitiatorUnknown Initiator = iota
	InitiatorLocal
	InitiatorPeer
	InitiatorBoth // simultaneous close (RFC 9293 3.6, case 3)
)

func (i Initiator) String() string {
	return [...]string{"unknown", "local", "peer", "simultaneous"}[i]
}

// Outcome is how a connection ended: the closed vocabulary of the record schema.
type Outcome uint8

const (
	OutcomeOpen                Outcome = iota // it has not ended
	OutcomeUnknown                            // Conn.Why says why it is not known
	OutcomeClosed                             // FIN both ways
	OutcomeRefused                            // RST in answer to our SYN
	OutcomeUnreachable                        // ICMP or a local error while connecting, Conn.Err
	OutcomeConnectTimeout                     // no answer to our SYNs
	OutcomeConnectCancelled                   // we closed while connecting
	OutcomeNoLocalPort                        // connect() found no free local port, or the tuple in use
	OutcomeResetByPeer                        // RST received
	OutcomeResetUnreadData                    // we closed with unread data: RST sent
	OutcomeResetLinger                        // we closed with SO_LINGER 0, or disconnected: RST sent
	OutcomeResetDataAfterClose                // data came after we had closed: RST sent
	OutcomeResetListenerClosed                // never accepted: its listener was closed
	OutcomeResetKeepalive                     // keep-alive probes were not answered: RST sent
	OutcomeResetProtocol                      // RST sent for another reason, Conn.Reset
	OutcomeTimedOut                           // retransmissions, keep-alive or TCP_USER_TIMEOUT ran out
	OutcomeKilled                             // SOCK_DESTROY (`ss -K`), Conn.Closer is the killer
	OutcomeHandshakeFailed                    // a server's socket that never became ESTABLISHED
	OutcomeListenEnded                        // a listener was closed
	OutcomeHandshakeExpired                   // half-open: nobody answered our SYN-ACKs
	OutcomeHandshakeReset                     // half-open: the peer sent a RST
	OutcomeHandshakeOverflow                  // half-open: the accept queue had no room for it
)

var outcomeNames = [...]string{
	"open", "unknown", "closed", "refused", "unreachable", "connect_timeout", "connect_cancelled", "no_local_port",
	"reset_by_peer", "reset_unread_data", "reset_linger", "reset_data_after_close", "reset_listener_closed",
	"reset_keepalive", "reset_protocol", "timed_out", "killed", "handshake_failed", "listen_ended",
	"handshake_expired", "handshake_reset", "handshake_overflow",
}

// String returns the outcome in the snake case of the record schema.
func (o Outcome) String() string { return outcomeNames[o] }

// NumOutcomes is one more than the largest Outcome, for arrays indexed by it.
const NumOutcomes = int(OutcomeHandshakeOverflow) + 1

// Why says what is behind an outcome that says too little by itself.
type Why uint8

// The sentences of Why.
const (
	WhyNone Why = iota
	WhyEndLost
	WhyTableFull
	WhyNotShown
	WhyRequestNotShown
	WhyNoReset
	WhyNoErrors
	WhyNoReason
	WhyFinUnanswered
	WhyDeferred
	WhyNetns
	WhyListener
	WhyICMP
	WhyNoCause
)

var whys = [...]string{
	WhyNone:            "",
	WhyEndLost:         "its end was lost",
	WhyTableFull:       "given up: the table of connections was full",
	WhyNotShown:        "a snapshot found it gone: its end was not told",
	WhyRequestNotShown: "a snapshot found it gone; what ended it was not seen",
	WhyNoReset:         "the socket has a reset error, but no RST was seen",
	WhyNoErrors:        "the classic tracepoint does not tell errors",
	WhyNoReason:        "it ended without a timeout, a FIN or a RST that we saw",
	WhyFinUnanswered:   "our side dropped it before the peer acknowledged our FIN",
	WhyDeferred:        "its listener waits for data (TCP_DEFER_ACCEPT), and none came",
	WhyNetns:           "its network namespace went",
	WhyListener:        "its listener was closed",
	WhyICMP:            "an ICMP error came",
	WhyNoCause:         "this kernel does not tell what ended it",
}

// String returns a sentence without its full stop, "" for WhyNone.
func (w Why) String() string { return whys[w] }

// Conn is one connection from its first event to its last: one epoch of a
// socket. Observers read it during their call only, and change nothing.
//
// There may be hundreds of thousands, so it is small: TestMemory has the budget.
// Its fields stand by size, what few connections need is in Rare.
type Conn struct {
	*Shared // what it has in common with others; in a table never nil
	Socket  event.SocketID
	Closer  *event.Task // called close() or shutdown() first, or killed the socket; nil if nobody on this host
	Rare    *Rare       // mostly nil
	Spans   Path        // in a table never empty

	// Times are nanoseconds since boot, 0 where nothing was seen (yet).
	FirstEvent  int64
	LastEvent   int64
	End         int64 // at -> CLOSE; 0 while open
	AcceptedAt  int64
	LingerStart int64
	LingerEnd   int64

	BytesSent     uint64 // payload, each byte counted once
	BytesReceived uint64 // payload, without the FIN

	prev *Conn // in Table.quiet
	next *Conn // there, or in Table.free

	SRTT        uint32 // microseconds, the last that was known
	Retransmits uint32
	Unread      uint32 // bytes in the receive queue, without the FIN
	Unsent      uint32 // bytes not acknowledged, without SYN and FIN; of a listener, its backlog
	Epoch       uint32 // counts the connections of this socket, from 0 (as far as we saw)

	Local Endpoint // from the first event where it is whole
	Peer  Endpoint

	Err uint16      // sk_err at the end, an errno
	end event.Flags // of the event of -> CLOSE

	State     event.State // now; CLOSE once ended
	Role      Role
	Initiator Initiator
	Outcome   Outcome
	Why       Why // for OutcomeUnknown and OutcomeHandshakeFailed
	Reset     event.ResetReason

	// Lingers is what the connection left behind in a mini socket: TIME_WAIT,
	// FIN_WAIT2 (whose TIME_WAIT may follow), or none. LingersKnown says how
	// that is known. It mostly outlives Finished: see Table.Lingering.
	Lingers      event.State
	LingersKnown Known
	LingerCause  event.EndCause // of LingerEnd

	// Crowded says that nothing tells whether the connection is in TIME_WAIT: the
	// kernel makes no more of these than net.ipv4.tcp_max_tw_buckets.
	Crowded bool

	mini   event.State // of KindTimeWait, at LingerStart, before -> CLOSE
	closed event.State // in which close() came after shutdown()
	missed uint8       // snapshots in a row that did not show it

	leftBehind bool

	leaving bool // the last snapshot showed its mini socket, and no event came since

	OwnID     bool // Socket is a number of ours, not the kernel's cookie
	Gap       bool // events were lost on the way
	FromStart bool // the first event was the birth
	Cookie    bool // made of a SYN cookie
	EOFUnread bool // the peer's FIN is still in the receive queue
	// Uncounted says that the last change of state came without numbers (the
	// classic tracepoint): bytes and the like are older, from a snapshot, or zero.
	Uncounted bool

	unacked  bool // a sequence number was taken, or more, and not acknowledged
	halfOpen bool // a request, no full socket yet
	metEarly bool // its request, or it in SYN_RECV, was told of: that began when we saw it
	resetIn  bool
	resetOut bool // a RST was sent behind the end
	resetPre bool // a RST was sent before the end, which it may have to do with
	finished bool
	held     bool // CLOSE, but the socket is not gone: its descriptor is open, or it waits for accept()
	inTable  bool
	queued   bool // in Table.settling
}

// Rare is what few connections have.
type Rare struct {
	// Holders are processes beside the owner that were found to hold the socket,
	// of which nobody saw how it got it; at most maxHolders.
	Holders []event.Task
	// Multipath is the MPTCP connection that this one is, or with Subflow is one
	// of; nil for plain TCP, and where it is not known.
	Multipath *Multipath
	Overflows uint64 // of a listener: SYNs dropped because its queue was full

	resetUntil int64 // until when Conn.resetPre counts
}

// rare returns what c has of it, to be written to.
func (c *Conn) rare() *Rare {
	if c.Rare == nil {
		c.Rare = new(Rare)
	}
	return c.Rare
}

// LeftBehind reports whether c is what a connection left in a mini socket: it then
// comes in Transition only, the same Conn for all of them, and never in Finished.
func (c *Conn) LeftBehind() bool { return c.leftBehind }

// Multipath returns Rare.Multipath.
func (c *Conn) Multipath() *Multipath {
	if c.Rare == nil {
		return nil
	}
	return c.Rare.Multipath
}

// Overflows returns Rare.Overflows.
func (c *Conn) Overflows() uint64 {
	if c.Rare == nil {
		return 0
	}
	return c.Rare.Overflows
}

// Start returns when the connection is known to have begun, in nanoseconds
// since boot, and how that is known.
func (c *Conn) Start() (int64, Known) {
	first := c.Spans.At(0)
	return first.Start, first.Known
}

// Since returns since when the connection is in its state, or is known to be, in
// nanoseconds since boot, and how that is known.
func (c *Conn) Since() (int64, Known) {
	last := c.Spans.Last()
	if last.Start == 0 {
		return c.FirstEvent, AtLeast
	}
	return last.Start, last.Known
}

// Until returns when the connection ended, or, of one that is open or was given
// up, when it was last heard of; in nanoseconds since boot.
func (c *Conn) Until() int64 {
	if c.End != 0 {
		return c.End
	}
	return c.LastEvent
}

// SpanEnd returns when span i ended: the start of the next, the end of the
// connection, or now for the one that lasts.
func (c *Conn) SpanEnd(i int, now int64) int64 {
	switch {
	case i+1 < c.Spans.Len():
		return c.Spans.At(i + 1).Start
	case c.Spans.At(i).State == event.StateFinWait2 && c.Lingers == event.StateTimeWait && c.LingerStart > c.End:
		return c.LingerStart // it went on in a mini socket
	case c.End != 0:
		return c.End
	}
	return now
}

// HalfOpen reports whether this is a handshake of which the third packet has
// not come: a request, without a full socket.
func (c *Conn) HalfOpen() bool { return c.halfOpen }

// AcceptWait returns for how long, in nanoseconds, the connection was
// ESTABLISHED before accept() returned it; false where that was not seen.
func (c *Conn) AcceptWait() (int64, bool) {
	if c.AcceptedAt == 0 {
		return 0, false
	}
	for _, s := range c.Spans.All() {
		if s.State == event.StateEstablished && s.Known == Seen {
			return max(c.AcceptedAt-s.Start, 0), true
		}
	}
	return 0, false
}

// HeldClosed reports whether the connection has ended while the application
// still holds its descriptor: not one that waits for accept(), or the kernel's.
func (c *Conn) HeldClosed() bool {
	return c.held && (!c.end.Has(event.FlagNoSocket) || c.AcceptedAt != 0) && !c.Kernel
}

// maxHolders bounds Rare.Holders.
const maxHolders = 64

// Holders returns processes beside the owner that were found to hold the socket,
// where it is not known how the owner got it.
func (c *Conn) Holders() []event.Task {
	if c.Rare == nil {
		return nil
	}
	return c.Rare.Holders
}

// heldBy remembers one.
func (c *Conn) heldBy(t event.Task) {
	if c.Owner.Task == t || ownerRank[c.Owner.Source] > ownerRank[event.OwnerRead] || slices.Contains(c.Holders(), t) || len(c.Holders()) >= maxHolders {
		return
	}
	c.rare().Holders = append(c.rare().Holders, t)
}

// Disconnected reports whether the process ended the connection and keeps the
// descriptor for another one: connect() with AF_UNSPEC. Nothing else sends a RST
// behind the end of a socket that is not closed, but in answer to data, which comes
// with a call of tcp_reset.
func (c *Conn) Disconnected() bool { return c.held && c.resetOut && !c.resetIn }
