// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"net/netip"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Line is what connections are compared by: the program, not the process, as
// that is another after a fix.
type Line struct {
	Program event.Comm     // empty: unknown
	Role    lifecycle.Role // RoleServer, or RoleClient
	Service netip.AddrPort // the peer that we called; of a server our port, without address
}

// Count is what a recording tells of the connections of a Line.
type Count struct {
	// Conns are those of which it is known whether they leaked. What ended in the
	// last MinAge of the recording is not among them, as what began to leak then is
	// not known.
	Conns  int
	Leaked int // of these, stuck for MinAge or longer, since a moment within the recording
	Old    int // stuck as long, but since before the recording: not among Conns
	Left   int // of Leaked and Old, stuck still when the recording ended
}

// Tally counts, in a recording, the connections that were stuck in CLOSE_WAIT,
// or ended without close(), for MinAge. It is a lifecycle.Observer; feed it each
// event, too, and call End when all were applied.
type Tally struct {
	MinAge int64 // nanoseconds
	Lines  map[Line]*Count
	Want   func(*lifecycle.Conn) bool // which connections count; nil: all

	begin, end int64
	listeners  map[endpoint]bool
	unsure     map[unsure]*Count
	ended      []ended // that count when MinAge has passed, in order
}

// ended is a connection that did not leak.
type ended struct {
	at int64
	of *Count
}

// endpoint is where a listener was.
type endpoint struct {
	netns uint32
	port  uint16
}

// unsure is a line of which it is not known who called.
type unsure struct {
	netns       uint32
	program     event.Comm
	local, peer netip.AddrPort
}

// NewTally makes an empty one.
func NewTally(minAge int64) *Tally {
	return &Tally{MinAge: minAge, Lines: make(map[Line]*Count), listeners: make(map[endpoint]bool), unsure: make(map[unsure]*Count)}
}

// Span returns how long the recording is, in nanoseconds.
func (t *Tally) Span() int64 { return t.end - t.begin }

// Event notes the time of an event.
func (t *Tally) Event(e *event.Event) {
	if e.Time == 0 {
		return
	}
	if t.begin == 0 {
		t.begin = e.Time
	}
	t.end = max(t.end, e.Time)
	t.settle()
}

// settle counts the connections that ended long enough ago.
func (t *Tally) settle() {
	n := 0
	for n < len(t.ended) && t.ended[n].at <= t.end-t.MinAge {
		t.ended[n].of.Conns++
		n++
	}
	if t.ended = t.ended[n:]; len(t.ended) == 0 {
		t.ended = nil
	}
}

// Transition implements lifecycle.Observer.
func (t *Tally) Transition(c *lifecycle.Conn, _ *event.Event) {
	if c.Role == lifecycle.RoleListener {
		t.listeners[endpoint{c.Netns, c.Local.Port()}] = true
	}
}

// Finished implements lifecycle.Observer.
func (t *Tally) Finished(c *lifecycle.Conn) {
	if !t.counts(c) {
		return
	}
	n := t.line(c)
	switch stuck, old := t.stuck(c, c.Until()); {
	case stuck && old:
		n.Old++
	case stuck:
		n.Conns++
		n.Leaked++
	default:
		t.ended = append(t.ended, ended{c.Until(), n})
	}
}

// End looks at what is still in the table.
func (t *Tally) End(table *lifecycle.Table) {
	t.settle()
	table.All(func(c *lifecycle.Conn) {
		if !t.counts(c) {
			return
		}
		stuck, old := t.stuck(c, t.end)
		switch {
		case c.End == 0 && stuck:
			n := t.line(c)
			n.Left++
			if old {
				n.Old++
			} else {
				n.Conns++
				n.Leaked++
			}
		case c.HeldClosed() && !c.Disconnected() && (stuck || t.end-c.End >= t.MinAge):
			n := t.line(c) // Finished has counted it, but only its time in CLOSE_WAIT
			n.Left++
			if !stuck {
				n.Leaked++
			}
		}
	})
	for u, n := range t.unsure {
		line := Line{Program: u.program, Role: lifecycle.RoleClient, Service: u.peer}
		if t.listeners[endpoint{u.netns, u.local.Port()}] {
			line.Role, line.Service = lifecycle.RoleServer, netip.AddrPortFrom(netip.Addr{}, u.local.Port())
		}
		have := t.of(line)
		have.Conns += n.Conns
		have.Leaked += n.Leaked
		have.Old += n.Old
		have.Left += n.Left
	}
	clear(t.unsure)
}

// stuck reports whether a connection was in CLOSE_WAIT for MinAge until now, and
// whether that began before the recording.
func (t *Tally) stuck(c *lifecycle.Conn, now int64) (stuck, old bool) {
	for i, s := range c.Spans.All() {
		if s.State != event.StateCloseWait {
			continue
		}
		start := s.Start
		if old = s.Known == lifecycle.AtLeast || start == 0 || start < t.begin; start == 0 {
			start = c.FirstEvent
		}
		return c.SpanEnd(i, now)-start >= t.MinAge, old
	}
	return false, false
}

func (t *Tally) counts(c *lifecycle.Conn) bool { return connected(c) && (t.Want == nil || t.Want(c)) }

// connected reports whether the connection was ever open.
func connected(c *lifecycle.Conn) bool {
	if c.Role == lifecycle.RoleListener || c.HalfOpen() {
		return false
	}
	for _, s := range c.Spans.All() {
		switch s.State {
		case event.StateSynSent, event.StateSynRecv, event.StateNewSynRecv, event.StateListen, event.StateClose, event.StateNone:
		default:
			return true
		}
	}
	return false
}

func (t *Tally) line(c *lifecycle.Conn) *Count {
	switch c.Role {
	case lifecycle.RoleServer:
		return t.of(Line{c.Owner.Comm, lifecycle.RoleServer, netip.AddrPortFrom(netip.Addr{}, c.Local.Port())})
	case lifecycle.RoleClient, lifecycle.RoleSimultaneous:
		return t.of(Line{c.Owner.Comm, lifecycle.RoleClient, c.Peer.AddrPort()})
	}
	u := unsure{c.Netns, c.Owner.Comm, c.Local.AddrPort(), c.Peer.AddrPort()}
	if t.unsure[u] == nil {
		t.unsure[u] = new(Count)
	}
	return t.unsure[u]
}

func (t *Tally) of(l Line) *Count {
	if t.Lines[l] == nil {
		t.Lines[l] = new(Count)
	}
	return t.Lines[l]
}
