// SPDX-License-Identifier: Apache-2.0

package census

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// look makes a census of sockets that no event told of.
func look(sockets ...event.Sighting) []*Socket {
	c := New(100e9)
	for i := range sockets {
		c.Add(&sockets[i])
	}
	c.Complete(nil)
	return c.Sockets
}

// socket has 7 bytes in flight, so what was acknowledged tells nothing.
func socket(state event.State, local, peer string, change ...func(*event.Sighting)) event.Sighting {
	s := event.Sighting{Event: event.Event{Kind: event.KindSnapshot, Old: state, New: state, Time: 100e9, Protocol: event.ProtoTCP,
		Netns: 1, Local: netip.MustParseAddrPort(local), Peer: netip.MustParseAddrPort(peer), BytesSent: 7, Unsent: 7}, Inode: 1, Opened: true}
	for _, f := range change {
		f(&s)
	}
	return s
}

func acked(sent, resent, acked uint64) func(*event.Sighting) {
	return func(s *event.Sighting) {
		s.BytesSent, s.BytesResent, s.BytesAcked, s.Unsent = sent, resent, acked, 0
	}
}

func mini(s *event.Sighting) {
	s.Flags, s.Inode = event.FlagMini|event.FlagNoSocket, 0
	acked(0, 0, 0)(s)
}

// TestRole: who called is seen, or follows from the best evidence that there is,
// and is unknown where that is balanced.
func TestRole(t *testing.T) {
	const (
		unknown, client, server = lifecycle.RoleUnknown, lifecycle.RoleClient, lifecycle.RoleServer
		open, gone              = event.StateEstablished, event.StateClose
	)
	a, b, c := "10.0.0.1:9201", "10.0.0.2:40000", "10.0.0.2:40001"
	for name, tt := range map[string]struct {
		sockets []event.Sighting
		role    lifecycle.Role // of the first
		by      Evidence
	}{
		"calling":                     {[]event.Sighting{socket(event.StateSynSent, a, b)}, client, NoEvidence},
		"SYN acknowledged":            {[]event.Sighting{socket(open, a, b, acked(9, 2, 8))}, client, BySYN},
		"no SYN acknowledged":         {[]event.Sighting{socket(open, b, a, acked(9, 2, 7))}, server, BySYN},
		"FIN acknowledged":            {[]event.Sighting{socket(event.StateFinWait2, b, a, acked(9, 0, 10))}, server, BySYN},
		"SYN and FIN":                 {[]event.Sighting{socket(event.StateFinWait2, a, b, acked(9, 0, 11))}, client, BySYN},
		"numbers that do not fit":     {[]event.Sighting{socket(open, a, b, acked(9, 0, 4))}, server, ByPorts},
		"ended, SYN and FIN":          {[]event.Sighting{socket(gone, a, b, acked(0, 0, 2))}, client, BySYN},
		"ended, one of them":          {[]event.Sighting{socket(gone, b, a, acked(0, 0, 1))}, client, ByPorts},
		"ended, neither":              {[]event.Sighting{socket(gone, b, a, acked(0, 0, 0))}, server, BySYN},
		"listener":                    {[]event.Sighting{socket(open, b, a), socket(event.StateListen, "0.0.0.0:40000", "0.0.0.0:0")}, server, ByListener},
		"SYN despite a listener":      {[]event.Sighting{socket(open, a, b, acked(0, 0, 1)), socket(event.StateListen, a, "0.0.0.0:0")}, client, BySYN},
		"listener elsewhere":          {[]event.Sighting{socket(open, b, a), socket(event.StateListen, b, "0.0.0.0:0", func(s *event.Sighting) { s.Netns = 2 })}, client, ByPorts},
		"mini socket has no numbers":  {[]event.Sighting{socket(event.StateTimeWait, b, a, mini)}, client, ByPorts},
		"neither port chosen":         {[]event.Sighting{socket(open, "10.0.0.1:905", "10.0.0.2:2049")}, unknown, NoEvidence},
		"both ports chosen":           {[]event.Sighting{socket(open, "10.0.0.1:50051", b)}, unknown, NoEvidence},
		"our port has several":        {[]event.Sighting{socket(open, "10.0.0.1:50051", b), socket(open, "10.0.0.1:50051", c)}, server, ByPorts},
		"the peer's port has several": {[]event.Sighting{socket(open, b, "10.0.0.1:50051"), socket(open, c, "10.0.0.1:50051")}, client, ByPorts},
		"for and against":             {[]event.Sighting{socket(open, a, b), socket(open, "10.0.0.1:9202", b)}, unknown, NoEvidence},
		"never connected":             {[]event.Sighting{socket(gone, "0.0.0.0:0", "0.0.0.0:0", acked(0, 0, 0))}, unknown, NoEvidence},
		"other end has no SYN":        {[]event.Sighting{socket(event.StateFinWait2, "10.0.0.2:905", a, mini), socket(event.StateCloseWait, a, "10.0.0.2:905", acked(0, 0, 0))}, client, ByPeer},
		"other end knows better":      {[]event.Sighting{socket(open, b, a), socket(open, a, b, acked(0, 0, 1))}, server, ByPeer},
		"ends contradict":             {[]event.Sighting{socket(open, b, a, acked(0, 0, 1)), socket(open, a, b, acked(0, 0, 1))}, unknown, NoEvidence},
	} {
		sockets := look(tt.sockets...)
		s := sockets[0]
		if s.Role != tt.role || s.Evidence != tt.by || (s.RoleKnown == lifecycle.Inferred) != (tt.by != NoEvidence) {
			t.Errorf("%s: %s %s by %d, want %s by %d", name, s.RoleKnown, s.Role, s.Evidence, tt.role, tt.by)
		}
		if other := sockets[len(sockets)-1]; other.Local == s.Peer && other.Role != opposite(s.Role) {
			t.Errorf("%s: %s at one end, %s at the other", name, s.Role, other.Role)
		}
	}
}

// TestChosen: a port counts as chosen where the namespace's own range has it; the
// usual range is assumed only where no other is known, and of peers.
func TestChosen(t *testing.T) {
	const unknown, client, server = lifecycle.RoleUnknown, lifecycle.RoleClient, lifecycle.RoleServer
	low, high, wide := event.PortRange{Lowest: 10000, Highest: 20000}, event.PortRange{Lowest: 50000, Highest: 65535}, event.PortRange{Lowest: 1024, Highest: 65535}
	for _, tt := range []struct {
		ports       event.PortRange
		local, peer uint16
		want        lifecycle.Role
	}{
		{event.PortRange{}, 40000, 8080, client}, {event.PortRange{}, 8080, 40000, server}, {event.PortRange{}, 15000, 8080, unknown},
		{low, 15000, 8080, client}, {low, 8080, 15000, server}, {low, 40000, 8080, unknown}, {low, 8080, 40000, server},
		{low, 10000, 443, client}, {low, 20000, 443, client}, {low, 9999, 443, unknown}, {low, 20001, 443, unknown},
		{low, 15000, 16000, unknown}, {low, 15000, 40000, unknown},
		{high, 65000, 443, client}, {high, 40000, 443, unknown}, {high, 40000, 50500, server},
		{wide, 8080, 40000, server}, {wide, 40000, 8080, client}, {wide, 9201, 9300, unknown}, {wide, 9201, 443, unknown},
	} {
		at := func(host string, port uint16) string { return host + ":" + strconv.Itoa(int(port)) }
		within := func(s *event.Sighting) { s.Ports = tt.ports }
		s := look(socket(event.StateEstablished, at("10.0.0.1", tt.local), at("10.0.0.2", tt.peer), within))[0]
		if s.Role != tt.want {
			t.Errorf("%v: %d to %d is a %s, want %s", tt.ports, tt.local, tt.peer, s.Role, tt.want)
		}
	}
	// what only a holder told has the range of its namespace, and of no other
	of := func(netns uint32) func(*event.Sighting) {
		return func(s *event.Sighting) {
			if s.Netns = netns; s.Local.Port() == 1 {
				s.Ports = low
			}
		}
	}
	sockets := look(socket(event.StateEstablished, "10.0.0.1:1", "10.0.0.2:2", of(1)), socket(event.StateClose, "10.0.0.1:15000", "10.0.0.2:443", of(1)),
		socket(event.StateClose, "10.0.0.1:15000", "10.0.0.2:443", of(2)))
	if sockets[1].Role != client || sockets[2].Role != unknown {
		t.Errorf("%s in its namespace, %s in another", sockets[1].Role, sockets[2].Role)
	}
}
