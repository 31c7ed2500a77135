// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "github.com/stated-tcp/stated/pkg/event"

// Observer is told what happens to connections, in order. A Conn is the
// table's: it is valid during the call only.
type Observer interface {
	// Transition follows each change of state, and each first sight of a
	// socket. c already is in e.New; the state before is the last span but one,
	// if there is one. Also called for close() after shutdown (e.Old == e.New).
	Transition(c *Conn, e *event.Event)
	// Finished is called once for each connection that ended or was given up.
	Finished(c *Conn)
}

// Stats counts what a Table did.
type Stats struct {
	Events      uint64 // applied
	Lost        uint64 // events that the kernel could not hand over
	Gaps        uint64 // connections in which an event was seen to be missing
	Evicted     uint64 // connections given up because the table was full
	Open        int    // connections in the table that have not ended
	Held        int    // ended, but a descriptor is still open
	Outcomes    [NumOutcomes]uint64
	Transitions [event.NumStates][event.NumStates]uint64
}
