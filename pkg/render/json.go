// SPDX-License-Identifier: Apache-2.0

package render

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Records are flat: each key is an attribute's name, OpenTelemetry's where it
// has one (semantic conventions 1.43), ours under stated. What is unknown is
// absent. Identities of 64 bits are strings.

func resourceOf(h Host) []byte {
	b := append([]byte(nil), `,"service.name":"stated"`...)
	for _, kv := range [][2]string{
		{"service.version", h.Version}, {"host.name", h.Name}, {"host.id", h.ID},
		{"stated.boot.id", h.BootID}, {"stated.run.id", h.RunID},
	} {
		if kv[1] != "" {
			b = key(b, kv[0])
			b = appendString(b, []byte(kv[1]))
		}
	}
	return append(b, `,"os.type":"linux"`...)
}

func key(b []byte, name string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	return append(b, '"', ':')
}

func text(b []byte, name, value string) []byte {
	b = append(key(b, name), '"')
	b = append(b, value...)
	return append(b, '"')
}

func number(b []byte, name string, v int64) []byte { return strconv.AppendInt(key(b, name), v, 10) }

func identity(b []byte, name string, v uint64) []byte {
	b = append(key(b, name), '"')
	return append(strconv.AppendUint(b, v, 10), '"')
}

// when adds a time in RFC 3339 with nanoseconds in UTC, quoted. The part down
// to the second is kept from one record to the next.
func (r *Writer) when(b []byte, boot int64) []byte {
	wall := boot + r.offset
	second, nanos := wall/1e9, wall%1e9
	if second != r.second {
		r.second = second
		r.stamp = time.Unix(second, 0).UTC().AppendFormat(r.stamp[:0], "2006-01-02T15:04:05.")
	}
	b = append(b, '"')
	b = append(b, r.stamp...)
	digits := [11]byte{9: 'Z', 10: '"'}
	for i, n := 8, uint32(nanos); i >= 0; i, n = i-1, n/10 {
		digits[i] = byte('0' + n%10)
	}
	return append(b, digits[:]...)
}

// begin adds what all records have.
func (r *Writer) begin(name, severity string, boot int64) {
	r.seq++
	r.start = len(r.buf)
	b := append(r.buf, `{"schema":"stated/1","timestamp":`...)
	b = r.when(b, boot)
	b = text(b, "event.name", name)
	b = text(b, "severity_text", severity)
	if r.opts.Host.RunID != "" {
		b = append(key(b, "log.record.uid"), '"')
		b = append(b, r.opts.Host.RunID...)
		b = append(b, '-')
		b = strconv.AppendUint(b, r.seq, 10)
		b = append(b, '"')
	}
	b = strconv.AppendUint(key(b, "stated.seq"), r.seq, 10)
	r.buf = append(b, r.resource...)
}

func (r *Writer) end() {
	r.buf = append(r.buf, '}')
	if r.opts.Format == FormatECS {
		r.line, _ = r.ecs.Append(r.line[:0], r.buf[r.start:]) // the record is JSON: it was just made
		r.buf = append(r.buf[:r.start], r.line...)
	}
	r.buf = append(r.buf, '\n')
}

// about adds what a record says of the connection itself.
func (r *Writer) about(b []byte, c *lifecycle.Conn) []byte {
	b = text(b, "network.transport", "tcp")
	if c.Local.IsValid() {
		kind := "ipv4"
		if c.Local.Is6() {
			kind = "ipv6"
		}
		b = text(b, "network.type", kind)
	}
	b = end(b, "network.local", c.Local.AddrPort())
	if c.Role != lifecycle.RoleListener {
		b = end(b, "network.peer", c.Peer.AddrPort())
	}
	b = append(key(b, "stated.connection.id"), '"')
	b = appendID(b, c.Socket, c.FirstEvent)
	b = append(b, '"')
	if !c.OwnID {
		b = identity(b, "stated.socket.cookie", uint64(c.Socket))
	}
	if c.Netns != 0 {
		b = number(b, "stated.netns.inode", int64(c.Netns))
	}
	b = text(b, "stated.connection.role", c.Role.String())
	if c.Protocol == event.ProtoMPTCP {
		b = append(b, `,"stated.mptcp":"connection"`...)
		if m := c.Multipath(); m != nil && c.Role != lifecycle.RoleListener {
			b = number(b, "stated.connection.subflows", int64(m.Subflows))
		}
	} else if c.Subflow {
		b = append(b, `,"stated.mptcp":"subflow"`...)
		if m := c.Multipath(); m != nil {
			b = append(key(b, "stated.subflow.connection.id"), '"')
			b = append(appendID(b, m.Socket, m.FirstEvent), '"')
		}
	}
	if c.Kernel {
		b = append(b, `,"stated.socket.kernel":true`...)
	}
	b = text(b, "stated.process.source", c.Owner.Source.String())
	b = process(b, "process.", &c.Owner.Task)
	b = r.program(b, &c.Owner.Task)
	if c.UIDKnown {
		b = identity(b, "user.id", uint64(c.UID))
	}
	if c.Cgroup != 0 {
		b = identity(b, "stated.cgroup.id", c.Cgroup)
	}
	return b
}

// appendID adds an identity that no other connection of this boot has: the
// socket and when the connection began or was found.
func appendID(b []byte, socket event.SocketID, first int64) []byte {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], uint64(socket))
	binary.BigEndian.PutUint64(id[8:], uint64(first))
	return hex.AppendEncode(b, id[:])
}

func end(b []byte, name string, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `.address":"`...)
	b = a.Addr().AppendTo(b)
	b = append(b, '"')
	if a.Port() != 0 {
		b = append(b, ',', '"')
		b = append(b, name...)
		b = append(b, `.port":`...)
		b = strconv.AppendUint(b, uint64(a.Port()), 10)
	}
	return b
}

func process(b []byte, prefix string, t *event.Task) []byte {
	if t.IsZero() {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, prefix...)
	b = append(b, `pid":`...)
	b = strconv.AppendUint(b, uint64(t.PID), 10)
	b = append(b, ',', '"')
	b = append(b, prefix...)
	b = append(b, `executable.name":`...)
	return appendString(b, t.Comm.Bytes())
}

// miniCauses are what ends a mini socket, in the words of cause.
var miniCauses = [...]string{
	event.EndUnknown: "unknown", event.EndTimer: "timeout", event.EndReset: "rst_received", event.EndResetSent: "rst_sent",
	event.EndSyn: "syn_received", event.EndReused: "port_reused", event.EndKilled: "killed", event.EndNetns: "netns_gone",
	event.EndListener: "listener_closed", event.EndICMP: "icmp",
}

// handOver reports whether a transition to CLOSE is the end of the socket, not
// of the connection: what is left goes on in a mini socket.
func handOver(c *lifecycle.Conn, e *event.Event) bool {
	return e.New == event.StateClose && c.Lingers != event.StateNone && e.Kind == event.KindState && !e.Flags.Has(event.FlagMini)
}

// cause says what made a transition, from facts only.
func cause(c *lifecycle.Conn, e *event.Event) string {
	switch {
	case e.Kind == event.KindClock:
		return "none"
	case e.Kind != event.KindState:
		return "found"
	case e.Flags.Has(event.FlagMini) && e.New == event.StateClose:
		return miniCauses[e.Cause]
	case e.Flags.Has(event.FlagMini) && e.New == event.StateTimeWait:
		return "fin_received"
	case e.Old == e.New:
		return "local_close"
	}
	switch e.New {
	case event.StateSynSent:
		return "connect"
	case event.StateListen:
		return "listen"
	case event.StateSynRecv, event.StateEstablished:
		return "handshake"
	case event.StateFinWait1, event.StateLastAck:
		return "local_close"
	case event.StateCloseWait, event.StateClosing:
		return "fin_received"
	case event.StateFinWait2:
		return "fin_acked"
	case event.StateClose:
		switch c.Outcome {
		case lifecycle.OutcomeClosed:
			if e.Old == event.StateLastAck {
				return "fin_acked"
			}
			return "fin_received"
		case lifecycle.OutcomeRefused, lifecycle.OutcomeResetByPeer:
			return "rst_received"
		case lifecycle.OutcomeTimedOut, lifecycle.OutcomeConnectTimeout, lifecycle.OutcomeResetKeepalive:
			return "timeout"
		case lifecycle.OutcomeConnectCancelled, lifecycle.OutcomeListenEnded, lifecycle.OutcomeNoLocalPort:
			return "local_close"
		case lifecycle.OutcomeKilled:
			return "killed"
		}
	}
	return "unknown"
}

func (r *Writer) jsonTransition(c *lifecycle.Conn, e *event.Event) {
	r.begin("tcp.state_change", "INFO", e.Time)
	b := r.about(r.buf, c)
	state := e.New
	if handOver(c, e) {
		state = c.Lingers
	}
	b = text(b, "network.connection.state", state.Name(event.NamingOTel))
	if state != e.New {
		b = text(b, "stated.state.known", c.LingersKnown.String())
	}
	if e.Kind == event.KindState {
		b = text(b, "stated.state.previous", e.Old.Name(event.NamingOTel))
		if d, known, ok := previous(c); ok && e.Old != e.New {
			b = number(b, "stated.state.previous_duration_ns", d)
			b = text(b, "stated.state.previous_known", known.String())
		}
	} else if e.Kind == event.KindClock {
		since, known := c.Since()
		b = number(b, "stated.state.duration_ns", e.Time-since)
		if known != lifecycle.Seen {
			known = lifecycle.AtLeast
		}
		b = text(b, "stated.state.duration_known", known.String())
	} else {
		b = append(b, `,"stated.snapshot":true`...)
		if s := c.Spans.Last(); s.Start != 0 && s.Known == lifecycle.AtLeast {
			b = number(b, "stated.state.duration_ns", e.Time-s.Start)
			b = text(b, "stated.state.duration_known", s.Known.String())
		}
	}
	b = text(b, "stated.state.cause", cause(c, e))
	if e.Err != 0 {
		b = number(b, "stated.errno", int64(e.Err))
	}
	if c.Gap {
		b = append(b, `,"stated.connection.gap":true`...)
	}
	if !e.Flags.Has(event.FlagPartial) && !e.Flags.Has(event.FlagMini) {
		b = numbers(b, c)
	}
	b = number(b, "stated.event.cpu", int64(e.CPU))
	b = identity(b, "stated.event.kernel_time_ns", uint64(e.Time))
	r.buf = r.message(b, c, func(b []byte) []byte {
		if e.Kind == event.KindState {
			b = append(b, e.Old.String()...)
			b = append(b, " → "...)
		}
		return append(b, state.String()...)
	})
	r.end()
}

func numbers(b []byte, c *lifecycle.Conn) []byte {
	if c.Role == lifecycle.RoleListener {
		b = number(b, "stated.listener.queue", int64(c.Unread))
		if n := c.Overflows(); n != 0 {
			b = number(b, "stated.listener.overflows", int64(n))
		}
		return number(b, "stated.listener.queue_limit", int64(c.Unsent))
	}
	b = number(b, "stated.bytes.sent", int64(c.BytesSent))
	b = number(b, "stated.bytes.received", int64(c.BytesReceived))
	b = number(b, "stated.tcp.retransmits", int64(c.Retransmits))
	if c.SRTT != 0 {
		b = number(b, "stated.tcp.srtt_us", int64(c.SRTT))
	}
	b = number(b, "stated.tcp.rx_queue_bytes", int64(c.Unread))
	return number(b, "stated.tcp.tx_queue_bytes", int64(c.Unsent))
}

// message adds a sentence for a person: owner, tuple, and what adds.
func (r *Writer) message(b []byte, c *lifecycle.Conn, what func([]byte) []byte) []byte {
	m := appendOwner(r.line[:0], c)
	m = appendTuple(append(m, ' '), c)
	m = what(append(m, ' '))
	r.line = m
	return quote(key(b, "message"), m)
}

func (r *Writer) jsonConn(c *lifecycle.Conn) {
	severity := "INFO"
	if !Normal(c.Outcome) {
		severity = "WARN"
	}
	r.begin("tcp.connection", severity, c.Until())
	b := r.about(r.buf, c)
	ended := c.End != 0 // else it was given up
	state := event.StateClose
	start, known := c.Start()
	if !ended {
		state, known = c.State, lifecycle.AtLeast
	}
	b = text(b, "network.connection.state", state.Name(event.NamingOTel))
	if start != 0 {
		b = r.when(key(b, "stated.connection.start"), start)
		b = number(b, "stated.connection.duration_ns", c.Until()-start)
		b = text(b, "stated.connection.duration_known", known.String())
	}
	if ended {
		b = r.when(key(b, "stated.connection.end"), c.End)
	}
	complete := ended && c.FromStart && !c.Gap
	b = strconv.AppendBool(key(b, "stated.connection.complete"), complete)
	switch {
	case !ended:
		b = text(b, "stated.connection.incomplete_reason", "tracker_full")
	case c.Gap:
		b = text(b, "stated.connection.incomplete_reason", "events_lost")
	case !c.FromStart:
		b = text(b, "stated.connection.incomplete_reason", "started_before_agent")
	}
	b = states(b, c)
	b = text(b, "stated.close.initiator", c.Initiator.String())
	b = text(b, "stated.close.reason", c.Outcome.String())
	if c.Why != lifecycle.WhyNone {
		b = text(b, "stated.close.unknown_why", c.Why.String())
	}
	if c.Err != 0 {
		b = number(b, "stated.errno", int64(c.Err))
	}
	if c.Reset != event.ResetUnknown {
		b = text(b, "stated.reset.reason", c.Reset.String())
	}
	if c.Closer != nil {
		b = process(b, "stated.closer.process.", c.Closer)
		b = r.executable(b, "stated.closer.process.", c.Closer)
	}
	if wait, ok := c.AcceptWait(); ok {
		b = number(b, "stated.accept.wait_ns", wait)
	}
	if c.Cookie {
		b = append(b, `,"stated.handshake.cookie":true`...)
	}
	if c.HeldClosed() {
		b = append(b, `,"stated.descriptor.open":true`...)
	}
	if c.Crowded {
		b = append(b, `,"stated.time_wait.full":true`...)
	}
	if !c.Uncounted {
		b = numbers(b, c)
	}
	r.buf = r.message(b, c, func(b []byte) []byte { return appendOutcome(b, c) })
	r.end()
}

// states adds the path and each state with its time; of a state that lasts,
// or whose beginning is unknown, there is no duration.
func states(b []byte, c *lifecycle.Conn) []byte {
	b = append(key(b, "stated.connection.path"), '"')
	for i, s := range c.Spans.All() {
		if i > 0 {
			b = append(b, '>')
		}
		b = append(b, s.State.Name(event.NamingOTel)...)
	}
	if c.End != 0 {
		b = append(b, ">closed"...)
	}
	b = append(b, '"')
	b = append(key(b, "stated.connection.states"), '[')
	start, _ := c.Start()
	for i, s := range c.Spans.All() {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"state":"`...)
		b = append(b, s.State.Name(event.NamingOTel)...)
		b = append(b, `","known":"`...)
		known := s.Known
		if c.End == 0 && i == c.Spans.Len()-1 {
			known = lifecycle.AtLeast
		}
		b = append(b, known.String()...)
		b = append(b, '"')
		if s.Start != 0 {
			if start != 0 {
				b = number(b, "offset_ns", s.Start-start)
			}
			b = number(b, "duration_ns", c.SpanEnd(i, c.LastEvent)-s.Start)
		}
		b = append(b, '}')
	}
	if c.Lingers != event.StateNone {
		b = append(b, `,{"state":"`...)
		b = append(b, c.Lingers.Name(event.NamingOTel)...)
		b = append(b, `","known":"`...)
		b = append(b, c.LingersKnown.String()...)
		b = append(b, '"')
		if start != 0 && c.LingerStart != 0 {
			b = number(b, "offset_ns", c.LingerStart-start)
		}
		if c.LingerEnd != 0 && c.LingerStart != 0 {
			b = number(b, "duration_ns", c.LingerEnd-c.LingerStart)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

func (r *Writer) jsonLost(e *event.Event) {
	r.begin("stated.gap", "ERROR", e.Time)
	b := text(r.buf, "stated.gap.stage", "ringbuf")
	b = strconv.AppendUint(key(b, "stated.gap.events"), e.Count, 10)
	r.buf = append(b, `,"message":"events lost: the kernel's buffer was full"`...)
	r.end()
}
