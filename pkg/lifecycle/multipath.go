// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "github.com/stated-tcp/stated/pkg/event"

// Multipath is an MPTCP connection (RFC 8684) as it and its subflows know it:
// all of their Conns share it.
type Multipath struct {
	Socket     event.SocketID // of the connection
	FirstEvent int64          // of the connection
	Local      Endpoint
	Peer       Endpoint
	Subflows   int // that were seen
}

// learn takes over what an event knows of the connection, and of the MPTCP
// connection that it is, or is a subflow of. What the kernel's worker opens, and
// what accept() returns only the connection for, belongs to whoever has the
// connection.
func (t *Table) learn(c *Conn, e *event.Event) {
	t.learnAlone(c, e)
	switch {
	case c.Protocol == event.ProtoMPTCP:
		m := c.Multipath()
		if m == nil {
			m = &Multipath{Socket: c.Socket, FirstEvent: c.FirstEvent}
			c.rare().Multipath = m
		}
		m.Local, m.Peer = c.Local, c.Peer
	case e.MPTCP != 0:
		whole := t.conns[e.MPTCP]
		if whole == nil || whole.Multipath() == nil {
			return
		}
		if c.Multipath() == nil {
			c.rare().Multipath = whole.Multipath()
			c.Multipath().Subflows++
		}
		t.own(c, whole.Owner.Task, whole.Owner.Source)
	}
}
