// SPDX-License-Identifier: Apache-2.0

// Package lifecycle turns events into connections: which states each went
// through and for how long, who owned it, how it ended. It is the only place
// where stated infers anything, and what it infers is marked so.
//
// It is pure: no I/O, no goroutine, no clock. The same events give the same
// connections, live or replayed.
package lifecycle

import (
	"net/netip"

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

// Span is a state and when the connection entered it. It lasts until the next
// span begins, the last one until Conn.End.
type Span struct {
	Start int64 // nanoseconds since boot; 0 when AtLeast and nothing is known
	State event.State
	Known Known
}

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

// Owner is the process that a connection belongs to, and how that is known.
type Owner struct {
	event.Task
	Source event.OwnerSource
}

// Conn is one connection from its first event to its last: one epoch of a
// socket. Observers read it during their call only, and change nothing.
type Conn struct {
	Socket   event.SocketID
	Epoch    uint32 // counts the connections of this socket, from 0 (as far as we saw)
	Netns    uint32
	UID      uint32 // owner of the socket, with UIDKnown
	UIDKnown bool
	Cgroup   uint64
	Family   uint16
	Protocol uint16
	OwnID    bool // Socket is a number of ours, not the kernel's cookie
	Subflow  bool // of an MPTCP connection
	Role     Role
	Local    netip.AddrPort // from the first event where it is whole
	Peer     netip.AddrPort

	Owner    Owner
	Closer   event.Task // called close() or shutdown() first, or killed the socket; zero if nobody on this host
	Acceptor int32      // descriptor that accept() returned, -1 unknown

	State event.State // now; CLOSE once ended
	Spans []Span      // in order, never empty; the span of the final CLOSE is not among them
	End   int64       // nanoseconds since boot at -> CLOSE; 0 while open

	// Lingers is what the connection left behind in a mini socket: TIME_WAIT,
	// FIN_WAIT2 (whose TIME_WAIT may follow), or none. LingersKnown says how
	// that is known. It mostly outlives Finished: see Table.Lingering.
	Lingers      event.State
	LingersKnown Known
	Initiator    Initiator
	LingerCause  event.EndCause // of LingerEnd
	LingerStart  int64          // nanoseconds since boot
	LingerEnd    int64          // nanoseconds since boot, 0 not seen

	AcceptedAt int64  // nanoseconds since boot, 0 not seen
	Overflows  uint64 // of a listener: SYNs dropped because its queue was full

	Outcome   Outcome
	Reset     event.ResetReason
	Err       uint16 // sk_err at the end, an errno
	Why       string // for OutcomeUnknown and OutcomeHandshakeFailed: a constant sentence
	Gap       bool   // events were lost on the way
	FromStart bool   // the first event was the birth
	Accepted  bool   // seen to be accepted
	Cookie    bool   // made of a SYN cookie
	EOFUnread bool   // the peer's FIN is still in the receive queue

	mini     event.State // of KindTimeWait, before -> CLOSE
	halfOpen bool        // a request, no full socket yet
	missed   uint8       // snapshots in a row that did not show it
	resetIn  bool
	resetOut bool        // a RST was sent behind the end
	resetPre bool        // a RST was sent before the end, which it may have to do with
	closed   event.State // in which close() came after shutdown()
	end      event.Flags // of the event of -> CLOSE
	finished bool
	held     bool // CLOSE, but a descriptor is still open
	inTable  bool
	queued   bool // in Table.settling

	BytesSent     uint64 // payload, each byte counted once
	BytesReceived uint64 // payload, without the FIN
	SRTT          uint32 // microseconds, the last that was known
	Retransmits   uint32
	Unread        uint32 // bytes in the receive queue, without the FIN
	Unsent        uint32
	FirstEvent    int64 // nanoseconds since boot
	LastEvent     int64 // nanoseconds since boot

	settle int64 // until when evidence for the outcome may come; before the end, until when resetPre is some
	miniAt int64 // time of KindTimeWait before -> CLOSE
	prev   *Conn
	next   *Conn
}

// Start returns when the connection is known to have begun, in nanoseconds
// since boot, and how that is known.
func (c *Conn) Start() (int64, Known) { return c.Spans[0].Start, c.Spans[0].Known }

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
	case i+1 < len(c.Spans):
		return c.Spans[i+1].Start
	case c.Spans[i].State == event.StateFinWait2 && c.Lingers == event.StateTimeWait && c.LingerStart > c.End:
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
	for _, s := range c.Spans {
		if s.State == event.StateEstablished && s.Known == Seen {
			return max(c.AcceptedAt-s.Start, 0), true
		}
	}
	return 0, false
}

// HeldClosed reports whether the connection has ended while the application
// still holds its descriptor.
func (c *Conn) HeldClosed() bool { return c.held }
