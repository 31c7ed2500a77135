// SPDX-License-Identifier: Apache-2.0

package story

import (
	"slices"
	"strconv"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/render"
)

// troubles tells why data does not get through, what that means, and where to look
// next; b unchanged: nothing is known of such.
func (t *Teller) troubles(b []byte, s *census.Socket) []byte {
	switch s.New {
	case event.StateSynSent:
		if s.Timeouts > 0 {
			return t.calledInVain(b, s)
		}
		return b
	case event.StateEstablished, event.StateCloseWait, event.StateFinWait1, event.StateClosing, event.StateLastAck:
	default:
		return b
	}
	switch {
	case s.Unsent == 0 && s.Probes < 2:
	case s.Shut:
		b = t.shut(b, s)
	case s.Timeouts > 0:
		b = t.unanswered(b, s)
	case s.Probes > 1:
		text := strconv.AppendUint([]byte("The peer does not answer: of the last "), uint64(s.Probes), 10)
		b = paragraph(b, append(text, " keep-alive probes none was answered so far. Its host or the way there is gone, or a firewall has forgotten the connection."...))
		b = t.reachable(b, s)
	}
	if s.New == event.StateEstablished && t.unread(s) {
		unread := leak.Judge(s).Unread
		text := append(render.AppendBytes([]byte("Our process does not read: "), uint64(unread)), " wait"...)
		if unread == 1 {
			text = append(text, 's')
		}
		text = ago(text, ", the last of which came ", s, s.LastReceived)
		b = paragraph(b, append(text, ". When its queue is full, the peer can send no more."...))
		if t.allHalted(s) {
			return t.resume(b, s)
		}
		b = paragraph(b, []byte("Next: the handler is stuck, or forgot the socket: look at what its threads do."))
		if len(s.Holders) > 0 {
			b = strconv.AppendUint(append(b, "  gdb -p "...), uint64(s.Holders[0].PID), 10)
			b = append(b, " -batch -ex 'thread apply all bt'\n\n"...)
		}
	}
	return b
}

// unread reports whether data waits for the process for too long. All that waits
// came no later than the last.
func (t *Teller) unread(s *census.Socket) bool {
	n, _ := s.UnreadPayload()
	return n > 0 && !s.NotAccepted() && !s.Kernel() && s.LastReceived != 0 && s.Time-s.LastReceived >= t.MinAge
}

// shut tells of a peer whose kernel takes no more.
func (t *Teller) shut(b []byte, s *census.Socket) []byte {
	text := []byte("The peer's window is closed: its kernel has no room for more of our data, as a rule because the process there does not read. What is written here waits. ")
	if s.Probes > 1 {
		text = strconv.AppendUint(append(text, "Of our last "...), uint64(s.Probes), 10)
		text = append(text, " probes of the window none was answered so far."...)
		return t.reachable(paragraph(b, text), s)
	}
	return t.peer(paragraph(b, text), s)
}

// unanswered tells of a peer that acknowledges nothing.
func (t *Teller) unanswered(b []byte, s *census.Socket) []byte {
	text := many([]byte("The peer does not acknowledge: the retransmission timer ran out "), int(s.Timeouts), " time", " times in a row")
	text = append(text, ", and nothing new was acknowledged since. Its host or the way there is gone, or drops what we send. "...)
	if !s.Orphan() {
		text = append(text, "The kernel goes on trying, by default for a quarter of an hour or more (net.ipv4.tcp_retries2); then the process gets ETIMEDOUT."...)
	}
	return t.reachable(paragraph(b, text), s)
}

// calledInVain tells of a peer that answers no SYN.
func (t *Teller) calledInVain(b []byte, s *census.Socket) []byte {
	text := strconv.AppendUint([]byte("Our SYN was sent "), uint64(s.Timeouts), 10)
	text = append(text, " more "...)
	if s.Timeouts == 1 {
		text = append(text, "time"...)
	} else {
		text = append(text, "times"...)
	}
	room := func(l *census.Socket) bool { return !full(l) }
	if len(s.Called) > 0 && !slices.ContainsFunc(s.Called, room) {
		return t.queueFull(paragraph(b, append(text, ", and nothing came back: the listener is here, and drops our SYN."...)), s.Called[0])
	}
	text = append(text, ", and nothing came back, not even a refusal: the peer's host or the way there is gone, something drops what we send, or its accept queue is full. "+
		"The kernel gives up after two minutes by default (net.ipv4.tcp_syn_retries), unless the process does before."...)
	return t.reachable(paragraph(b, text), s)
}

// queueFull tells of the listener that drops a SYN of this host.
func (t *Teller) queueFull(b []byte, l *census.Socket) []byte {
	b = paragraph(b, append(t.queueOf(render.AppendAddr([]byte("The queue of the listener "), l.Local), l), meansFull...))
	if len(l.Holders) == 0 {
		return b
	}
	h := &l.Holders[0]
	b = paragraph(b, []byte("Next: look at the process of the listener, and what its threads do:"))
	b = strconv.AppendUint(append(b, "  stated explain "...), uint64(h.PID), 10)
	b = strconv.AppendInt(append(b, '/'), int64(h.FDs[0]), 10)
	return t.halted(append(b, '\n', '\n'), l)
}

func (t *Teller) reachable(b []byte, s *census.Socket) []byte {
	peer, first, device := s.Peer.Addr(), "ip route get ", ""
	text := []byte("Next: is the peer's host reachable, and what drops segments on the way?")
	if peer.IsLinkLocalUnicast() && peer.Is6() {
		first, device = "ip neigh show ", "%DEVICE" // each interface has a route to it
		text = append(text, " Its address is of one interface, the DEVICE that the first of these shows."...)
	}
	b = paragraph(b, t.where(text, s))
	b = append(append(t.enter(append(b, "  "...), s), first...), peer.String()...)
	b = append(append(t.enter(append(b, "\n  "...), s), "ping -c 3 "...), peer.String()...)
	return append(append(b, device...), '\n', '\n')
}
