// SPDX-License-Identifier: Apache-2.0

package census

import (
	"cmp"
	"net/netip"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Evidence is what an inferred role follows from.
type Evidence uint8

// The later is the better.
const (
	NoEvidence Evidence = iota
	ByPorts             // which port the kernel chose, and which end has several connections
	ByListener          // a listener is there on our port
	BySYN               // whether our SYN is among what the peer has acknowledged
	ByPeer              // the role of the other end, which is in the census, too
)

// usual are the ports that a kernel chooses from for connect() unless it is told
// otherwise (net.ipv4.ip_local_port_range). It is assumed of namespaces whose range
// is not known, and besides ours of peers.
var usual = event.PortRange{Lowest: 32768, Highest: 60999}

// ends are those of a connection, as seen from one of them.
type ends struct {
	netns       uint32
	local, peer netip.AddrPort
}

type place struct {
	netns uint32
	addr  netip.AddrPort
}

// roles finds the role of each socket.
type roles struct {
	ports   map[uint32]event.PortRange // by namespace
	sockets map[ends]*Socket
	locals  map[place]int // how many connections our end has
	peers   map[place]int // how many the peer's
}

func newRoles(sockets []*Socket) *roles {
	r := &roles{make(map[uint32]event.PortRange), make(map[ends]*Socket), make(map[place]int), make(map[place]int)}
	for _, s := range sockets {
		if s.Ports != (event.PortRange{}) {
			r.ports[s.Netns] = s.Ports // one that only a holder told has none
		}
		if at := (ends{s.Netns, s.Local, s.Peer}); s.connected() && r.sockets[at] == nil {
			r.sockets[at] = s
			r.locals[place{s.Netns, s.Local}]++
			r.peers[place{s.Netns, s.Peer}]++
		}
	}
	return r
}

func (s *Socket) connected() bool {
	return s.New != event.StateListen && s.Peer.IsValid() && s.Peer.Port() != 0
}

// of is the role of a socket by itself.
func (r *roles) of(s *Socket, c *lifecycle.Conn) (lifecycle.Role, lifecycle.Known, Evidence) {
	switch {
	case s.New == event.StateListen:
		return lifecycle.RoleListener, lifecycle.Seen, NoEvidence
	case c != nil && c.Role != lifecycle.RoleUnknown:
		return c.Role, lifecycle.Seen, NoEvidence
	case s.NotAccepted(), s.New == event.StateSynRecv:
		return lifecycle.RoleServer, lifecycle.Seen, NoEvidence
	case s.New == event.StateSynSent:
		return lifecycle.RoleClient, lifecycle.Seen, NoEvidence
	case !s.connected():
		return lifecycle.RoleUnknown, lifecycle.Seen, NoEvidence
	}
	if role := s.bySYN(); role != lifecycle.RoleUnknown {
		return role, lifecycle.Inferred, BySYN
	}
	if len(s.Listeners) > 0 {
		return lifecycle.RoleServer, lifecycle.Inferred, ByListener
	}
	switch n := r.chosen(s) + cmp.Compare(r.locals[place{s.Netns, s.Local}], r.peers[place{s.Netns, s.Peer}]); {
	case n > 0:
		return lifecycle.RoleServer, lifecycle.Inferred, ByPorts
	case n < 0:
		return lifecycle.RoleClient, lifecycle.Inferred, ByPorts
	}
	return lifecycle.RoleUnknown, lifecycle.Seen, NoEvidence
}

// chosen is 1 where the peer's kernel may have chosen its port and ours did not
// choose our end's, -1 where it is the other way round. A range that goes beyond the
// usual one at both sides has the ports of many services in it: there only those
// that are in both tell something.
func (r *roles) chosen(s *Socket) (n int) {
	ours, known := r.ports[s.Netns]
	if !known || ours.Has(usual.Lowest) && ours.Has(usual.Highest) {
		ours = usual
	}
	if peer := s.Peer.Port(); usual.Has(peer) || ours.Has(peer) {
		n++
	}
	if ours.Has(s.Local.Port()) {
		n--
	}
	return n
}

// bySYN counts: bytes_acked has one for a client's SYN and one for a FIN,
// bytes_sent neither, and a server begins behind its SYN (tcp_connect_init,
// tcp_create_openreq_child, tcp_snd_una_update). In CLOSE it is not known whether
// a FIN was acknowledged.
func (s *Socket) bySYN() lifecycle.Role {
	if s.Flags.Has(event.FlagMini) || s.Protocol != event.ProtoTCP || !s.Opened || s.Unsent != 0 {
		return lifecycle.RoleUnknown
	}
	more := s.BytesAcked - (s.BytesSent - s.BytesResent)
	switch s.New {
	case event.StateFinWait2:
		more--
	case event.StateClose:
		switch more {
		case 1:
			return lifecycle.RoleUnknown
		case 2:
			more = 1
		}
	}
	switch more {
	case 0:
		return lifecycle.RoleServer
	case 1:
		return lifecycle.RoleClient
	}
	return lifecycle.RoleUnknown
}

// agree makes the two ends of a connection fit where both are in the census: the
// better evidence counts, and what contradicts itself is unknown.
func (r *roles) agree(sockets []*Socket) {
	for _, s := range sockets {
		other := r.sockets[ends{s.Netns, s.Peer, s.Local}]
		if s.connected() {
			s.Other = other
		}
		if other == nil || s.Role == opposite(other.Role) {
			continue
		}
		switch n := s.strength() - other.strength(); {
		case n > 0:
			other.Role, other.RoleKnown, other.Evidence = opposite(s.Role), lifecycle.Inferred, ByPeer
		case n < 0:
			s.Role, s.RoleKnown, s.Evidence = opposite(other.Role), lifecycle.Inferred, ByPeer
		case s.Evidence != NoEvidence:
			s.Role, s.RoleKnown, s.Evidence = lifecycle.RoleUnknown, lifecycle.Seen, NoEvidence
			other.Role, other.RoleKnown, other.Evidence = s.Role, s.RoleKnown, s.Evidence
		}
	}
}

// strength is that of the evidence; an event is better than any.
func (s *Socket) strength() int {
	if s.Evidence == NoEvidence && s.Role != lifecycle.RoleUnknown {
		return int(ByPeer)
	}
	return int(s.Evidence)
}

func opposite(r lifecycle.Role) lifecycle.Role {
	switch r {
	case lifecycle.RoleServer:
		return lifecycle.RoleClient
	case lifecycle.RoleClient:
		return lifecycle.RoleServer
	}
	return r
}
