// SPDX-License-Identifier: Apache-2.0

package render

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// maxOwners is how many processes of a container are shown.
const maxOwners = 5

// owners are the processes of a group: those that hold the oldest socket, which
// but for containers hold all of them. Of a container they are the first that
// are met.
func (l *Leaks) owners(g *leak.Group) []event.Task {
	if l.Container == nil {
		return g.Oldest().Owners()
	}
	var tasks []event.Task
	for i := range g.Findings {
		for _, t := range g.Findings[i].Owners() {
			if !slices.ContainsFunc(tasks, func(have event.Task) bool { return have.PID == t.PID }) {
				if tasks = append(tasks, t); len(tasks) == maxOwners {
					return tasks
				}
			}
		}
	}
	return tasks
}

// sameService reports whether all of a group came in at one port, or called one
// address.
func sameService(g *leak.Group) bool {
	role, service := g.Oldest().Service()
	for i := range g.Findings {
		r, s := g.Findings[i].Service()
		if r != role || s.Port() != service.Port() || role != lifecycle.RoleServer && s != service {
			return false
		}
	}
	return true
}

// appendContainer names the container and its pod before their processes.
func (l *Leaks) appendContainer(b []byte, g *leak.Group, owners []event.Task) []byte {
	name := l.Container(g)
	if name == leak.Host {
		b = append(b, "host"...)
	} else {
		b = EscapeText(append(b, "container "...), []byte(name))
	}
	for _, t := range owners {
		p := l.Processes(t)
		if pod := cmp.Or(p.PodName, p.Pod); pod != "" {
			b = append(EscapeText(append(b, " (pod "...), []byte(pod)), ')')
			break
		}
	}
	return append(b, ", "...)
}

// containerID names the leaks of a container across reports.
func containerID(h *Host, container string) uint64 {
	hash := fnv.New64a()
	for _, s := range []string{h.ID, "container", container} {
		hash.Write([]byte(s))
		hash.Write([]byte{0})
	}
	return hash.Sum64()
}
