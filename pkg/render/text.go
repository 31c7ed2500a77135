// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"net/netip"
	"strconv"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Width is how many columns text uses at most, but for changes of state: each is one
// line. Below minWidth it is broken by the terminal.
const (
	Width    = 100
	minWidth = 60
)

const etimedout = uint16(syscall.ETIMEDOUT)

const (
	styleBold  = "\x1b[1m"
	styleDim   = "\x1b[2m"
	styleRed   = "\x1b[31m"
	styleReset = "\x1b[0m"
)

func (r *Writer) styled(style string, text []byte) {
	if !r.opts.Color {
		r.buf = append(r.buf, text...)
		return
	}
	r.buf = append(r.buf, style...)
	r.buf = append(r.buf, text...)
	r.buf = append(r.buf, styleReset...)
}

// indent is the width of a time of day and two blanks.
const indent = 14

// put adds a piece of a line behind a blank or two, or on a line of its own
// where it does not fit.
func (r *Writer) put(style string, blanks int, piece []byte) {
	n := utf8.RuneCount(piece)
	if r.column+blanks+n > r.opts.Width && r.column > indent {
		r.breakLine()
	}
	if r.column > indent {
		r.buf = append(r.buf, "  "[:blanks]...)
		r.column += blanks
	}
	r.column += n
	if style == "" {
		r.buf = append(r.buf, piece...)
		return
	}
	r.styled(style, piece)
}

func (r *Writer) breakLine() {
	r.buf = append(r.buf, "\n              "...)
	r.column = indent
	r.lines++
}

// textConn shows a connection: who, where, how long and how it ended; behind
// or below it the states and numbers. That takes two lines, more with long
// addresses or a long path.
func (r *Writer) textConn(c *lifecycle.Conn) {
	r.buf = append(r.buf, r.clock(c.Until())...)
	r.buf = append(r.buf, "  "...)
	r.column, r.lines = indent, 1
	r.put(styleBold, 0, appendOwner(r.line[:0], c))
	r.put("", 2, appendArrow(AppendAddr(r.line[:0], c.Local.AddrPort()), c))
	if c.Role != lifecycle.RoleListener {
		r.put("", 1, AppendAddr(r.line[:0], c.Peer.AddrPort()))
	}
	if start, known := c.Start(); start != 0 {
		b := r.line[:0]
		if known == lifecycle.AtLeast || c.End == 0 {
			b = append(b, "≥"...)
		}
		r.put("", 2, AppendDuration(b, c.Until()-start))
	}
	style := ""
	if !Normal(c.Outcome) {
		style = styleRed
	}
	r.put(style, 2, appendOutcome(r.line[:0], c))
	if c.Protocol == event.ProtoMPTCP || c.Subflow {
		r.put(styleDim, 2, appendMultipath(r.line[:0], c))
	}
	if r.lines == 1 {
		r.breakLine()
	}
	r.putSteps(r.appendStates(r.line[:0], c))
	facts := appendFacts(r.line[:0], c)
	if r.column+utf8.RuneCount(facts) > r.opts.Width {
		r.breakLine()
		facts = bytes.TrimLeft(facts, " ")
	}
	if len(facts) > 0 {
		r.styled(styleDim, facts)
	}
	r.buf = append(r.buf, '\n')
}

const step = " · "

// putSteps adds a path, which it breaks between two steps where it is longer than a line.
func (r *Writer) putSteps(path []byte) {
	for utf8.RuneCount(path) > r.opts.Width-indent {
		at := bytes.LastIndex(clip(path, r.opts.Width-indent+1), []byte(step))
		if at < 0 {
			break
		}
		r.put(styleDim, 2, path[:at+len(step)-1])
		path = path[at+len(step):]
	}
	r.put(styleDim, 2, path)
}

// clip returns the first n columns of text.
func clip(text []byte, n int) []byte {
	at := 0
	for ; n > 0 && at < len(text); n-- {
		_, size := utf8.DecodeRune(text[at:])
		at += size
	}
	return text[:at]
}

// cut ends text at n columns, with a mark.
func cut(text []byte, n int) []byte {
	if utf8.RuneCount(text) <= n {
		return text
	}
	return append(clip(text, n-1), "…"...)
}

// appendStates adds each state and its duration: ~ is inferred, ≥ at least.
func (r *Writer) appendStates(b []byte, c *lifecycle.Conn) []byte {
	for i, s := range c.Spans.All() {
		if i > 0 {
			b = append(b, step...)
		}
		if s.Known == lifecycle.Inferred {
			b = append(b, '~')
		}
		b = append(b, s.State.Name(r.opts.Names)...)
		if s.Start == 0 {
			b = append(b, " ?"...)
			continue
		}
		b = append(b, ' ')
		if s.Known == lifecycle.AtLeast {
			b = append(b, "≥"...)
		}
		b = AppendDuration(b, c.SpanEnd(i, c.LastEvent)-s.Start)
	}
	if c.Lingers != event.StateNone {
		b = append(b, step...)
		if c.LingersKnown == lifecycle.Inferred {
			b = append(b, '~')
		}
		b = append(b, c.Lingers.Name(r.opts.Names)...)
		switch {
		case c.LingerStart == 0:
		case c.LingerEnd != 0:
			b = AppendDuration(append(b, ' '), c.LingerEnd-c.LingerStart)
		case c.Lingers == event.StateTimeWait:
			b = append(b, " 60s…"...) // TCP_TIMEWAIT_LEN, include/net/tcp.h
		default:
			b = append(b, "…"...)
		}
	}
	if c.Crowded {
		b = append(append(b, step...), event.StateTimeWait.Name(r.opts.Names)...)
		b = append(b, '?')
	}
	if c.Gap {
		b = append(b, "  GAP: events are missing"...)
	}
	return b
}

// appendMultipath says what an MPTCP connection has, or what a subflow is of: by
// the end that tells it from others of the same service.
func appendMultipath(b []byte, c *lifecycle.Conn) []byte {
	m := c.Multipath()
	switch {
	case c.Protocol == event.ProtoMPTCP:
		b = append(b, "MPTCP"...)
		if m != nil && m.Subflows > 0 {
			b = appendCount(append(b, ", "...), m.Subflows, "subflow")
		}
	case c.Subflow:
		b = append(b, "MPTCP subflow"...)
		if m != nil && c.Role == lifecycle.RoleServer && m.Peer.IsValid() {
			b = AppendAddr(append(b, " of "...), m.Peer.AddrPort())
		} else if m != nil && m.Local.IsValid() {
			b = AppendAddr(append(b, " of "...), m.Local.AddrPort())
		}
	}
	return b
}

// slowAccept is from when on the wait for accept() is worth a word.
const slowAccept = int64(time.Millisecond)

// appendFacts adds bytes, round trip and retransmissions, where there were any.
func appendFacts(b []byte, c *lifecycle.Conn) []byte {
	if c.Role == lifecycle.RoleListener {
		if n := c.Overflows(); n != 0 {
			b = strconv.AppendUint(append(b, "   SYNs dropped by a full queue "...), n, 10)
		}
		return b
	}
	if c.Cookie {
		b = append(b, " SYN cookie"...)
	}
	if !c.Uncounted && (c.BytesSent != 0 || c.BytesReceived != 0) {
		b = AppendBytes(append(b, "   ↑"...), c.BytesSent)
		b = AppendBytes(append(b, " ↓"...), c.BytesReceived)
	}
	if wait, ok := c.AcceptWait(); ok && wait >= slowAccept {
		b = AppendDuration(append(b, " accepted after "...), wait)
	}
	if !c.Uncounted && c.SRTT != 0 {
		b = AppendDuration(append(b, " rtt "...), int64(c.SRTT)*1000)
	}
	if !c.Uncounted && c.Retransmits != 0 {
		b = strconv.AppendUint(append(b, " retransmits "...), uint64(c.Retransmits), 10)
	}
	return b
}

// textTransition shows one change of state in one line.
func (r *Writer) textTransition(c *lifecycle.Conn, e *event.Event) {
	r.buf = append(r.buf, r.clock(e.Time)...)
	r.buf = append(r.buf, "  "...)
	who := appendOwner(r.line[:0], c)
	n := len(who)
	who = appendTuple(append(who, "  "...), c)
	who = append(who, "  "...)
	switch {
	case e.Kind == event.KindClock:
		who = append(append(append(who, "still in "...), e.New.Name(r.opts.Names)...), ' ')
		since, known := c.Since()
		if known != lifecycle.Seen {
			who = append(who, "≥"...)
		}
		who = AppendDuration(who, e.Time-since)
	case e.Kind != event.KindState:
		who = append(who, "found in "...)
		who = append(who, e.New.Name(r.opts.Names)...)
		if s := c.Spans.Last(); s.Start != 0 && s.Known == lifecycle.AtLeast {
			who = AppendDuration(append(who, " ≥"...), e.Time-s.Start)
		}
	case e.Old == e.New:
		who = append(who, e.New.Name(r.opts.Names)...)
		who = append(who, " close() called"...)
	default:
		who = append(who, e.Old.Name(r.opts.Names)...)
		if d, known, ok := previous(c); ok {
			who = append(who, ' ')
			switch known {
			case lifecycle.AtLeast:
				who = append(who, "≥"...)
			case lifecycle.Inferred:
				who = append(who, '~')
			}
			who = AppendDuration(who, d)
		}
		who = append(who, " → "...)
		if handOver(c, e) {
			if c.LingersKnown == lifecycle.Inferred {
				who = append(who, '~')
			}
			who = append(who, c.Lingers.Name(r.opts.Names)...)
			break
		}
		who = append(who, e.New.Name(r.opts.Names)...)
		if e.Cause != event.EndUnknown && e.Cause != event.EndTimer {
			who = append(append(who, "  "...), endings[e.Cause]...)
		}
	}
	if e.New == event.StateCloseWait && c.Unread > 0 {
		who = strconv.AppendUint(append(who, "  unread "...), uint64(c.Unread), 10)
	}
	if e.Err != 0 {
		who = append(append(who, "  "...), ErrnoText(e.Err)...)
	}
	if c.Protocol == event.ProtoMPTCP || c.Subflow {
		who = appendMultipath(append(who, "  "...), c)
	}
	if r.opts.Format == FormatWide {
		who = r.appendWide(who, c)
	}
	r.line = who
	r.styled(styleBold, who[:min(n, len(who))])
	r.buf = append(r.buf, who[min(n, len(who)):]...)
	r.buf = append(r.buf, '\n')
}

// endings say to a person what ended a mini socket before its time.
var endings = [...]string{
	event.EndUnknown: "", event.EndTimer: "", event.EndReset: "reset by peer", event.EndResetSent: "reset by us",
	event.EndSyn: "replaced by a new SYN", event.EndReused: "port used again", event.EndKilled: "killed",
	event.EndNetns: "network namespace gone", event.EndListener: "listener closed", event.EndICMP: "ICMP error",
}

// previous returns how long the state before the present one lasted.
func previous(c *lifecycle.Conn) (int64, lifecycle.Known, bool) {
	i := c.Spans.Len() - 2
	if c.End != 0 {
		i++
	}
	if i < 0 || c.Spans.At(i).Start == 0 {
		return 0, lifecycle.Seen, false
	}
	span := c.Spans.At(i)
	return c.SpanEnd(i, c.LastEvent) - span.Start, span.Known, true
}

// wideConn shows a connection with all that is known, in one line.
func (r *Writer) wideConn(c *lifecycle.Conn) {
	r.buf = append(r.buf, r.clock(c.Until())...)
	b := appendOwner(append(r.line[:0], "  "...), c)
	b = appendTuple(append(b, "  "...), c)
	if start, known := c.Start(); start != 0 {
		b = append(b, "  "...)
		if known == lifecycle.AtLeast || c.End == 0 {
			b = append(b, "≥"...)
		}
		b = AppendDuration(b, c.Until()-start)
	}
	b = appendOutcome(append(b, "  "...), c)
	if c.Protocol == event.ProtoMPTCP || c.Subflow {
		b = appendMultipath(append(b, "  "...), c)
	}
	b = r.appendStates(append(b, "  "...), c)
	b = appendFacts(b, c)
	b = r.appendWide(b, c)
	r.line = b
	r.buf = append(append(r.buf, b...), '\n')
}

// appendWide adds identities; sk: is as ss -e prints it.
func (r *Writer) appendWide(b []byte, c *lifecycle.Conn) []byte {
	if !c.OwnID {
		b = appendHex(append(b, "  sk:"...), uint64(c.Socket))
	}
	b = appendInt(append(b, " netns:"...), int64(c.Netns))
	if c.UIDKnown {
		b = appendInt(append(b, " uid:"...), int64(c.UID))
	}
	if c.Cgroup != 0 {
		b = appendInt(append(b, " cgroup:"...), int64(c.Cgroup))
	}
	b = append(append(b, " role:"...), c.Role.String()...)
	b = append(append(b, " owner:"...), c.Owner.Source.String()...)
	if c.Closer != nil && *c.Closer != c.Owner.Task {
		b = AppendTask(append(b, " closer:"...), c.Closer)
	}
	if r.opts.Processes != nil && !c.Owner.IsZero() {
		if p := r.opts.Processes(c.Owner.Task); p != nil {
			b = appendProgram(b, p)
		}
	}
	return b
}

// appendOwner adds the owner. Behind an owner that only owns the listener, or
// that was seen with the descriptor but not getting it, stands a ?. Before the
// thread or process by which the kernel got a socket of its own stands kernel.
func appendOwner(b []byte, c *lifecycle.Conn) []byte {
	if c.Kernel {
		if b = append(b, "kernel"...); c.Owner.IsZero() {
			return b
		}
		b = append(b, ':')
	}
	b = AppendTask(b, &c.Owner.Task)
	switch c.Owner.Source {
	case event.OwnerListener, event.OwnerHolder, event.OwnerClose:
		b = append(b, '?')
	}
	return b
}

// appendTuple adds both ends, the arrow pointing from who connected.
func appendTuple(b []byte, c *lifecycle.Conn) []byte {
	b = appendArrow(AppendAddr(b, c.Local.AddrPort()), c)
	if c.Role == lifecycle.RoleListener {
		return b
	}
	return AppendAddr(append(b, ' '), c.Peer.AddrPort())
}

func appendArrow(b []byte, c *lifecycle.Conn) []byte {
	switch c.Role {
	case lifecycle.RoleListener:
		return b
	case lifecycle.RoleClient:
		return append(b, " →"...)
	case lifecycle.RoleServer:
		return append(b, " ←"...)
	}
	return append(b, " ↔"...)
}

// AppendAddr adds an address and a port, * where one is not known.
func AppendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, '*')
	}
	if a.Port() != 0 {
		return a.AppendTo(b)
	}
	if a.Addr().Is6() {
		b = append(a.Addr().AppendTo(append(b, '[')), ']')
	} else {
		b = a.Addr().AppendTo(b)
	}
	return append(b, ":*"...)
}

func appendInt(b []byte, v int64) []byte { return strconv.AppendInt(b, v, 10) }

// AppendDuration adds a duration in nanoseconds with three digits or so.
func AppendDuration(b []byte, ns int64) []byte {
	d := time.Duration(max(ns, 0))
	switch {
	case d < time.Microsecond:
		return append(appendInt(b, int64(d)), "ns"...)
	case d < time.Millisecond:
		return append(appendInt(b, d.Microseconds()), "µs"...)
	case d < 100*time.Millisecond:
		return append(strconv.AppendFloat(b, float64(d)/1e6, 'f', 1, 64), "ms"...)
	case d < time.Second:
		return append(appendInt(b, d.Milliseconds()), "ms"...)
	case d < 10*time.Second:
		return append(strconv.AppendFloat(b, d.Truncate(10*time.Millisecond).Seconds(), 'f', 2, 64), 's')
	case d < time.Minute:
		return append(strconv.AppendFloat(b, d.Truncate(100*time.Millisecond).Seconds(), 'f', 1, 64), 's')
	case d < time.Hour:
		return appendPair(b, int64(d/time.Minute), 'm', int64(d%time.Minute/time.Second), 's')
	case d < 24*time.Hour:
		return appendPair(b, int64(d/time.Hour), 'h', int64(d%time.Hour/time.Minute), 'm')
	}
	return appendPair(b, int64(d/(24*time.Hour)), 'd', int64(d%(24*time.Hour)/time.Hour), 'h')
}

func appendPair(b []byte, big int64, bigUnit byte, small int64, smallUnit byte) []byte {
	b = append(appendInt(b, big), bigUnit)
	if small < 10 {
		b = append(b, '0')
	}
	return append(appendInt(b, small), smallUnit)
}

// AppendBytes adds a count of bytes in powers of 1,000.
func AppendBytes(b []byte, n uint64) []byte {
	if n < 1000 {
		return append(strconv.AppendUint(b, n, 10), 'B')
	}
	v, unit := float64(n), byte(0)
	for _, u := range []byte("kMGTPE") {
		if v < 999.5 {
			break
		}
		v, unit = v/1000, u
	}
	prec := 0
	if v < 9.95 {
		prec = 1
	}
	return append(strconv.AppendFloat(b, v, 'f', prec, 64), unit, 'B')
}

// ErrnoText is an errno in the C library's words.
func ErrnoText(errno uint16) string { return syscall.Errno(errno).Error() }
