// SPDX-License-Identifier: Apache-2.0

package census

import (
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestMultipath: an MPTCP connection is a socket of its own beside its subflows, which
// have its holders and tell its age. A listener is one socket.
func TestMultipath(t *testing.T) {
	of := func(inode uint64, segment int64) func(*event.Sighting) {
		return func(s *event.Sighting) {
			s.Inode, s.LastSegment, s.Flags, s.Socket = inode, segment, event.FlagMPTCP, event.SocketID(segment)
		}
	}
	held := func(inode uint64) func(*event.Sighting) {
		return func(s *event.Sighting) {
			s.Kind, s.Protocol, s.Inode, s.References, s.Task, s.FD = event.KindHolder, event.ProtoMPTCP, inode, 1, event.Task{PID: 7}, 5
		}
	}
	const server, client, second = "10.0.0.1:80", "10.0.0.2:40000", "10.0.0.3:40000"
	fallback := socket(event.StateEstablished, "10.0.0.1:40001", "10.0.0.9:81", func(s *event.Sighting) { s.Inode = 4 })
	sockets := look(
		socket(event.StateListen, server, "0.0.0.0:0", func(s *event.Sighting) { s.Inode, s.Unread = 2, 1 }),
		socket(event.StateEstablished, server, client, of(3, 40e9), acked(0, 0, 1)),
		socket(event.StateEstablished, server, second, of(3, 60e9), acked(0, 0, 1)),
		socket(event.StateEstablished, "10.0.0.1:40002", "10.0.0.9:80", of(9, 70e9)), // its descriptor was not found
		fallback,
		socket(event.StateListen, server, "0.0.0.0:0", held(2)),
		socket(event.StateCloseWait, server, client, held(3), func(s *event.Sighting) { s.LastSegment = 30e9 }),
		socket(event.StateEstablished, "10.0.0.1:40001", "10.0.0.9:81", held(4)),
		socket(event.StateListen, server, "0.0.0.0:0", held(8)), // began to listen meanwhile
	)
	if len(sockets) != 7 {
		t.Fatalf("%d sockets", len(sockets))
	}
	listener, first, other, lost, plain, whole, other2 := sockets[0], sockets[1], sockets[2], sockets[3], sockets[4], sockets[5], sockets[6]
	if !listener.Multipath() || !listener.Queued() || listener.Unread != 1 || len(listener.Holders) != 1 {
		t.Errorf("listener %+v", listener)
	}
	if !whole.Multipath() || whole.Subflow() || whole.Queued() || len(whole.Holders) != 1 || whole.New != event.StateCloseWait || whole.Elsewhere() != 0 {
		t.Errorf("connection %+v", whole)
	}
	if whole.Age != (Age{Min: 40e9, Known: lifecycle.AtLeast}) || whole.Role != first.Role || whole.Evidence != BySYN {
		t.Errorf("connection: age %+v, %s by %d", whole.Age, whole.Role, whole.Evidence)
	}
	for _, s := range []*Socket{first, other} {
		if !s.Subflow() || s.Whole != whole || len(s.Holders) != 1 || s.New != event.StateEstablished {
			t.Errorf("subflow %+v", s)
		}
	}
	if !lost.Subflow() || lost.Whole != nil || lost.Holders != nil || lost.NotAccepted() {
		t.Errorf("without a descriptor: %+v", lost)
	}
	if !plain.Subflow() || plain.Whole != other2 {
		t.Errorf("under a connection whose peer does not speak MPTCP: %+v", plain)
	}
}
