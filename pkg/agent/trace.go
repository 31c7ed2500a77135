// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

// Trace is the consumer that shows connections as they end, or each change of
// state.
type Trace struct {
	Out      *render.Writer
	Filter   *filter.Filter
	Events   bool // show changes of state, not finished connections
	Existing bool // show the sockets that were there before
	Count    int  // have enough after that many; 0: never
	Slow     render.Slow
	Shown    int

	// OpenAfter shows connections that stay in a state for longer than that,
	// in nanoseconds, once for each state, while they are there; 0: not. Needs
	// Table.
	OpenAfter int64
	Table     *lifecycle.Table
	told      map[*lifecycle.Conn]int // of OpenAfter: in which span, from 1. Deleted at the end of the connection.

	// held is what was rendered of connections of which the filter cannot tell
	// yet whether they are wanted. Deleted when it can, or at their end.
	held map[*lifecycle.Conn]*heldBack

	outcomes [lifecycle.NumOutcomes]uint64 // of what Filter wanted
	hid      bool                          // Filter did not want something
}

type heldBack struct {
	text  bytes.Buffer
	lines int
}

// maxHeld bounds what is kept for a connection that nobody can place: no
// lifecycle has more changes of state.
const maxHeld = 32

// Event keeps the clock, and shows losses in their place.
func (t *Trace) Event(e *event.Event) {
	switch e.Kind {
	case event.KindClock:
		t.Out.SetClock(e.Time, e.Wall)
		if t.OpenAfter > 0 {
			t.stillOpen(e.Time)
		}
	case event.KindLost:
		t.Out.Lost(e)
	}
}

// stillOpen shows what has stayed in its state for too long, the oldest first.
// Listeners are meant to.
func (t *Trace) stillOpen(now int64) {
	var stay []*lifecycle.Conn
	t.Table.All(func(c *lifecycle.Conn) {
		since, _ := c.Since()
		if c.End != 0 || c.Role == lifecycle.RoleListener || now-since < t.OpenAfter || t.told[c] == c.Spans.Len() {
			return
		}
		if t.Filter.Stays(c) {
			stay = append(stay, c)
		}
	})
	slices.SortFunc(stay, func(a, b *lifecycle.Conn) int {
		first, _ := a.Since()
		second, _ := b.Since()
		return cmp.Or(cmp.Compare(first, second), cmp.Compare(a.Socket, b.Socket))
	})
	if t.told == nil && len(stay) > 0 {
		t.told = make(map[*lifecycle.Conn]int)
	}
	for _, c := range stay {
		t.told[c] = c.Spans.Len()
		t.show(func() { t.Out.StillOpen(c, now) })
	}
}

func (t *Trace) enough() bool { return t.Count > 0 && t.Shown >= t.Count }

// Transition implements lifecycle.Observer.
func (t *Trace) Transition(c *lifecycle.Conn, e *event.Event) {
	found := e.Kind != event.KindState
	if found && !t.Existing || !found && !t.Events {
		return
	}
	verdict := t.Filter.Conn(c)
	if held := t.held[c]; held != nil && verdict != filter.Open {
		delete(t.held, c)
		if verdict == filter.Yes {
			t.Shown += held.lines
			t.Out.Raw(held.text.Bytes())
		}
	}
	if verdict == filter.Open && (c.LeftBehind() || !t.Events) {
		return // nothing more will be learned of it, or Finished shows it
	}
	if verdict == filter.No || !t.Filter.Transition(c, e) {
		return
	}
	if verdict == filter.Yes {
		t.show(func() { t.Out.Transition(c, e) })
		return
	}
	if t.held == nil {
		t.held = make(map[*lifecycle.Conn]*heldBack)
	}
	held := t.held[c]
	if held == nil {
		held = new(heldBack)
		t.held[c] = held
	}
	if held.lines < maxHeld {
		held.lines++
		held.text.Write(t.Out.Capture(func() { t.Out.Transition(c, e) }))
	}
}

// Finished implements lifecycle.Observer.
func (t *Trace) Finished(c *lifecycle.Conn) {
	delete(t.held, c)
	delete(t.told, c)
	if !t.Filter.Finished(c) {
		t.hid = true
		return
	}
	t.outcomes[c.Outcome]++
	t.Slow.Finished(c)
	if !t.Events {
		t.show(func() { t.Out.Finished(c) })
	}
}

// Totals counts what happened: of connections those that the filter wants, of events
// all. Call it at the end.
func (t *Trace) Totals() render.Totals {
	s := render.Totals{Stats: t.Table.Stats(), Filtered: t.hid}
	s.Outcomes, s.Open, s.Held, s.Lingering = t.outcomes, 0, 0, 0
	count := func(n *int, wanted bool) {
		if wanted {
			*n++
		}
		s.Filtered = s.Filtered || !wanted
	}
	t.Table.All(func(c *lifecycle.Conn) {
		if c.HeldClosed() {
			count(&s.Held, t.Filter.Finished(c))
			return
		}
		wanted := t.Filter.Unfinished(c, t.Table.Now())
		count(&s.Open, wanted)
		if wanted && c.State == event.StateListen {
			s.Listening++
		}
	})
	t.Table.Lingering(func(c *lifecycle.Conn) {
		count(&s.Lingering, t.Filter.Unfinished(c, 0)) // how long the connection lasted is not known any more
	})
	return s
}

func (t *Trace) show(f func()) {
	if t.enough() {
		return
	}
	t.Shown++
	f()
}

// Idle flushes.
func (t *Trace) Idle() error {
	if err := t.Out.Flush(); err != nil {
		return err
	}
	if t.enough() {
		return ErrDone
	}
	return nil
}
