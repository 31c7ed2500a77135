// SPDX-License-Identifier: Apache-2.0

// Package story tells of a socket or a process in plain sentences, for a person
// who wants to know what goes on: everything that a look at the kernel gave, how
// each thing is known, and what to do next.
package story

import (
	"bytes"
	"cmp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/explain"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

// Width is how many columns the text uses, but for addresses that are longer.
const Width = explain.Width

// Teller knows what stories are made of.
type Teller struct {
	Now       int64 // nanoseconds since boot, of the census
	MinAge    int64 // nanoseconds in a state from which on a socket is stuck
	Names     event.Naming
	Processes func(event.Task) render.Process
	Waits     func(*census.Socket) render.Wait
	// Netns is the network namespace in which commands run unless told otherwise;
	// 0: not known. Inside finds a process in that of a socket, 0: none.
	Netns  uint32
	Inside func(*census.Socket) uint32
	// Outside says that there may be processes that cannot be seen: those outside of
	// the PID namespace from which was looked.
	Outside bool
}

// Socket adds the story of one socket.
func (t *Teller) Socket(b []byte, s *census.Socket) []byte {
	b = append(t.mark(render.AppendEnds(b, s), s.Netns), '\n', '\n')
	if s.New == event.StateListen {
		b = paragraph(b, t.listener(s))
		return t.halted(paragraph(b, t.holders(s)), s)
	}
	b = paragraph(b, t.state(s))
	b = paragraph(b, t.other(t.role(s), s))
	b = paragraph(b, multipath(s))
	b = t.halted(paragraph(b, t.holders(s)), s)
	b = paragraph(b, t.data(s))
	if !s.Subflow() {
		b = paragraph(b, t.waits(s))
	}
	if s.Err != 0 {
		b = paragraph(b, append([]byte("Its error, which the process has not fetched: "+render.ErrnoText(s.Err)), '.'))
	}
	told := len(b)
	if b = t.troubles(b, s); s.Subflow() {
		return b // what the process makes of it is about the connection
	}
	return t.verdict(b, s, len(b) > told)
}

// Stuck reports whether a socket waits for its own process for too long.
func (t *Teller) Stuck(s *census.Socket) bool {
	if s.Age.Min < t.MinAge || s.Subflow() {
		return false
	}
	switch s.New {
	case event.StateCloseWait:
		return true
	case event.StateClose:
		return s.Hidden()
	case event.StateEstablished:
		return s.NotAccepted()
	case event.StateListen, event.StateTimeWait, event.StateSynSent, event.StateSynRecv:
		return false
	}
	if f := leak.Judge(s); f.HalfClosed() {
		return s.New == event.StateFinWait2 && t.idle(s)
	}
	return !s.Orphan()
}

// idle reports whether it is known that nobody waits on a socket.
func (t *Teller) idle(s *census.Socket) bool {
	if s.Waited || len(s.Holders) == 0 || t.Waits == nil {
		return false
	}
	kind := t.Waits(s).Kind
	return kind == render.WaitNone || kind == "" && !s.Limited
}

// doubtful reports whether a socket may be stuck, and its age does not tell.
func (t *Teller) doubtful(s *census.Socket) bool {
	may := s.New == event.StateCloseWait || s.Hidden()
	return may && !s.Subflow() && s.Age.Min < t.MinAge && s.Age.Known == lifecycle.AtLeast && (s.Age.Max == 0 || s.Age.Max >= t.MinAge)
}

func (t *Teller) role(s *census.Socket) []byte {
	switch s.Role {
	case lifecycle.RoleServer:
		b := strconv.AppendUint([]byte("They called us: it came in at port "), uint64(s.Local.Port()), 10)
		switch s.Evidence {
		case census.ByPorts:
			b = append(b, ", as it seems: only the peer's port looks like one that the kernel chose, or other connections have ours, too"...)
		case census.ByListener:
			b = append(b, ", as it seems: there is a listener on that port"...)
		case census.BySYN:
			b = append(b, ", as it seems: the peer has acknowledged our data only, no SYN of ours"...)
		case census.ByPeer:
			b = append(b, ", as it seems: the other end, which is on this host, called"...)
		}
		return append(b, '.')
	case lifecycle.RoleClient:
		b := render.AppendAddr([]byte("We called "), s.Peer)
		switch s.Evidence {
		case census.ByPorts:
			b = append(b, ", as it seems: only our port looks like one that the kernel chose, or other connections have the peer's, too"...)
		case census.BySYN:
			b = append(b, ", as it seems: the peer has acknowledged a SYN of ours"...)
		case census.ByPeer:
			b = append(b, ", as it seems: the other end, which is on this host, was called"...)
		}
		return append(b, '.')
	case lifecycle.RoleSimultaneous:
		return []byte("Both sides called each other at once.")
	case lifecycle.RoleUnknown:
		if s.Peer.IsValid() && s.Peer.Port() != 0 {
			return []byte("Which side called the other is not known.")
		}
	}
	return nil
}

// holders says who has the socket, or why nobody does.
func (t *Teller) holders(s *census.Socket) (b []byte) {
	switch {
	case s.NotAccepted():
		return t.queue(s)
	case s.HalfOpen():
		return t.halfOpen(s)
	case s.Orphan():
		return []byte("No process holds it any more: the kernel finishes the connection alone.")
	case s.Kernel():
		return []byte("The kernel itself made it, for NFS, SMC or the like: no process has a descriptor of it, and none can close it.")
	case len(s.Holders) == 0 && s.Subflow():
		return nil
	case len(s.Holders) == 0:
		b = append(b, "No process was found that holds it: "...)
		if t.Outside {
			b = append(b, "it is of one outside of this PID namespace, which cannot be seen from here, "...)
		} else {
			b = append(b, "it is "...)
		}
		b = append(b, "in flight on a unix socket, in an io_uring, or was closed this moment. "...)
	}
	for i := range s.Holders {
		h := &s.Holders[i]
		b = render.AppendTask(b, &h.Task)
		if s.Subflow() {
			b = append(b, " holds the connection as descriptor"...)
		} else {
			b = append(b, " holds it as descriptor"...)
		}
		if len(h.FDs) > 1 {
			b = append(b, 's')
		}
		for j, fd := range h.FDs {
			if j > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(append(b, ' '), int64(fd), 10)
		}
		b = append(t.who(append(b, ": "...), h.Task), ". "...)
	}
	if len(s.Holders) > 1 && s.New != event.StateListen {
		b = strconv.AppendInt(append(b, "With "...), int64(len(s.Holders)), 10)
		b = append(b, " processes it ends only when each has closed it: a child inherited the descriptor, or it was passed over a unix socket. "...)
	}
	if n := s.Elsewhere(); n > 0 && s.Inode != 0 {
		if len(s.Holders) > 0 {
			b = append(b, "Beside these, "...)
		}
		b = many(b, n, " reference keeps the file open", " references keep the file open")
		b = append(b, ": a system call at work on it, a message on a unix socket, or io_uring. "...)
	}
	return b
}

// data says what was and what waits to be transferred.
func (t *Teller) data(s *census.Socket) []byte {
	if s.Flags.Has(event.FlagMini) || s.New == event.StateClose && !s.Hidden() {
		return nil
	}
	if !s.Queued() {
		b := []byte("How much data came and went, and whether some waits, is not known of an MPTCP connection. ")
		if s.LastSegment != 0 {
			b = append(ago(b, "The last segment of any kind was ", s, s.LastSegment), '.')
		}
		return b
	}
	var b []byte
	switch f := leak.Judge(s); {
	case s.New == event.StateClose:
	case f.Unread > 0:
		b = append(render.AppendBytes(b, uint64(f.Unread)), " came that the process has not read. "...)
	case f.Verdict == leak.EOFUnread && received(s) == 0:
		b = append(b, "The end of file was not read. "...)
	case f.Verdict == leak.EOFUnread:
		b = append(b, "All data was read, the end of file behind it was not. "...)
	default:
		b = append(b, "Nothing waits to be read. "...)
	}
	if n := s.UnsentPayload(); n > 0 {
		b = append(render.AppendBytes(b, uint64(n)), " of ours wait"...)
		if n == 1 {
			b = append(b, 's')
		}
		b = append(b, " to be sent or to be acknowledged. "...)
	}
	if n := received(s); n == 0 {
		b = append(b, "No data has ever come. "...)
	} else {
		b = append(render.AppendBytes(b, n), " came in all"...)
		b = append(ago(b, ", the last ", s, s.LastReceived), ". "...)
	}
	if n := s.BytesSent - s.BytesResent; n == 0 {
		b = append(b, "None has ever gone. "...)
	} else {
		b = append(render.AppendBytes(b, n), " went"...)
		b = append(ago(b, ", the last ", s, s.LastSent), ". "...)
	}
	switch {
	case s.LastSegment == 0:
	case s.Limited:
		b = append(ago(b, "The last acknowledgement of the peer came ", s, s.LastSegment), ". "...)
	default:
		b = append(ago(b, "The last segment of any kind was ", s, s.LastSegment), ". "...)
	}
	return b
}

// received is how much payload has come. The time of the last is set at the
// beginning of the connection, too (tcp_create_openreq_child, tcp_finish_connect).
func received(s *census.Socket) uint64 {
	if s.Flags.Has(event.FlagDone) && s.BytesReceived > 0 {
		return s.BytesReceived - 1
	}
	return s.BytesReceived
}

// ago says how long before the look something was, if that is known.
func ago(b []byte, sentence string, s *census.Socket, at int64) []byte {
	if at == 0 {
		return b
	}
	return append(render.AppendDuration(append(b, sentence...), s.Time-at), " ago"...)
}

func (t *Teller) waits(s *census.Socket) []byte {
	if len(s.Holders) == 0 || t.Waits == nil {
		return nil
	}
	w := t.Waits(s)
	b := strconv.AppendUint([]byte("Thread "), uint64(w.TID), 10)
	switch w.Kind {
	case render.WaitCall:
		return append(append(append(b, " waits on it in "...), w.Call...), '.')
	case render.WaitPoll:
		return append(append(append(b, " waits on it among others in "...), w.Call...), '.')
	case render.WaitWatched:
		return []byte("An epoll set has it; no thread waits on that set at this moment.")
	case render.WaitNone:
		return []byte("No thread waits on it, and no epoll set has it.")
	}
	b = append(b[:0], "Whether a thread waits on it could not be told"...)
	if w.Why != "" {
		b = render.EscapeText(append(b, ": "...), []byte(w.Why))
	}
	return append(b, '.')
}

// verdict says whether that is well, why not, and what to do. Of an open connection
// with troubles all has been said.
func (t *Teller) verdict(b []byte, s *census.Socket, troubled bool) []byte {
	f := leak.Judge(s)
	if !t.Stuck(s) {
		if troubled && s.New == event.StateEstablished && !s.NotAccepted() {
			return b
		}
		if text := t.unstuck(&f); text != nil {
			b = paragraph(b, text)
		}
		return b
	}
	text := append([]byte("It is stuck, verdict "), f.Verdict.String()...)
	if why := render.Meaning(f.Verdict); why != "" {
		text = append(append(text, ": "...), why...)
	} else {
		text = append(append(text, ": "...), f.Why...)
	}
	if f.HalfClosed() {
		text = append(text, ". The peer has not closed, and nobody waits for what it may still send"...)
	}
	b = paragraph(b, append(text, '.'))
	return t.next(b, &f)
}

// unstuck says of a socket that is not stuck what there is to say.
func (t *Teller) unstuck(f *leak.Finding) []byte {
	switch {
	case f.New == event.StateCloseWait || f.Hidden():
		b := render.AppendDuration([]byte("That is younger than "), t.MinAge)
		if t.doubtful(f.Socket) {
			b = render.AppendDuration([]byte("Whether that is longer than "), t.MinAge)
			return append(b, " is not known: look again, or watch with stated leaks --for."...)
		}
		if t.allHalted(f.Socket) {
			return append(b, ". It stays so while the process does nothing."...)
		}
		return append(b, ", which may be no leak: the process may be about to close it."...)
	case f.New == event.StateEstablished && (f.Verdict == leak.NotAccepted || f.Unread > 0) && t.allHalted(f.Socket):
		return []byte("It waits until the process goes on.")
	case f.New == event.StateEstablished && f.Verdict == leak.NotAccepted:
		return []byte("It may be accepted any moment.")
	case f.New == event.StateEstablished && f.Unread > 0 && !f.Kernel():
		return []byte("What came waits to be read: the process may be about to do so.")
	case f.New == event.StateEstablished:
		if f.Multipath() {
			return []byte("It is open at both ends. Whether data gets through, its subflows tell.")
		}
		return []byte("Nothing is wrong with it as far as the kernel can tell.")
	case f.HalfClosed() && f.New == event.StateFinWait1:
		return []byte("It is half-closed: the process called shutdown(). The peer has not acknowledged all that was sent before, or our FIN: it does not read, or it or the way to it is gone. Look there, not at this process. Without any answer the kernel gives up after net.ipv4.tcp_retries2 retransmissions.")
	case f.HalfClosed():
		return []byte("It is half-closed: the process called shutdown(), and may want the answer of the peer, which has not closed. If that lasts for too long, look at the peer: its end is in CLOSE_WAIT, or it is gone: then only SO_KEEPALIVE or a time-out of the process ends it.")
	case f.Verdict == leak.Unknown && f.Why != "":
		return append([]byte("What it waits for: "+f.Why), '.')
	}
	return nil
}

// next says what to look for, and gives commands that a person may run.
func (t *Teller) next(b []byte, f *leak.Finding) []byte {
	if f.Kernel() {
		return paragraph(b, []byte("Next: it goes with what uses it, such as a mount of NFS (findmnt -t nfs,nfs4)."))
	}
	if t.allHalted(f.Socket) {
		return t.resume(b, f.Socket)
	}
	advice := render.Advice(f)
	if advice == "" {
		advice = strings.TrimSuffix(explain.Do(f.New), ".")
	}
	owners := f.Owners()
	if len(owners) == 0 && t.Outside {
		return paragraph(b, []byte("Next: look from the host, or from a container with its PID namespace (docker run --pid=host)."))
	}
	if len(owners) == 0 && f.Inode != 0 {
		text := append(t.enter([]byte("Next: find what has it. "), f.Socket), "ss -xp"...)
		b = paragraph(b, append(text, " shows the unix sockets with messages that nobody receives, by their Recv-Q; the files of an io_uring are below UserFiles:"...))
		b = strconv.AppendUint(append(b, "  grep -s 'socket:\\["...), f.Inode, 10)
		return append(b, "\\]' /proc/[0-9]*/fdinfo/*\n\n"...)
	}
	text := []byte("Next: ")
	if h := inherited(f.Socket); h != nil {
		text = append(render.AppendTask(text, &h.Task), " began after the connection did: it inherited the descriptor, or was given it. If it does not use it, close-on-exec (SOCK_CLOEXEC) is missing where the socket was opened. Otherwise: "...)
	}
	b = paragraph(b, append(append(text, advice...), '.'))
	if len(owners) == 0 {
		return b
	}
	b = strconv.AppendUint(append(b, "  gdb -p "...), uint64(owners[0].PID), 10)
	b = append(b, " -batch -ex 'thread apply all bt'\n"...)
	if len(f.Holders) > 0 && !f.HalfClosed() {
		b = strconv.AppendUint(append(b, "  gdb -p "...), uint64(f.Holders[0].PID), 10)
		b = strconv.AppendInt(append(b, " -batch -ex 'call (int)close("...), int64(f.Holders[0].FDs[0]), 10)
		b = append(b, ")'\n"...)
	}
	return append(b, '\n')
}

// inherited returns a holder that is known to be younger than the connection; nil: none.
func inherited(s *census.Socket) *census.Holder {
	const resolution = 20e6 // of the clocks compared: a jiffy, and a tick of /proc/PID/stat
	there := s.Time         // the connection was there by then
	for _, at := range []int64{s.LastReceived, s.LastSent, s.LastSegment} {
		if at != 0 {
			there = min(there, at)
		}
	}
	if s.Age.Known != lifecycle.Inferred {
		there = min(there, s.Time-s.Age.Min)
	}
	for i := range s.Holders {
		if h := &s.Holders[i]; h.Start > there+resolution {
			return h
		}
	}
	return nil
}

// who describes a process, escaped.
func (t *Teller) who(b []byte, task event.Task) []byte {
	p := t.Processes(task)
	start := len(b)
	put := func(label, value string) {
		if value == "" {
			return
		}
		if len(b) > start {
			b = append(b, ", "...)
		}
		b = render.EscapeText(append(b, label...), []byte(value))
	}
	if put("", p.CommandLine); p.CommandLine == "" {
		put("", p.Executable)
	}
	put("user ", p.User)
	put("unit ", p.Unit)
	put("container ", cmp.Or(p.ContainerName, p.Container))
	put("pod ", cmp.Or(p.PodName, p.Pod))
	if len(b) == start {
		b = append(b, "(nothing more is known of it)"...)
	}
	return b
}

// paragraph adds text in lines of Width, and an empty one. It must be escaped.
func paragraph(b, text []byte) []byte {
	column := 0
	for word := range bytes.FieldsSeq(text) {
		n := utf8.RuneCount(word)
		switch {
		case column > 0 && column+1+n > Width:
			b = append(b, '\n')
			column = 0
		case column > 0:
			b = append(b, ' ')
			column++
		}
		b = append(b, word...)
		column += n
	}
	if column == 0 {
		return b
	}
	return append(b, '\n', '\n')
}
