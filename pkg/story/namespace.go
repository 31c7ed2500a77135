// SPDX-License-Identifier: Apache-2.0

package story

import (
	"strconv"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/render"
)

// mark says of what is not in our network namespace in which it is.
func (t *Teller) mark(b []byte, netns uint32) []byte { return render.AppendNetns(b, netns, t.Netns) }

// foreign reports whether commands about a socket must run in another namespace.
func (t *Teller) foreign(s *census.Socket) bool {
	return len(t.mark(nil, s.Netns)) > 0
}

// inside is a process of a foreign socket's namespace, 0: none is known.
func (t *Teller) inside(s *census.Socket) uint32 {
	if !t.foreign(s) || t.Inside == nil {
		return 0
	}
	return t.Inside(s)
}

// enter begins a command that must run in the network namespace of a socket.
func (t *Teller) enter(b []byte, s *census.Socket) []byte {
	if pid := t.inside(s); pid != 0 {
		b = strconv.AppendUint(append(b, "nsenter -t "...), uint64(pid), 10)
		b = append(b, " -n "...)
	}
	return b
}

// where says in which namespace commands must run that enter cannot begin.
func (t *Teller) where(b []byte, s *census.Socket) []byte {
	if !t.foreign(s) || t.inside(s) != 0 {
		return b
	}
	b = strconv.AppendUint(append(b, " These must run in network namespace "...), uint64(s.Netns), 10)
	return append(b, ", in which no process was found (lsns -t net, ip netns):"...)
}
