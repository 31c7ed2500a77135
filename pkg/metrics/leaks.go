// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"slices"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/render"
)

// leaking is what one executable leaks, in all of its processes.
type leaking struct {
	sockets [event.NumStates]int
	growth  float64 // sockets a second
	left    float64 // seconds until the first of its processes has no descriptors left
	ends    bool    // left is known
}

// leaks is what the last look for leaks found.
type leaks struct {
	groups   int
	verdicts [leak.NumVerdicts]int
	by       map[string]leaking // by executable
}

func findLeaks(l *render.Leaks) *leaks {
	out := &leaks{groups: len(l.Groups), by: make(map[string]leaking)}
	for i := range l.Groups {
		g := &l.Groups[i]
		for v, n := range g.Verdicts {
			out.verdicts[v] += n
		}
		owners := g.Oldest().Owners()
		name := "unknown"
		switch {
		case len(owners) > 0:
			name = nameOf(&owners[0])
		case g.Kernel():
			name = "kernel"
		}
		e := out.by[name]
		for s, n := range g.States {
			e.sockets[s] += n
		}
		e.growth += l.Growth[g.Key]
		if len(owners) > 0 {
			if ns, ok := l.Exhaustion(g, l.Processes(owners[0])); ok && (!e.ends || seconds(ns) < e.left) {
				e.left, e.ends = seconds(ns), true
			}
		}
		out.by[name] = e
	}
	return out
}

// total is how many sockets an executable leaks.
func (e *leaking) total() (n int) {
	for _, m := range e.sockets {
		n += m
	}
	return n
}

func (l *leaks) collect(send func(desc, float64, ...string)) {
	send(leakFindings, float64(l.groups))
	for v, n := range l.verdicts {
		if n > 0 {
			send(leakVerdicts, float64(n), leak.Verdict(v).String())
		}
	}
	names := make([]string, 0, len(l.by))
	for name := range l.by {
		names = append(names, name)
	}
	total := func(name string) int { e := l.by[name]; return e.total() }
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(total(b)-total(a), cmp.Compare(a, b)) })
	var other leaking
	for i, name := range names {
		e := l.by[name]
		if i < maxExecutables && name != "other" { // which an executable may be called, too
			e.collect(send, name)
			continue
		}
		for s, n := range e.sockets {
			other.sockets[s] += n
		}
		other.growth += e.growth
		if e.ends && (!other.ends || e.left < other.left) {
			other.left, other.ends = e.left, true
		}
	}
	if other.total() > 0 {
		other.collect(send, "other")
	}
}

func (e *leaking) collect(send func(desc, float64, ...string), name string) {
	for s, n := range e.sockets {
		if n > 0 {
			send(leakSockets, float64(n), event.State(s).Name(event.NamingOTel), name)
		}
	}
	send(leakGrowth, e.growth, name)
	if e.ends {
		send(leakEnd, e.left, name)
	}
}
