// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "github.com/stated-tcp/stated/pkg/event"

// Owner is the process that a connection belongs to, and how that is known.
type Owner struct {
	event.Task
	Source event.OwnerSource
}

// Shared is what the connections of a process have in common. They point to one
// Shared, so it never changes: a connection of which something else becomes
// known gets another.
type Shared struct {
	Owner    Owner
	Cgroup   uint64 // id of the socket's cgroup v2, 0 unknown
	Netns    uint32
	UID      uint32 // owner of the socket, with UIDKnown
	UIDKnown bool
	Subflow  bool // of an MPTCP connection
	Kernel   bool // the kernel's own, event.FlagKernel: the owner is in whose context it connected or listened
	Family   uint16
	Protocol uint16
}

// unknown is what a connection has before its first event.
var unknown Shared

// maxShares bounds what is kept for connections to come.
const maxShares = 4096

// shares finds a Shared for the next connection. When there are too many it
// begins anew, so that of some there may be two.
type shares struct {
	known map[Shared]*Shared
	last  *Shared
}

// of returns the one that is like s.
func (x *shares) of(s *Shared) *Shared {
	if x.last != nil && *x.last == *s {
		return x.last
	}
	p := x.known[*s]
	if p == nil {
		if x.known == nil || len(x.known) >= maxShares {
			x.known = make(map[Shared]*Shared)
		}
		p = new(Shared)
		*p = *s
		x.known[*p] = p
	}
	x.last = p
	return p
}

// task returns the one that is like t, nil for nobody. Mostly it is the owner.
func (x *shares) task(t *event.Task, owner *Shared) *event.Task {
	switch {
	case t.IsZero():
		return nil
	case owner.Owner.Task == *t:
		return &owner.Owner.Task
	}
	return &x.of(&Shared{Owner: Owner{Task: *t}}).Owner.Task
}

// ownerRank orders what is known of an owner: who got the descriptor from the
// kernel stands above who merely has it or closed it, and all of them above the
// owner of the listener.
var ownerRank = [...]uint8{
	event.OwnerUnknown: 0, event.OwnerListener: 1, event.OwnerClose: 2, event.OwnerHolder: 3, event.OwnerRead: 4,
	event.OwnerConnect: 5, event.OwnerListen: 5, event.OwnerAccept: 6,
}

// outranked reports whether of this process it is known better that it is the owner.
func (s *Shared) outranked(pid uint32, source event.OwnerSource) bool {
	return pid != 0 && int(source) < len(ownerRank) && ownerRank[source] > ownerRank[s.Owner.Source]
}

// knows reports whether s has all that learn would take over. Mostly it has: a copy
// for each event would be slow.
func (s *Shared) knows(e *event.Event) bool {
	return s.Netns == e.Netns && s.Protocol == e.Protocol && s.Family == e.Family && (e.Cgroup == 0 || s.Cgroup == e.Cgroup) &&
		(s.UID == e.UID && s.UIDKnown || !tellsUID(e)) &&
		(s.Subflow == e.Flags.Has(event.FlagMPTCP) || e.Flags.Has(event.FlagPartial)) &&
		(s.Kernel || !e.Flags.Has(event.FlagKernel)) &&
		!s.outranked(e.Owner.PID, e.OwnerSource)
}

func tellsUID(e *event.Event) bool {
	return e.UID != event.NoUID && (e.Flags&(event.FlagPartial|event.FlagMini) == 0 || e.Flags.Has(event.FlagTask))
}

// learn takes over what an event tells.
func (s *Shared) learn(e *event.Event) {
	s.Netns, s.Protocol, s.Family = e.Netns, e.Protocol, e.Family
	if e.Cgroup != 0 {
		s.Cgroup = e.Cgroup
	}
	if tellsUID(e) {
		s.UID, s.UIDKnown = e.UID, true
	}
	if !e.Flags.Has(event.FlagPartial) {
		s.Subflow = e.Flags.Has(event.FlagMPTCP)
	}
	s.Kernel = s.Kernel || e.Flags.Has(event.FlagKernel)
	if s.outranked(e.Owner.PID, e.OwnerSource) {
		s.Owner = Owner{Task: e.Owner, Source: e.OwnerSource}
	}
}
