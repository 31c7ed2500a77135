// SPDX-License-Identifier: Apache-2.0

// Package filter decides which connections are wanted, exactly and for whole
// connections. The kernel side has the same conditions, but only withholds
// what it is sure of.
package filter

import (
	"net/netip"
	"slices"
	"time"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Verdict is what can be said of a connection so far.
type Verdict uint8

// Verdicts.
const (
	Open Verdict = iota // a fact that is asked for is not known yet
	Yes
	No
)

// Filter is event.Filter with conditions on the whole connection. As JSON it is in
// the header of recordings.
type Filter struct {
	event.Filter
	States      event.StateSet   `json:"states,omitempty"`          // it was in one of them; 0 any
	MinDuration time.Duration    `json:"min_duration_ns,omitempty"` // it lasted at least that long
	Roles       []lifecycle.Role `json:"roles,omitempty"`           // nil any
	Cgroups     []uint64         `json:"-"`                         // with Cgroup: it and all below it, for Socket
	NotPID      uint32           `json:"-"`                         // not what this process owns; 0 none
	Also        *Filter          `json:"-"`                         // holds, too, but for Socket; may be nil
}

// Conn decides by what the connection is: its addresses, its place, its owner.
func (f *Filter) Conn(c *lifecycle.Conn) Verdict {
	verdict := Yes
	for ; f != nil; f = f.Also {
		for _, v := range [...]Verdict{f.place(c), f.ports(c), f.addrs(c), f.owner(c), f.role(c)} {
			switch v {
			case No:
				return No
			case Open:
				verdict = Open
			}
		}
	}
	return verdict
}

// Finished decides finally: what never became known does not match.
func (f *Filter) Finished(c *lifecycle.Conn) bool {
	return f.Conn(c) == Yes && f.all(func(f *Filter) bool {
		return f.lasted(c, c.Until()) && (f.States.Has(event.StateClose) || f.was(c))
	})
}

// Unfinished decides as Finished about a connection that goes on, by what it is
// until now.
func (f *Filter) Unfinished(c *lifecycle.Conn, now int64) bool {
	return f.Conn(c) == Yes && f.all(func(f *Filter) bool { return f.lasted(c, now) && f.was(c) })
}

// Stays decides about a connection as it is now, for however long.
func (f *Filter) Stays(c *lifecycle.Conn) bool {
	return f.Conn(c) == Yes && f.all(func(f *Filter) bool { return f.States == 0 || f.States.Has(c.State) })
}

// Transition decides whether one change of state is wanted, of a connection
// that is: one into or out of the states, after the duration.
func (f *Filter) Transition(c *lifecycle.Conn, e *event.Event) bool {
	return f.all(func(f *Filter) bool { return f.changed(c, e) })
}

func (f *Filter) all(holds func(*Filter) bool) bool {
	for ; f != nil; f = f.Also {
		if !holds(f) {
			return false
		}
	}
	return true
}

func (f *Filter) lasted(c *lifecycle.Conn, until int64) bool {
	start, _ := c.Start()
	return f.MinDuration == 0 || start != 0 && time.Duration(until-start) >= f.MinDuration
}

func (f *Filter) was(c *lifecycle.Conn) bool {
	if f.States == 0 || f.States.Has(c.Lingers) {
		return true
	}
	for _, s := range c.Spans.All() {
		if f.States.Has(s.State) {
			return true
		}
	}
	return false
}

func (f *Filter) changed(c *lifecycle.Conn, e *event.Event) bool {
	if f.States != 0 && !f.States.Has(e.New) && !f.States.Has(e.Old) {
		return false
	}
	if f.MinDuration == 0 {
		return true
	}
	if e.Kind != event.KindState { // found: how long it has been there
		since := c.Spans.Last().Start
		return since != 0 && time.Duration(e.Time-since) >= f.MinDuration
	}
	i := c.Spans.Len() - 2
	if c.End != 0 {
		i++
	}
	return i >= 0 && c.Spans.At(i).Start != 0 && time.Duration(e.Time-c.Spans.At(i).Start) >= f.MinDuration
}

func of(ok bool) Verdict {
	if ok {
		return Yes
	}
	return No
}

// place knows the cgroup only by number, and not what is below it: the kernel
// side walked up from it, and what it let through is below.
func (f *Filter) place(c *lifecycle.Conn) Verdict {
	return of((f.Netns == 0 || f.Netns == c.Netns) && (f.Cgroup == 0 || c.Cgroup != 0))
}

func (f *Filter) ports(c *lifecycle.Conn) Verdict {
	local, peer := c.Local.Port(), c.Peer.Port()
	listener := c.Role == lifecycle.RoleListener
	known := local != 0 && (peer != 0 || listener)
	switch {
	case len(f.Ports) > 0 && !slices.Contains(f.Ports, local) && !slices.Contains(f.Ports, peer),
		len(f.Local) > 0 && !slices.Contains(f.Local, local),
		len(f.Remote) > 0 && !slices.Contains(f.Remote, peer):
		if known {
			return No
		}
		return Open
	}
	return Yes
}

func (f *Filter) addrs(c *lifecycle.Conn) Verdict {
	if f.Family == 0 && len(f.Addrs) == 0 {
		return Yes
	}
	if !c.Local.IsValid() {
		return Open
	}
	addr := c.Peer.Addr()
	if !addr.IsValid() {
		addr = c.Local.Addr()
	}
	if f.Family != 0 && addr.Is4() != (f.Family == 4) {
		return No
	}
	return of(len(f.Addrs) == 0 || slices.ContainsFunc(f.Addrs, func(p netip.Prefix) bool {
		return p.Contains(c.Local.Addr()) || p.Contains(c.Peer.Addr())
	}))
}

func (f *Filter) owner(c *lifecycle.Conn) Verdict {
	if f.NotPID != 0 && c.Owner.PID == f.NotPID {
		return No
	}
	if len(f.PIDs) == 0 && len(f.Comms) == 0 {
		return Yes
	}
	settled := c.Owner.Source == event.OwnerConnect || c.Owner.Source == event.OwnerListen || c.Owner.Source == event.OwnerAccept
	if f.Tree && settled {
		return Yes // the kernel side knows the children, and let it through
	}
	switch {
	case f.is(c.Owner.Task):
		return Yes
	case settled:
		return No
	case slices.ContainsFunc(c.Holders(), f.is):
		return Yes
	}
	return Open
}

// is reports whether a process is one that is asked for.
func (f *Filter) is(t event.Task) bool {
	return (len(f.PIDs) == 0 || slices.Contains(f.PIDs, t.PID)) &&
		(len(f.Comms) == 0 || slices.ContainsFunc(f.Comms, func(s string) bool { return event.MakeComm(s) == t.Comm }))
}

func (f *Filter) role(c *lifecycle.Conn) Verdict {
	if len(f.Roles) == 0 || slices.Contains(f.Roles, c.Role) {
		return Yes
	}
	if c.Role == lifecycle.RoleUnknown && c.End == 0 {
		return Open
	}
	return No
}

// Socket decides about a socket of a census. Of its owners any may match; one
// that waits to be accepted counts as its listener's.
func (f *Filter) Socket(s *census.Socket) bool {
	shared := lifecycle.Shared{Netns: s.Netns, Cgroup: s.Cgroup}
	c := lifecycle.Conn{Shared: &shared, Local: lifecycle.EndpointOf(s.Local), Peer: lifecycle.EndpointOf(s.Peer), Role: s.Role, State: s.New, End: 1}
	if f.Cgroup != 0 && !slices.Contains(f.Cgroups, s.Cgroup) {
		return false
	}
	if len(f.PIDs) == 0 && len(f.Comms) == 0 {
		return f.Conn(&c) == Yes
	}
	match := func(s *census.Socket) bool {
		return slices.ContainsFunc(s.Holders, func(h census.Holder) bool {
			shared.Owner = lifecycle.Owner{Task: h.Task, Source: event.OwnerHolder}
			return f.Conn(&c) == Yes
		})
	}
	return match(s) || s.Listened() && slices.ContainsFunc(s.Listeners, match)
}
