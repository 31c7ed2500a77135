// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strconv"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Sockets shows each socket of a census: a table for people, records of event
// name tcp.socket for machines.
func (r *Writer) Sockets(c *census.Census, processes func(event.Task) Process) {
	if r.opts.Format.records() {
		for _, s := range c.Sockets {
			r.jsonSocketNow(c.Now, s, processes)
			r.full()
		}
		return
	}
	ends := len("LOCAL ↔ PEER")
	for _, s := range c.Sockets {
		ends = max(ends, utf8.RuneCount(AppendEnds(r.line[:0], s)))
	}
	ends = min(ends, 44)
	b := pad(append(r.line[:0], "STATE"...), 0, 12)
	b = pad(append(b, "AGE"...), 0, 21)
	b = pad(append(b, "RECV-Q"...), 0, 30)
	b = pad(append(b, "SEND-Q"...), 0, 39)
	b = pad(append(b, "LOCAL ↔ PEER"...), 0, 39+ends)
	r.lineOf(0, styleBold, append(b, "  OWNER"...))
	for _, s := range c.Sockets {
		r.line = append(r.appendSocket(r.line[:0], s, ends), '\n')
		r.buf = append(r.buf, r.line...)
		r.full()
	}
}

func (r *Writer) appendSocket(b []byte, s *census.Socket, ends int) []byte {
	b = pad(append(b, s.New.Name(r.opts.Names)...), 0, 12)
	b = pad(AppendAge(b, s.Age), 0, 21)
	if s.Queued() {
		unread, unsent := s.Unread, s.Unsent
		if s.New != event.StateListen {
			unread, _ = s.UnreadPayload()
			unsent = s.UnsentPayload()
		}
		b = pad(appendInt(b, int64(unread)), 0, 30)
		b = pad(appendInt(b, int64(unsent)), 0, 39)
	} else {
		b = pad(append(b, '?'), 0, 30)
		b = pad(append(b, '?'), 0, 39)
	}
	b = pad(AppendEnds(b, s), 0, 39+ends)
	b = append(b, "  "...)
	b = appendHolders(b, s)
	if waiting, limit := s.Queue(); s.New == event.StateListen && waiting >= limit {
		b = append(b, ", queue full"...)
	}
	if r.opts.Format == FormatWide {
		return appendSocketIDs(b, s)
	}
	return AppendNetns(b, s.Netns, r.opts.Netns)
}

// AppendNetns marks what is in another network namespace than ours, where both
// are known.
func AppendNetns(b []byte, netns, ours uint32) []byte {
	if netns == 0 || ours == 0 || netns == ours {
		return b
	}
	return appendInt(append(b, " netns:"...), int64(netns))
}

// appendHolders adds who has the socket, or why nobody does.
func appendHolders(b []byte, s *census.Socket) []byte {
	switch {
	case s.Subflow() && s.Orphan():
		return append(b, "the kernel, MPTCP subflow"...)
	case s.Subflow() && len(s.Holders) == 0:
		return append(b, "MPTCP subflow of a connection whose descriptor was not found"...)
	case s.Subflow():
		b = append(b, "MPTCP subflow of "...)
	case s.Listened():
		if s.HalfOpen() {
			b = append(b, "half-open"...)
		} else {
			b = append(b, "not accepted"...)
		}
		for i, task := range s.Owners() {
			if i == 0 {
				b = append(b, ", listener "...)
			} else {
				b = append(b, ", "...)
			}
			b = AppendTask(b, &task)
		}
		return b
	case s.Orphan():
		return append(b, "the kernel"...)
	case s.Kernel():
		return append(b, "the kernel's own"...)
	case len(s.Holders) == 0:
		return append(b, "no process found"...)
	}
	for i := range s.Holders {
		h := &s.Holders[i]
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(AppendTask(b, &h.Task), " fd "...)
		b = appendFDs(b, h)
	}
	if n := s.Elsewhere(); n > 0 {
		b = append(appendInt(append(b, ", "...), int64(n)), " held elsewhere"...)
	}
	if s.Multipath() {
		b = append(b, ", MPTCP"...)
	}
	return b
}

func appendFDs(b []byte, h *census.Holder) []byte {
	for i, fd := range h.FDs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendInt(b, int64(fd))
	}
	return b
}

// AppendAge marks what is not exact: ≥ at least, ~ likely. ? is unknown.
func AppendAge(b []byte, a census.Age) []byte {
	if a.Min == 0 && a.Known != lifecycle.Seen {
		return append(b, '?')
	}
	switch a.Known {
	case lifecycle.AtLeast:
		b = append(b, "≥"...)
	case lifecycle.Inferred:
		b = append(b, '~')
	}
	return AppendDuration(b, a.Min)
}

// AppendEnds adds both ends; ~ behind the arrow marks an inferred role.
func AppendEnds(b []byte, s *census.Socket) []byte {
	b = AppendAddr(b, s.Local)
	if s.New == event.StateListen {
		return b
	}
	c := lifecycle.Conn{Role: s.Role}
	b = appendArrow(b, &c)
	if s.RoleKnown == lifecycle.Inferred && s.Role != lifecycle.RoleUnknown {
		b = append(b, '~')
	}
	return AppendAddr(append(b, ' '), s.Peer)
}

// appendSocketIDs adds identities; sk: and ino: are as ss -e prints them.
func appendSocketIDs(b []byte, s *census.Socket) []byte {
	if s.Socket != 0 && !s.Flags.Has(event.FlagOwnID) {
		b = appendHex(append(b, "  sk:"...), uint64(s.Socket))
	}
	b = appendInt(append(b, " netns:"...), int64(s.Netns))
	if s.Inode != 0 {
		b = appendInt(append(b, " ino:"...), int64(s.Inode))
	}
	if tellsUID(s) {
		b = appendInt(append(b, " uid:"...), int64(s.UID))
	}
	return b
}

func tellsUID(s *census.Socket) bool { return s.UID != event.NoUID && !s.Flags.Has(event.FlagMini) }

func (r *Writer) jsonSocketNow(now int64, s *census.Socket, processes func(event.Task) Process) {
	r.begin("tcp.socket", "INFO", now)
	b := text(r.buf, "network.transport", "tcp")
	b = text(b, "network.connection.state", s.New.Name(event.NamingOTel))
	b = socketFacts(b, s)
	if s.Age.Min != 0 || s.Age.Known == lifecycle.Seen {
		b = number(b, "stated.state.age_ns", s.Age.Min)
		b = text(b, "stated.state.age_known", s.Age.Known.String())
	}
	if s.New == event.StateListen {
		b = number(b, "stated.listener.queue", int64(s.Unread))
		b = number(b, "stated.listener.queue_limit", int64(s.Unsent))
	} else if s.Queued() {
		unread, _ := s.UnreadPayload()
		b = number(b, "stated.tcp.rx_queue_bytes", int64(unread))
		b = number(b, "stated.tcp.tx_queue_bytes", int64(s.UnsentPayload()))
	}
	b = jsonTroubles(b, s)
	if s.NotAccepted() {
		b = append(b, `,"stated.socket.not_accepted":true`...)
	}
	// Of several listeners it may be any one's.
	if owners := s.Owners(); len(owners) > 0 && (len(s.Holders) > 0 || len(s.Listeners) == 1) {
		b = text(b, "stated.process.source", ownerSource(s).String())
		b = process(b, "process.", &owners[0])
		p := processes(owners[0])
		b = r.jsonProcess(b, owners[0].PID, &p)
	}
	b = jsonHolders(b, "stated.socket.holders", s)
	m := append(AppendEnds(r.line[:0], s), ' ')
	m = append(append(m, s.New.String()...), ' ')
	m = appendHolders(m, s)
	r.line = m
	r.buf = quote(key(b, "message"), m)
	r.end()
}

// jsonTroubles adds what tells that data does not get through, or is not read. What
// of that is too much, or for too long, is for the reader to say.
func jsonTroubles(b []byte, s *census.Socket) []byte {
	if s.New == event.StateListen {
		if waiting, limit := s.Queue(); waiting >= limit {
			b = append(b, `,"stated.listener.queue_full":true`...)
		}
		return b
	}
	if unread, _ := s.UnreadPayload(); unread > 0 && s.LastReceived != 0 {
		b = number(b, "stated.tcp.rx_queue_age_ns", max(s.Time-s.LastReceived, 0))
	}
	if s.Shut {
		b = append(b, `,"stated.tcp.window_closed":true`...)
	}
	if s.Timeouts > 0 {
		b = number(b, "stated.tcp.timeouts", int64(s.Timeouts))
	}
	if s.Probes > 0 {
		b = number(b, "stated.tcp.probes", int64(s.Probes))
	}
	return b
}

// ownerSource is how the process of a socket that was looked at is known.
func ownerSource(s *census.Socket) event.OwnerSource {
	if len(s.Holders) == 0 && s.Listened() {
		return event.OwnerListener
	}
	return event.OwnerHolder
}

// socketFacts adds identity, ends, role and age of a socket of a census.
func socketFacts(b []byte, s *census.Socket) []byte {
	if s.Local.IsValid() {
		kind := "ipv4"
		if s.Local.Addr().Is6() {
			kind = "ipv6"
		}
		b = text(b, "network.type", kind)
	}
	b = end(b, "network.local", s.Local)
	if s.New != event.StateListen {
		b = end(b, "network.peer", s.Peer)
	}
	if s.Sighting.Socket != 0 && !s.Flags.Has(event.FlagOwnID) {
		b = identity(b, "stated.socket.cookie", uint64(s.Sighting.Socket))
	}
	if s.Inode != 0 {
		b = identity(b, "stated.socket.inode", s.Inode)
	}
	b = number(b, "stated.netns.inode", int64(s.Netns))
	b = text(b, "stated.connection.role", s.Role.String())
	b = text(b, "stated.connection.role_known", s.RoleKnown.String())
	b = jsonMultipath(b, s)
	if tellsUID(s) {
		b = identity(b, "user.id", uint64(s.UID))
	}
	if s.Err != 0 {
		b = number(b, "stated.errno", int64(s.Err))
	}
	if s.Age.Max != 0 {
		b = number(b, "stated.state.age_at_most_ns", s.Age.Max)
	}
	if !s.Limited {
		b = strconv.AppendBool(key(b, "stated.socket.waited_for"), s.Waited)
	}
	if n := s.Elsewhere(); n > 0 && s.Inode != 0 {
		b = number(b, "stated.socket.held_elsewhere", int64(n))
	}
	if s.Kernel() {
		b = append(b, `,"stated.socket.kernel":true`...)
	}
	return b
}

// jsonMultipath says what a socket is of MPTCP. A subflow has the inode of its
// connection.
func jsonMultipath(b []byte, s *census.Socket) []byte {
	switch {
	case s.Multipath():
		return append(b, `,"stated.mptcp":"connection"`...)
	case s.Subflow():
		return append(b, `,"stated.mptcp":"subflow"`...)
	}
	return b
}

func jsonHolders(b []byte, name string, s *census.Socket) []byte {
	b = append(key(b, name), '[')
	for i := range s.Holders {
		h := &s.Holders[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(append(b, `{"pid":`...), uint64(h.PID), 10)
		b = appendString(key(b, "executable"), h.Comm.Bytes())
		b = append(b, `,"fds":[`...)
		for j, fd := range h.FDs {
			if j > 0 {
				b = append(b, ',')
			}
			b = appendInt(b, int64(fd))
		}
		b = append(b, ']', '}')
	}
	return append(b, ']')
}
