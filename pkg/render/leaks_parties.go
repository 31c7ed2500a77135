// SPDX-License-Identifier: Apache-2.0

package render

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// maxOwners is how many processes are shown of a group that is not theirs alone.
const maxOwners = 5

// parties are the processes and the network namespaces of a group.
type parties struct {
	owners   []event.Task // those to show, first those of the oldest socket
	more     int          // of owners that are not shown
	mixed    bool         // not all sockets are of the same processes
	networks int          // network namespaces
	flow     leak.Flow    // of all owners
}

func (l *Leaks) parties(g *leak.Group) (p parties) {
	p.owners = g.Oldest().Owners()
	met, networks := make(map[uint32]bool), make(map[uint32]bool)
	meet := func(t event.Task) {
		met[t.PID] = true
		if l.Flow != nil {
			f := l.Flow(t.PID)
			p.flow.In, p.flow.Out = p.flow.In+f.In, p.flow.Out+f.Out
		}
	}
	for _, t := range p.owners {
		meet(t)
	}
	first := len(met)
	for i := range g.Findings {
		f := &g.Findings[i]
		networks[f.Netns] = true
		owners := f.Owners()
		p.mixed = p.mixed || len(owners) != first
		for _, t := range owners {
			if met[t.PID] {
				continue
			}
			meet(t)
			p.mixed = true
			if len(p.owners) < maxOwners {
				p.owners = append(p.owners, t)
			} else {
				p.more++
			}
		}
	}
	p.networks = len(networks)
	return p
}

// several reports whether a socket has to say whose it is.
func (p *parties) several() bool { return p.mixed || len(p.owners) > 1 }

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

// appendCommon names what a group has in common before its processes. told: that
// is the service, too.
func (l *Leaks) appendCommon(b []byte, g *leak.Group, p *parties) (_ []byte, told bool) {
	role, service := g.Oldest().Service()
	switch l.By {
	case ByContainer:
		b = l.appendContainer(b, g, p.owners)
	case ByListener:
		if told = role == lifecycle.RoleServer; told {
			b = appendListener(b, g)
		} else {
			b = append(b, "no listener"...)
		}
	case ByPeer:
		b = append(b, "peer "...)
		if told = role != lifecycle.RoleServer; told {
			b = AppendAddr(b, service)
		} else {
			b = append(b, g.Oldest().Peer.Addr().String()...)
		}
	default:
		return b, false
	}
	if p.networks > 1 {
		b = append(appendInt(append(b, " in "...), int64(p.networks)), " network namespaces"...)
	}
	return append(b, ", "...), told
}

// appendListener says where the connections came in: the address of the listener
// where it is there still, and the same for all.
func appendListener(b []byte, g *leak.Group) []byte {
	at := g.Oldest().Entrance()
	for i := range g.Findings {
		if g.Findings[i].Entrance() != at {
			return appendInt(append(b, "listeners at port "...), int64(at.Port()))
		}
	}
	return AppendAddr(append(b, "listener "...), at)
}

// appendContainer names the container and its pod.
func (l *Leaks) appendContainer(b []byte, g *leak.Group, owners []event.Task) []byte {
	if g.Key == leak.Host {
		b = append(b, "host"...)
	} else {
		b = EscapeText(append(b, "container "...), []byte(g.Key))
	}
	for _, t := range owners {
		p := l.Processes(t)
		if pod := cmp.Or(p.PodName, p.Pod); pod != "" {
			b = append(EscapeText(append(b, " (pod "...), []byte(pod)), ')')
			break
		}
	}
	return b
}

// commonID names the leaks of a container, a peer, or a listener across reports.
func commonID(h *Host, what, which string) uint64 {
	hash := fnv.New64a()
	for _, s := range []string{h.ID, what, which} {
		hash.Write([]byte(s))
		hash.Write([]byte{0})
	}
	return hash.Sum64()
}

// queues are the listeners in whose queues findings of the group wait.
func queues(g *leak.Group) (at []*census.Socket) {
	for i := range g.Findings {
		if f := &g.Findings[i]; f.NotAccepted() {
			for _, s := range f.Listeners {
				if !slices.Contains(at, s) && len(at) < maxOwners {
					at = append(at, s)
				}
			}
		}
	}
	return at
}
