// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
)

// Inspector looks at the sockets that are there: a probe.Inspector.
type Inspector interface {
	Sockets(states event.StateSet, each func(*event.Sighting)) error
	Holders(states event.StateSet, each func(*event.Sighting)) error
}

// Look takes a census of the sockets in the states, with the listeners they
// came through. An error beside a census tells of what could not be looked at.
func Look(in Inspector, states event.StateSet, now int64, history census.History) (*census.Census, error) {
	c, err := gather(in, states, now)
	c.Complete(history)
	return c, err
}

// gather is Look without what events told.
func gather(in Inspector, states event.StateSet, now int64) (*census.Census, error) {
	states = states.Add(event.StateListen)
	c := census.New(now)
	err := errors.Join(in.Sockets(states, c.Add), in.Holders(states, c.Add))
	if left := c.Unheld(); len(left) > 0 {
		// Closed since they were listed, or held by what is no process: look again.
		still := make(map[event.SocketID]event.State, len(left))
		err = errors.Join(err, in.Sockets(states, func(s *event.Sighting) { still[s.Socket] = s.New }))
		c.Drop(func(s *census.Socket) bool { return left[s] && still[s.Socket] != s.New })
	}
	return c, err
}
