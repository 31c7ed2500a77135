// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"os"
	"slices"

	"github.com/stated-tcp/stated/pkg/diag"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/proc"
)

// found is a part of a snapshot by sock_diag, on its way to Read.
type found struct {
	at       int64 // when all of it had been read; events until then come first
	look     int64 // when the snapshot began
	begun    int64 // when it was asked for
	sockets  []event.Sighting
	boundary event.Event // or a KindSnapshotBegin, KindSnapshotDone or KindSnapshotEnd
	complete bool        // of KindSnapshotEnd: all namespaces were listed that were found
}

// A datagram of the kernel has some hundred sockets at most.
const (
	foundAhead  = 16 // parts that wait for Read before the snapshot does
	foundAtOnce = 64 // parts that Read takes
)

// snapshotByDiag is Snapshot where there are no iterators. The parts stand between
// the same boundaries. Those of network namespace 0 stand around all of them, and
// the last of them is missing if anything is: of connections that were never shown
// it is not known in which they are.
func (p *Probe) snapshotByDiag() error {
	p.names.look()
	begun := diag.Now()
	put := func(f found) error {
		f.look = begun
		f.at = diag.Now()
		select {
		case p.found <- f:
			return nil
		case <-p.closed:
			return os.ErrClosed
		}
	}
	bound := func(kind event.Kind, netns uint32) error {
		e := event.Event{Kind: kind, Netns: netns}
		if e.Time = diag.Now(); kind == event.KindSnapshotBegin {
			e.Time -= slack
		}
		return put(found{boundary: e})
	}
	l := look{
		finder: p.finder, proc: proc.New(proc.Options{}), guard: &p.guard,
		begin: func(netns uint32) error { return bound(event.KindSnapshotBegin, netns) },
		done:  func(netns uint32) error { return bound(event.KindSnapshotDone, netns) },
	}
	l.batch = func(b *diag.Batch) error {
		sockets := slices.Clone(b.Sockets)
		for i := range sockets {
			s := &sockets[i]
			var held bool
			if s.Owner, held = l.holder(s.Inode); held && s.New == event.StateListen {
				s.OwnerSource = event.OwnerListen
			} else if held {
				s.OwnerSource = event.OwnerHolder
			}
		}
		return put(found{begun: b.Begun, sockets: sockets})
	}
	if err := bound(event.KindSnapshotBegin, 0); err != nil {
		return err
	}
	err := l.run(event.AllStates)
	if l.whole() {
		if err := bound(event.KindSnapshotDone, 0); err != nil {
			return err
		}
	}
	end := found{complete: l.complete(), boundary: event.Event{Kind: event.KindSnapshotEnd}}
	end.boundary.Time = diag.Now()
	if putErr := put(end); putErr != nil {
		return putErr
	}
	return err
}

// take gets what was found before the ring is read next.
func (p *Probe) take() {
	for len(p.taken) < foundAtOnce {
		select {
		case f := <-p.found:
			p.taken = append(p.taken, f)
		default:
			return
		}
	}
}

// tell makes events of what was found before a time: all events until then have
// been read.
func (p *Probe) tell(before int64) {
	n := 0
	for ; n < len(p.taken) && p.taken[n].at < before; n++ {
		f := &p.taken[n]
		for i := range f.sockets {
			p.queued = append(p.queued, p.names.sighting(&f.sockets[i], f.begun, f.look)...)
		}
		if f.boundary.Kind != event.KindNone {
			p.queued = append(p.queued, f.boundary)
		}
		switch f.boundary.Kind {
		case event.KindSnapshotDone:
			p.names.showed(f.boundary.Netns, f.look)
		case event.KindSnapshotEnd:
			p.names.looked(f.look, f.complete)
		}
	}
	p.taken = slices.Delete(p.taken, 0, n)
}
