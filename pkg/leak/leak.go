// SPDX-License-Identifier: Apache-2.0

// Package leak says of the sockets of a census which are stuck, and why, from
// facts: a leak is a socket that waits for its own process for too long.
package leak

import (
	"cmp"
	"slices"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Verdict is why a socket is stuck.
type Verdict uint8

// Verdicts: the closed vocabulary of stated.leak.verdict.
const (
	// Unknown: Finding.Why says why.
	Unknown Verdict = iota
	// NotAccepted: the connection waits in the queue of a listener.
	NotAccepted
	// DataUnread: the process has left Finding.Unread bytes unread.
	DataUnread
	// EOFUnread: all data was read, the end of file behind it never.
	EOFUnread
	// Drained: nothing is left to read. The process has seen the end of file,
	// or will at its next read: the kernel does not tell which, as a FIN that
	// came with the last data leaves no trace of its own (tcp_try_coalesce).
	Drained
	// ShutDown: the process called shutdown() and never close(). That may be as it
	// should, see Finding.HalfClosed.
	ShutDown
	// Hidden: the connection has ended, as a rule by reset, abort, kill or
	// time-out, and the descriptor is still open.
	Hidden
)

var verdictNames = [...]string{"unknown", "not_accepted", "data_unread", "eof_unread", "drained", "shut_down", "hidden"}

// NumVerdicts is one more than the largest Verdict, for arrays indexed by it.
const NumVerdicts = len(verdictNames)

// String returns the verdict in the snake case of the record schema.
func (v Verdict) String() string { return verdictNames[v] }

// Finding is a stuck socket.
type Finding struct {
	*census.Socket
	Verdict Verdict
	Why     string // for Unknown: a constant sentence
	Unread  uint32 // bytes of payload that nobody has read
	Stack   *Stack // where in the code it was opened; nil unknown
}

// HalfClosed reports whether our process has shut down sending only, and the
// peer nothing: the process may want the rest of the answer.
func (f *Finding) HalfClosed() bool {
	const receiving = 1 // RCV_SHUTDOWN
	return f.Verdict == ShutDown && (f.New == event.StateFinWait1 || f.New == event.StateFinWait2) && f.Shutdown&receiving == 0
}

// Rules say what is too long.
type Rules struct {
	MinAge int64 // nanoseconds
	// States to look at. A connection that has ended while its descriptor is
	// open is looked at with StateClose.
	States event.StateSet
}

// DefaultStates are CLOSE_WAIT and the hidden class.
var DefaultStates = event.SetOf(event.StateCloseWait, event.StateClose)

// Report is what a census says by the rules.
type Report struct {
	Now      int64
	Findings []Finding // oldest first
	// Undecided are sockets in the states whose age is not known to reach
	// MinAge, but may: watch them for that long.
	Undecided int
	// Young are those known to be younger than MinAge.
	Young int
}

// Find applies the rules to a census. A subflow is not stuck by itself: its MPTCP
// connection may be.
func Find(c *census.Census, rules Rules) Report {
	r := Report{Now: c.Now}
	for _, s := range c.Sockets {
		if !rules.States.Has(s.New) || s.New == event.StateListen || s.Subflow() {
			continue
		}
		if s.New == event.StateClose && !s.Hidden() {
			continue
		}
		switch {
		case s.Age.Min >= rules.MinAge:
			r.Findings = append(r.Findings, Judge(s))
		case s.Age.Known == lifecycle.AtLeast && (s.Age.Max == 0 || s.Age.Max >= rules.MinAge):
			r.Undecided++
		default:
			r.Young++
		}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Age.Min, a.Age.Min), cmp.Compare(a.Inode, b.Inode))
	})
	return r
}

// Judge finds the verdict on a socket, whatever its age. In CLOSE_WAIT the FIN counts as one byte of the
// receive queue until it is read (tcp_fin and tcp_recvmsg_locked in net/ipv4).
func Judge(s *census.Socket) Finding {
	f := Finding{Socket: s}
	queued := s.Sighting.Unread
	f.Unread, _ = s.UnreadPayload()
	switch s.New {
	case event.StateCloseWait:
		switch {
		case s.NotAccepted():
			f.Verdict = NotAccepted
		case s.Multipath():
			f.Why = "the peer has closed, and the process has not; whether it has read all is not known of MPTCP"
		case queued > 1:
			f.Verdict = DataUnread
		case queued == 1:
			f.Verdict = EOFUnread
		default:
			f.Verdict = Drained
		}
	case event.StateClose:
		f.Unread = 0
		f.Verdict = Hidden
		if bothShut(s) {
			f.Verdict = ShutDown
		}
	case event.StateFinWait1, event.StateFinWait2, event.StateClosing, event.StateLastAck:
		switch {
		case s.Orphan():
			f.Why = "no process holds it: the kernel waits for the peer, and gives up by itself"
		case s.NotAccepted():
			f.Verdict = NotAccepted
		default:
			f.Verdict = ShutDown
		}
	case event.StateSynSent:
		f.Why = "the peer has not answered our SYN"
	case event.StateSynRecv:
		f.Why = "the peer has not confirmed our SYN-ACK, or has sent no data yet where the listener wants some first (TCP_DEFER_ACCEPT)"
	case event.StateTimeWait:
		f.Why = "TIME_WAIT is the kernel's, and ends by itself after 60 seconds"
	default:
		switch {
		case s.NotAccepted():
			f.Verdict = NotAccepted
		case queued > 0:
			f.Verdict = DataUnread
		default:
			f.Why = "the connection is open at both ends"
		}
	}
	return f
}

// bothShut reports whether the connection in CLOSE has ended by FIN both ways,
// as only shutdown() without close() leaves it: the peer's FIN came, and ours
// was acknowledged. bytes_acked counts our FIN as one, and a client's SYN;
// bytes_sent neither (tcp_snd_una_update, tcp_create_openreq_child). A socket of
// which it is not known who called passes for a client's, and is called Hidden.
func bothShut(s *census.Socket) bool {
	ours := s.BytesSent - s.BytesResent + 1
	if s.Role != lifecycle.RoleServer {
		ours++
	}
	return s.Flags.Has(event.FlagDone) && s.Unsent == 0 && s.BytesAcked == ours
}
