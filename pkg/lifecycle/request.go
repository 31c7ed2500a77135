// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "github.com/stated-tcp/stated/pkg/event"

// A half-open connection is a request socket: a SYN was answered, the third
// packet of the handshake is awaited. The connection that comes of it inherits
// its cookie (inet_csk_clone_lock in net/ipv4/inet_connection_sock.c), so both
// are one Conn. To observers a request is the transition LISTEN -> SYN_RECV.

// request begins a connection at its SYN.
func (t *Table) request(e *event.Event) {
	t.stats.Requests++
	if e.Socket == 0 || t.conns[e.Socket] != nil {
		t.stats.Ignored++ // a snapshot was faster
		return
	}
	t.halfOpen(e, Seen)
}

func (t *Table) halfOpen(e *event.Event, known Known) *Conn {
	c := t.open(e)
	c.halfOpen, c.Role, c.State = true, RoleServer, event.StateSynRecv
	c.FromStart = known == Seen
	span := Span{State: event.StateSynRecv, Known: known}
	if known == Seen {
		span.Start = e.Time
	}
	c.Spans.Add(span)
	t.touch(c, e.Time)
	t.learnAlone(c, e)
	t.replaced(c, e)
	if known != Seen {
		t.say(c, e, e.Kind, event.StateSynRecv, event.StateSynRecv)
		return c
	}
	t.say(c, e, event.KindState, event.StateListen, event.StateSynRecv)
	return c
}

// say tells the observer of a change that the kernel has no transition for.
func (t *Table) say(c *Conn, e *event.Event, kind event.Kind, from, to event.State) {
	t.said = *e
	t.said.Kind, t.said.Old, t.said.New = kind, from, to
	t.said.Flags |= event.FlagMini
	t.observer.Transition(c, &t.said)
}

// complete makes the full socket of a request part of its connection. The
// observer was told LISTEN -> SYN_RECV at the SYN.
func (t *Table) complete(c *Conn, e *event.Event) {
	c.halfOpen, c.metEarly = false, true
	t.touch(c, e.Time)
	t.learnAlone(c, e)
	if e.New != event.StateSynRecv {
		t.step(c, e, false)
	}
}

// inferHandshake moves the start of SYN_RECV to the SYN where no request told
// it: the round trip of our SYN-ACK is the first that the kernel measures, if
// it was not sent twice (tcp_synack_rtt_meas in net/ipv4/tcp_input.c). The child is
// made when that has come, some microseconds before it is in ESTABLISHED, which may be
// longer than the round trip.
func (c *Conn) inferHandshake(at int64, e *event.Event) {
	first := c.Spans.At(0)
	if c.Role != RoleServer || c.Spans.Len() != 1 || first.State != event.StateSynRecv || e.SRTT == 0 || e.Retransmits > 0 {
		return
	}
	start := at - int64(e.SRTT)*1000
	if first.Known == Seen && first.Start <= start {
		if c.metEarly {
			return
		}
		start = first.Start
	}
	c.Spans.set(0, Span{Start: start, State: first.State, Known: Inferred})
}

// requestEnd is the end of a request that became no connection.
func (t *Table) requestEnd(e *event.Event) {
	c := t.conns[e.Socket]
	if c == nil || !c.halfOpen {
		t.stats.Ignored++
		return
	}
	t.touch(c, e.Time)
	c.Retransmits = max(c.Retransmits, e.Retransmits)
	c.concludeRequest(e)
	if e.Cause == event.EndKilled {
		c.Closer = t.shares.task(&e.Task, c.Shared)
	}
	t.endRequest(c, e)
}

func (t *Table) endRequest(c *Conn, e *event.Event) {
	c.End, c.State = max(e.Time, c.Spans.At(0).Start), event.StateClose
	t.say(c, e, event.KindState, event.StateSynRecv, event.StateClose)
	t.finish(c)
	t.remove(c)
}

func (c *Conn) concludeRequest(e *event.Event) {
	c.Outcome = OutcomeHandshakeFailed
	switch e.Cause {
	case event.EndTimer:
		c.Outcome = OutcomeHandshakeExpired
		switch {
		case e.Flags.Has(event.FlagAcked | event.FlagDefer):
			c.Why = WhyDeferred
		case e.Flags.Has(event.FlagAcked):
			c.Outcome = OutcomeHandshakeOverflow // tcp_check_req remembers the third packet
		}
	case event.EndReset:
		c.Outcome = OutcomeHandshakeReset
		c.began(InitiatorPeer)
	case event.EndResetSent:
		c.Outcome = OutcomeResetProtocol
		if e.Unread > e.Unsent { // sk_acceptq_is_full, with tcp_abort_on_overflow
			c.Outcome = OutcomeHandshakeOverflow
		}
		c.began(InitiatorLocal)
	case event.EndKilled:
		c.Outcome = OutcomeKilled
		c.began(InitiatorLocal)
	case event.EndNetns:
		c.Why = WhyNetns
	case event.EndListener:
		c.Why = WhyListener
		c.began(InitiatorLocal)
	case event.EndICMP:
		c.Why = WhyICMP
	default:
		c.Why = WhyNoCause
	}
}
