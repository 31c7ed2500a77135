// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"slices"

	"github.com/stated-tcp/stated/pkg/diag"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/proc"
)

// lookout is an Inspector by sock_diag and /proc.
type lookout struct {
	why   error // it is not one by iterators
	names *names
	proc  *proc.Resolver
	guard *guard
	held  []descriptor     // of the sockets that were shown
	stray []event.Sighting // descriptors of those that were not
	// dead has since when sockets in CLOSE are known to be, by cookie. Those that
	// the last look did not show are not in it.
	dead map[event.SocketID]death
}

// closed tells a connection in CLOSE from one that ended later on the same socket.
type closed struct {
	local, peer    netip.AddrPort
	sent, received uint64
}

type death struct {
	closed
	since int64 // nanoseconds since boot
}

func limitedInspector(why error, known *names, g *guard) *Inspector {
	return &Inspector{limited: &lookout{why: why, names: known, proc: proc.New(proc.Options{}), guard: g}}
}

func (o *lookout) sockets(states event.StateSet, each func(*event.Sighting)) error {
	asked := states
	if states.Has(event.StateClose) {
		asked = event.AllStates // what is not among all of them may be in CLOSE
	}
	wanted, dead := make(map[uint64]bool), make(map[event.SocketID]death)
	o.stray = o.stray[:0]
	l := look{finder: new(finder), proc: o.proc, guard: o.guard}
	l.batch = func(b *diag.Batch) error {
		for i := range b.Sockets {
			if s := &b.Sockets[i]; diag.Wanted(states, s) {
				if s.Inode != 0 {
					wanted[s.Inode] = true
				}
				o.name(s)
				each(s)
			}
		}
		return nil
	}
	l.stray = func(s *event.Sighting) error {
		if s.New == event.StateClose {
			dead[s.Socket] = o.age(s)
		}
		o.name(s)
		o.stray = append(o.stray, *s)
		return nil
	}
	err := l.run(asked)
	o.dead = dead
	o.held = slices.DeleteFunc(l.held, func(d descriptor) bool { return !wanted[d.inode] })
	return err
}

// age finds since when a socket is known to be in CLOSE.
func (o *lookout) age(s *event.Sighting) death {
	d := death{closed{s.Local, s.Peer, s.BytesSent, s.BytesReceived}, s.Time}
	if before, known := o.dead[s.Socket]; known && before.closed == d.closed {
		s.Since, d.since = before.since, before.since
	}
	return d
}

func (o *lookout) holders(states event.StateSet, each func(*event.Sighting)) error {
	for i := range o.held {
		var s event.Sighting
		o.held[i].tell(&s)
		each(&s)
	}
	for i := range o.stray {
		if states.Has(o.stray[i].New) {
			each(&o.stray[i])
		}
	}
	return nil
}

// name gives a socket the number that the events of the probe give it.
func (o *lookout) name(s *event.Sighting) {
	if o.names != nil {
		s.Socket, s.Flags = o.names.of(s.Socket, s.Flags)
	}
}
