// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// inspectors are both ways to look at sockets.
func inspectors(t *testing.T) map[string]*Inspector {
	return map[string]*Inspector{"iterator": openInspector(t), "sock_diag": OpenSockDiag()}
}

// open makes a connection from the peer, who has sent a SYN with sequence number
// 100, and returns our end and its sequence number.
func (p *rawPeer) open(s *space, listener, port int) (fd int, seq uint32) {
	p.send(1001, uint16(port), 100, 0, flagSYN)
	seq = p.synAck() + 1
	p.send(1001, uint16(port), 101, seq, flagACK)
	return s.accept(listener), seq
}

// sighted finds the socket with a local address.
func sighted(in *Inspector, netns uint32, local netip.AddrPort) (found *event.Sighting) {
	_, all := facts(in, netns, true)
	for at, s := range all {
		if at.local == local && s.New != event.StateListen {
			found = &s
		}
	}
	return found
}

// TestPayloadOnly: our SYN and FIN, and the peer's, are no bytes of a queue.
func TestPayloadOnly(t *testing.T) {
	all := inspectors(t)
	for _, tt := range []struct {
		state          event.State
		unread, unsent uint32
		plant          func(*space) (fd int)
	}{
		{event.StateSynSent, 0, 0, func(s *space) int {
			s.tun()
			fd := s.socket(unix.AF_INET, 0)
			check(unix.SetNonblock(fd, true))
			_ = unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 7, 0, 9}, Port: 80}) // EINPROGRESS
			return fd
		}},
		{event.StateFinWait1, 0, 300, func(s *space) int {
			wire := s.tun()
			l, _ := s.listen(local10(4000), 8, 0)
			fd, _ := wire.open(s, l, 4000)
			must(unix.Write(fd, make([]byte, 300)))
			check(unix.Shutdown(fd, unix.SHUT_WR))
			return fd
		}},
		{event.StateLastAck, 0, 0, func(s *space) int {
			wire := s.tun()
			l, _ := s.listen(local10(4000), 8, 0)
			fd, seq := wire.open(s, l, 4000)
			wire.send(1001, 4000, 101, seq, flagFIN|flagACK)
			wait(fd, event.StateCloseWait)
			check(unix.Shutdown(fd, unix.SHUT_WR))
			return fd
		}},
		{event.StateCloseWait, 100, 0, func(s *space) int {
			c, a := s.pair(0)
			must(unix.Write(c, make([]byte, 100)))
			s.close(c)
			wait(a, event.StateCloseWait)
			return a
		}},
	} {
		t.Run(fmt.Sprint(tt.state), func(t *testing.T) {
			inSpace(t, func(s *space) {
				local := addrOf(must(unix.Getsockname(tt.plant(s))))
				for name, in := range all {
					found := sighted(in, s.inode, local)
					if found == nil {
						t.Fatalf("%s: not there", name)
					}
					unread, _ := found.UnreadPayload()
					if unsent := found.UnsentPayload(); found.New != tt.state || unread != tt.unread || unsent != tt.unsent {
						t.Errorf("%s: %s, %d unread, %d unsent; raw %d, %d", name, found.New, unread, unsent, found.Unread, found.Unsent)
					}
				}
			})
		})
	}
}
