// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

// stuck are the states whose owners are named: those in which a socket waits
// for its own process or for a peer that may never come.
var stuck = []event.State{event.StateCloseWait, event.StateFinWait2, event.StateLastAck, event.StateSynRecv}

// maxExecutables bounds the label: the rest is in "other".
const maxExecutables = 50

type place struct {
	state  event.State
	family string
	role   lifecycle.Role
}

type group struct {
	state      event.State
	executable string
}

type members struct {
	sockets int
	oldest  int64 // nanoseconds, at least
}

// view is the table of connections at one moment.
type view struct {
	stats  lifecycle.Stats
	conns  map[place]int
	groups map[group]members
}

func look(t *lifecycle.Table) *view {
	v := &view{stats: t.Stats(), conns: make(map[place]int), groups: make(map[group]members)}
	now := t.Now()
	t.All(func(c *lifecycle.Conn) {
		if c.End != 0 {
			return
		}
		v.conns[place{c.State, family(c), c.Role}]++
		if !slices.Contains(stuck, c.State) {
			return
		}
		since, _ := c.Since()
		g := group{c.State, executable(c)}
		m := v.groups[g]
		v.groups[g] = members{m.sockets + 1, max(m.oldest, now-since)}
	})
	v.trim()
	return v
}

func family(c *lifecycle.Conn) string {
	switch {
	case !c.Local.IsValid():
		return "unknown"
	case c.Local.Addr().Is4():
		return "ipv4"
	}
	return "ipv6"
}

func executable(c *lifecycle.Conn) string {
	switch {
	case c.Kernel:
		return "kernel" // the names of its threads are of no use, and many
	case c.Owner.IsZero():
		return "unknown"
	}
	return nameOf(&c.Owner.Task)
}

func nameOf(t *event.Task) string { return string(render.EscapeText(nil, t.Comm.Bytes())) }

// trim keeps the executables with the most sockets, and adds up the others.
func (v *view) trim() {
	total := make(map[string]int)
	for g, m := range v.groups {
		total[g.executable] += m.sockets
	}
	names := make([]string, 0, len(total))
	for name := range total {
		names = append(names, name)
	}
	if len(names) <= maxExecutables {
		return
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(total[b]-total[a], cmp.Compare(a, b)) })
	for g, m := range v.groups {
		if slices.Contains(names[:maxExecutables], g.executable) {
			continue
		}
		delete(v.groups, g)
		other := group{g.state, "other"}
		o := v.groups[other]
		v.groups[other] = members{o.sockets + m.sockets, max(o.oldest, m.oldest)}
	}
}

// Views shows the table, which belongs to the goroutine of the loop, to others:
// Idle is the loop's, and looks when somebody has asked.
type Views struct {
	table *lifecycle.Table
	mu    sync.Mutex // guards what follows
	asked []chan *view
}

// NewViews makes the views of a table.
func NewViews(t *lifecycle.Table) *Views { return &Views{table: t} }

// Idle answers who has asked.
func (v *Views) Idle() {
	v.mu.Lock()
	asked := v.asked
	v.asked = nil
	v.mu.Unlock()
	if len(asked) == 0 {
		return
	}
	now := look(v.table)
	for _, c := range asked {
		c <- now
	}
}

// get waits for the loop; nil when ctx is done before.
func (v *Views) get(ctx context.Context) *view {
	c := make(chan *view, 1)
	v.mu.Lock()
	v.asked = append(v.asked, c)
	v.mu.Unlock()
	select {
	case now := <-c:
		return now
	case <-ctx.Done():
		return nil
	}
}
