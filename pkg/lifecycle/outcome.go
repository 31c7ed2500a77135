// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"syscall"

	"github.com/stated-tcp/stated/pkg/event"
)

// isBirth reports whether a transition begins a connection: connect(), listen(),
// or the child of a listener.
func isBirth(from, to event.State) bool {
	switch from {
	case event.StateListen:
		return to != event.StateClose && to != event.StateListen
	case event.StateClose:
		return to == event.StateSynSent || to == event.StateListen
	}
	return false
}

// learnAlone takes over what an event knows of the connection by itself.
func (t *Table) learnAlone(c *Conn, e *event.Event) {
	if !c.Shared.knows(e) {
		s := *c.Shared
		s.learn(e)
		c.Shared = t.shares.of(&s)
	}
	c.learn(e)
}

// own takes over who the connection belongs to.
func (t *Table) own(c *Conn, task event.Task, source event.OwnerSource) {
	if !c.Shared.outranked(task.PID, source) {
		return
	}
	s := *c.Shared
	s.Owner = Owner{Task: task, Source: source}
	c.Shared = t.shares.of(&s)
}

// neverSent reports whether e ends a connect() of which no SYN went, where the socket
// had a connection before or its SYN was put off (Fast Open): more than a SYN seems to
// be on its way, as tcp_disconnect raises write_seq, and tcp_connect_init, which makes
// snd_una of it, did not run. Nor did it clear sk_err, which is that connection's.
func neverSent(e *event.Event) bool {
	return e.Old == event.StateSynSent && e.New == event.StateClose && !e.Flags.Has(event.FlagPartial) &&
		uint64(e.Unsent) > 1+e.BytesSent-min(e.BytesSent, e.BytesResent)
}

// inVain reports whether connect() itself failed: the port, too, is the one that the
// connection before had (__inet_put_port leaves inet_sport). close() shuts both sides.
func (c *Conn) inVain(e *event.Event) bool {
	return c.Epoch > 0 && e.Shutdown != shutdownMask && neverSent(e)
}

func (c *Conn) learn(e *event.Event) {
	if c.Local.Port() == 0 && e.Local.IsValid() && !c.inVain(e) {
		c.Local = EndpointOf(e.Local)
	}
	if c.Peer.Port() == 0 && e.Peer.IsValid() {
		c.Peer = EndpointOf(e.Peer)
	}
	if e.Flags.Has(event.FlagPartial) {
		c.Uncounted = c.Uncounted || e.Kind == event.KindState
		return
	}
	c.Uncounted = false
	if e.Flags.Has(event.FlagCookie) {
		c.Cookie = true
	}
	c.BytesSent = e.BytesSent - min(e.BytesSent, e.BytesResent)
	c.BytesReceived, c.unacked = e.BytesReceived, e.Unsent > 0
	if e.Flags.Has(event.FlagDone) {
		c.BytesReceived -= min(c.BytesReceived, 1)
	}
	if e.Old == event.StateListen || e.New == event.StateListen {
		c.Unread, c.Unsent = e.Unread, e.Unsent
	} else {
		c.Unread, c.EOFUnread = e.UnreadPayload()
		c.Unsent = e.UnsentPayload()
	}
	if neverSent(e) {
		c.Unsent, c.unacked = 0, !c.inVain(e)
	}
	if e.SRTT != 0 {
		c.SRTT = e.SRTT
	}
	c.Retransmits = max(c.Retransmits, e.Retransmits)
}

// closedBy remembers who closed our side first, or killed the socket.
func (t *Table) closedBy(c *Conn, e *event.Event) {
	if !e.Flags.Has(event.FlagTask) {
		return
	}
	switch {
	case e.New == event.StateClose && syscall.Errno(e.Err) == syscall.ECONNABORTED:
		// the killer, also where a process closed before
	case c.Closer != nil:
		return
	case e.Old != e.New && e.New != event.StateFinWait1 && e.New != event.StateLastAck && e.New != event.StateClose:
		return
	}
	c.Closer = t.shares.task(&e.Task, c.Shared)
}

// judge takes over what a transition says of role and initiator.
func (c *Conn) judge(e *event.Event) {
	switch {
	case e.Old == event.StateListen && e.New != event.StateClose:
		c.Role = RoleServer
	case e.New == event.StateSynSent:
		c.Role = RoleClient
	case e.New == event.StateListen:
		c.Role = RoleListener
	case e.Old == event.StateSynSent && e.New == event.StateSynRecv:
		c.Role = RoleSimultaneous
	}
	switch e.New {
	case event.StateFinWait1:
		c.began(InitiatorLocal)
	case event.StateCloseWait:
		c.began(InitiatorPeer)
	case event.StateClosing:
		c.Initiator = InitiatorBoth
	case event.StateClose:
		if c.Err = e.Err; neverSent(e) && syscall.Errno(e.Err) != syscall.ECONNABORTED {
			c.Err = 0
		}
		c.end = e.Flags
	}
}

// weighReset decides what a RST that was sent before a change of state has to
// do with it. Timers and SOCK_DESTROY send theirs right before the end; any other
// answers a segment that was wrong (tcp_rcv_synsent_state_process), and
// the connection goes on.
func (c *Conn) weighReset(to event.State, at int64) {
	if c.resetPre && (to != event.StateClose || at > c.Rare.resetUntil) {
		c.resetPre, c.Reset = false, event.ResetUnknown
	}
}

func (c *Conn) began(i Initiator) {
	if c.Initiator == InitiatorUnknown {
		c.Initiator = i
	}
}

// conclude names the outcome from all that is known at -> CLOSE, and again when
// a RST was sent right after it.
func (c *Conn) conclude(noResets bool) {
	c.Outcome, c.Why = OutcomeUnknown, WhyNone
	last := c.Spans.Last().State
	errno := syscall.Errno(c.Err)
	switch {
	case c.end.Has(event.FlagPartial):
		c.concludePartial(last)
	case errno == syscall.ECONNABORTED:
		c.Outcome = OutcomeKilled
		c.began(InitiatorLocal)
	case last == event.StateListen:
		c.Outcome = OutcomeListenEnded
		c.began(InitiatorLocal)
	case last == event.StateSynSent:
		c.concludeConnect(errno, noResets)
	case c.orphanReset(last):
		c.Outcome = OutcomeResetProtocol
		c.began(InitiatorLocal)
	case c.resetIn && c.resetOut || c.Reset == event.ResetAbortOnData:
		// tcp_rcv_state_process calls tcp_reset() for data after our close, too
		c.Outcome = OutcomeResetDataAfterClose
		c.began(InitiatorLocal)
	case c.resetIn || noResets && (errno == syscall.ECONNRESET || errno == syscall.EPIPE):
		c.Outcome = OutcomeResetByPeer
		c.began(InitiatorPeer)
	case c.Reset == event.ResetKeepalive || c.resetPre && byTimer(errno):
		// before 6.10 the reason is not told, but no other timer sends a RST
		c.Outcome = OutcomeResetKeepalive
		c.began(InitiatorLocal)
	case errno == syscall.ECONNRESET || errno == syscall.EPIPE:
		c.Why = WhyNoReset
	case c.resetOut:
		c.concludeClose(last)
	case byTimer(errno) && (errno == syscall.ETIMEDOUT || !c.finAcked(last)):
		c.Outcome = OutcomeTimedOut
	case errno == 0 && c.Protocol == event.ProtoMPTCP:
		c.Outcome = OutcomeClosed // its subflows tell more
	default:
		c.concludeClose(last)
	}
}

// orphanReset reports whether the kernel got rid of a socket that no process has: out
// of memory, or more than tcp_max_orphans, at a timer (tcp_out_of_resources) or at
// close() itself (__tcp_close), or in FIN_WAIT2 for too long (tcp_keepalive_timer).
// Before 6.10 no reason is told, but while a FIN waits there is no keep-alive, and
// what else close() sends a RST for it does before SOCK_DEAD.
func (c *Conn) orphanReset(last event.State) bool {
	if c.Reset == event.ResetAbortOnMemory {
		return true
	}
	if !c.end.Has(event.FlagDead) {
		return false
	}
	switch last {
	case event.StateFinWait1, event.StateClosing, event.StateLastAck:
		return c.resetPre || c.resetOut && !c.resetIn && c.Reset == event.ResetUnknown
	case event.StateFinWait2:
		return c.resetPre
	}
	return false
}

// byTimer reports whether a timer may have left this error behind (tcp_write_err):
// ETIMEDOUT, or the soft error that came while retrying, of ICMP or of routing. With
// IP_RECVERR an ICMP error is there, too, and ends nothing (tcp_v4_err). EBADMSG is
// of kTLS, which closes nothing (tls_err_abort), or of an MPTCP subflow that is
// reset (subflow_check_data_avail).
func byTimer(errno syscall.Errno) bool {
	switch errno {
	case 0, syscall.ECONNRESET, syscall.EPIPE, syscall.EBADMSG:
		return false
	}
	return true
}

// finAcked reports whether the peer had acknowledged our FIN: nothing is sent again
// then, and no timer waits for an answer but keep-alive, which sends a RST.
func (c *Conn) finAcked(last event.State) bool {
	switch last {
	case event.StateFinWait2:
		return true
	case event.StateClosing, event.StateLastAck:
		return !c.unacked
	}
	return false
}

func (c *Conn) concludePartial(last event.State) {
	switch last {
	case event.StateLastAck, event.StateFinWait2, event.StateClosing:
		c.Outcome = OutcomeClosed
	case event.StateListen:
		c.Outcome = OutcomeListenEnded
		c.began(InitiatorLocal)
	default:
		c.Why = WhyNoErrors
	}
}

// concludeConnect is about a socket that ended in SYN_SENT.
func (c *Conn) concludeConnect(errno syscall.Errno, noResets bool) {
	switch {
	case errno == syscall.ECONNREFUSED && (c.resetIn || noResets):
		c.Outcome = OutcomeRefused
		c.began(InitiatorPeer)
	case errno == syscall.ETIMEDOUT:
		c.Outcome = OutcomeConnectTimeout
	case errno != 0:
		c.Outcome = OutcomeUnreachable // an ICMP error, tcp_v4_err
	case c.Local.Port() == 0 || !c.unacked:
		// inet_hash_connect found none, or the tuple in use: tcp_v4_connect and
		// tcp_v6_connect choose a sequence number after that, which a SYN takes
		c.Outcome = OutcomeNoLocalPort
		c.began(InitiatorLocal)
	default:
		c.Outcome = OutcomeConnectCancelled
		c.began(InitiatorLocal)
	}
}

// concludeClose is about an end that no error on the socket explains.
func (c *Conn) concludeClose(last event.State) {
	switch last {
	case event.StateSynRecv, event.StateEstablished, event.StateCloseWait:
		c.concludeAbort(last)
		return
	case event.StateFinWait2:
		if c.resetOut {
			c.abortClosed()
			return
		}
		c.Outcome = OutcomeClosed
	case event.StateLastAck, event.StateClosing:
		// our FIN may not have been acknowledged, or sent: close() sends a RST for
		// unread data in any state, and tcp_disconnect for a FIN that waits
		switch {
		case c.resetOut:
			c.abort()
		case c.unacked:
			c.Why = WhyFinUnanswered // SO_LINGER 0 (tcp_disconnect), or its namespace went
		default:
			c.Outcome = OutcomeClosed
		}
	default:
		if c.resetOut {
			c.abort()
			return
		}
		c.Why = WhyNoReason
	}
}

// concludeAbort is about a socket that went to CLOSE with no FIN of ours.
func (c *Conn) concludeAbort(last event.State) {
	unowned := c.end.Has(event.FlagNoSocket) && !c.end.Has(event.FlagDead) && !c.Subflow
	switch {
	case unowned && c.resetOut:
		c.Outcome = OutcomeResetListenerClosed // inet_csk_listen_stop
		c.began(InitiatorLocal)
	case c.resetOut:
		c.abort()
	case last == event.StateSynRecv:
		c.Outcome = OutcomeHandshakeFailed
	default:
		c.Why = WhyNoReason
	}
}

// abortClosed names why we sent a RST after our FIN was acknowledged. Without a
// reason, before 6.10: TCP_LINGER2 below zero and unread data make close() do so
// (__tcp_close), data do otherwise (tcp_rcv_state_process).
func (c *Conn) abortClosed() {
	if c.Reset != event.ResetUnknown || c.Unread > 0 || c.closed == event.StateFinWait2 {
		c.abort()
		return
	}
	c.began(InitiatorLocal)
	c.Outcome = OutcomeResetDataAfterClose
}

// abort names why we sent a RST. Kernels before 6.10 do not say it; then unread
// data tells the one common cause from the other.
func (c *Conn) abort() {
	c.began(InitiatorLocal)
	switch c.Reset {
	case event.ResetAbortOnClose:
		c.Outcome = OutcomeResetUnreadData
	case event.ResetState, event.ResetAbortOnLinger, event.ResetDisconnectData:
		c.Outcome = OutcomeResetLinger
	case event.ResetUnknown:
		c.Outcome = OutcomeResetLinger
		if c.Unread > 0 {
			c.Outcome = OutcomeResetUnreadData
		}
	default:
		c.Outcome = OutcomeResetProtocol
	}
}
