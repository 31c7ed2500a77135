// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestPorts: of each namespace the ports are known that its kernel chooses from,
// and tell who called where nothing else does.
func TestPorts(t *testing.T) {
	for name, open := range map[string]func(*testing.T) *Inspector{
		"iterators": openInspector,
		"sock_diag": func(t *testing.T) *Inspector { requireKernel(t); return OpenSockDiag() },
	} {
		t.Run(name, func(t *testing.T) {
			in := open(t)
			own := portsHere() // of a host that no test changes
			if own.Lowest == 0 {
				t.Fatal("the host's are not known")
			}
			l, err := net.Listen("tcp4", "0.0.0.0:0") // so that the host has a socket
			check(err)
			defer l.Close()
			low, high := ourPorts()
			inSpace(t, func(s *space) {
				l, at := s.listen(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 80}, 8, 0)
				c := s.connect(at, 0)
				a := s.accept(l)
				s.close(c)
				readEOF(a)
				s.close(a, l) // leaves TIME_WAIT behind, which has no numbers
				host := 0
				all := census.New(0)
				check(in.Sockets(event.AllStates, func(sighting *event.Sighting) {
					switch {
					case sighting.Netns == s.inode:
						all.Add(sighting)
						if want := (event.PortRange{Lowest: low + 1, Highest: high - 1}); sighting.Ports != want {
							t.Errorf("%s has %v, want %v", sighting.Local, sighting.Ports, want)
						}
					case sighting.Ports == own:
						host++
					}
				}))
				all.Complete(nil)
				if len(all.Sockets) != 1 || host == 0 {
					t.Errorf("%d sockets here, %d of the host", len(all.Sockets), host)
					return
				}
				if s := all.Sockets[0]; s.New != event.StateTimeWait || s.Role != lifecycle.RoleClient {
					t.Errorf("%s %s ↔ %s is of a %s", s.New, s.Local, s.Peer, s.Role)
				}
			})
		})
	}
}
