// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Group is findings that have their holder, service, or what else was asked
// for in common.
type Group struct {
	Key      string    // the same for the same group in every report of a run
	Findings []Finding // oldest first
	Verdicts [NumVerdicts]int
	States   [event.NumStates]int
	Unread   uint64 // bytes of payload, of all findings
}

// Kernel reports whether the kernel itself has all of them.
func (g *Group) Kernel() bool {
	return !slices.ContainsFunc(g.Findings, func(f Finding) bool { return !f.Kernel() })
}

// Flow counts connections that came into CLOSE_WAIT, and that left it.
type Flow struct{ In, Out uint64 }

// Oldest returns the finding that has been stuck for longest.
func (g *Group) Oldest() *Finding { return &g.Findings[0] }

// Service is what the connection is for: our port where they called, else the
// peer's address.
func (f *Finding) Service() (lifecycle.Role, netip.AddrPort) {
	if f.Role == lifecycle.RoleServer {
		return f.Role, f.Local
	}
	return f.Role, f.Peer
}

// Entrance is the address that the connection came in at: that of its listener
// where it is there still.
func (f *Finding) Entrance() netip.AddrPort {
	if len(f.Listeners) > 0 {
		return f.Listeners[0].Local
	}
	return f.Local
}

// Key tells findings apart.
type Key func(*Finding) string

// ByProcess groups by the processes that hold the socket, or the kernel, and the
// service.
func ByProcess(f *Finding) string {
	var b []byte
	if f.Kernel() {
		b = append(b, "kernel "...)
	}
	for _, t := range f.Owners() {
		b = strconv.AppendUint(b, uint64(t.PID), 10)
		b = append(b, '@')
		b = strconv.AppendInt(b, t.Start, 10)
		b = append(b, ' ')
	}
	role, service := f.Service()
	if role == lifecycle.RoleServer {
		return string(strconv.AppendUint(append(b, '<'), uint64(service.Port()), 10))
	}
	return string(service.AppendTo(append(b, '>')))
}

// ByPeer groups by the peer: address and port where we called, the address
// where they did, as their ports are chance.
func ByPeer(f *Finding) string {
	if f.Role == lifecycle.RoleServer {
		return f.Peer.Addr().String()
	}
	return f.Peer.String()
}

// ByListener groups by the port that the connection came in at; what we called
// out is one group.
func ByListener(f *Finding) string {
	if f.Role != lifecycle.RoleServer {
		return ""
	}
	return strconv.Itoa(int(f.Local.Port()))
}

// ByContainer groups by the container that the processes are in, which
// container tells of one: its id, "" for none.
func ByContainer(container func(event.Task) string) Key {
	return func(f *Finding) string {
		for _, t := range f.Owners() {
			if id := container(t); id != "" {
				return id
			}
		}
		return Host
	}
}

// Host is the key of ByContainer for processes in no container.
const Host = "host"

// ByStack groups by where in the code the socket was opened, whichever process
// of the program did. Those of which that is not known are grouped by process.
func ByStack(f *Finding) string {
	if f.Stack == nil {
		return ByProcess(f)
	}
	return f.Stack.Key
}

// ByNone makes each finding a group.
func ByNone(f *Finding) string {
	return strconv.FormatUint(uint64(f.Sighting.Socket), 16) + "/" + strconv.FormatUint(f.Inode, 10)
}

// Group puts findings together, the largest group first.
func (r *Report) Group(by Key) []Group {
	index := make(map[string]int)
	var groups []Group
	for i := range r.Findings {
		f := &r.Findings[i]
		key := by(f)
		at, ok := index[key]
		if !ok {
			at = len(groups)
			index[key] = at
			groups = append(groups, Group{Key: key})
		}
		g := &groups[at]
		g.Findings = append(g.Findings, *f)
		g.Verdicts[f.Verdict]++
		g.States[f.New]++
		g.Unread += uint64(f.Unread)
	}
	slices.SortStableFunc(groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(len(b.Findings), len(a.Findings)), cmp.Compare(b.Oldest().Age.Min, a.Oldest().Age.Min))
	})
	return groups
}

// Least findings that must agree for CommonIdle to speak.
const least = 3

// CommonIdle returns how long the connections of the group had been idle when
// the peer closed them, in nanoseconds, if most that are known to have waited
// for about as long: then the peer has a time-out of that length, and the pool
// at this end does not know. 0 otherwise.
func (g *Group) CommonIdle() int64 {
	var idle []int64
	for _, f := range g.Findings {
		if f.Idle > 1e9 {
			idle = append(idle, f.Idle)
		}
	}
	if len(idle) < least {
		return 0
	}
	slices.Sort(idle)
	median := idle[len(idle)/2]
	near := 0
	for _, d := range idle {
		if d >= median-median/10 && d <= median+median/10 {
			near++
		}
	}
	if near*4 < len(idle)*3 {
		return 0
	}
	return median
}
