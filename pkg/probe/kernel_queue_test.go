// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

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

// TestPeerTakesNothing: a peer whose window is closed, and one that does not
// answer, are told apart from one that has not answered yet.
func TestPeerTakesNothing(t *testing.T) {
	all := inspectors(t)
	for name, tt := range map[string]struct {
		plant func(*space) (fd int)
		want  func(*event.Sighting) bool
	}{
		"window closed": {func(s *space) int {
			c, _ := s.pair(0)
			check(unix.SetNonblock(c, true))
			for {
				if _, err := unix.Write(c, make([]byte, 64<<10)); err == unix.EAGAIN {
					return c
				} else if err != nil {
					panic(err)
				}
			}
		}, func(s *event.Sighting) bool { return s.Shut && s.Timeouts == 0 }},
		"window closed behind what was sent": {func(s *space) int {
			wire := s.tun()
			l, _ := s.listen(local10(4000), 8, 0)
			fd, seq := wire.open(s, l, 4000)
			must(unix.Write(fd, make([]byte, 500)))
			wire.window = 0
			wire.send(1001, 4000, 101, seq+1, flagACK)
			return fd
		}, func(s *event.Sighting) bool { return s.Shut && s.UnsentPayload() == 499 }},
		"no answer": {func(s *space) int {
			wire := s.tun()
			l, _ := s.listen(local10(4000), 8, 0)
			fd, _ := wire.open(s, l, 4000)
			must(unix.Write(fd, make([]byte, 500)))
			return fd
		}, func(s *event.Sighting) bool { return !s.Shut && s.Timeouts > 1 && s.UnsentPayload() == 500 }},
		"no answer to keep-alives": {func(s *space) int {
			wire := s.tun()
			l, _ := s.listen(local10(4000), 8, 0)
			fd, _ := wire.open(s, l, 4000)
			check(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1))
			check(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1))
			check(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 100))
			check(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
			return fd
		}, func(s *event.Sighting) bool { return !s.Shut && s.Timeouts == 0 && s.Probes > 1 && s.Unsent == 0 }},
		"corked": {func(s *space) int {
			c, _ := s.pair(0)
			check(unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_CORK, 1))
			must(unix.Write(c, make([]byte, 100)))
			return c
		}, func(s *event.Sighting) bool { return !s.Shut && s.Timeouts == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			inSpace(t, func(s *space) {
				local := addrOf(must(unix.Getsockname(tt.plant(s))))
				for way, in := range all {
					var found *event.Sighting
					for deadline := time.Now().Add(30 * time.Second); found == nil || !tt.want(found); time.Sleep(10 * time.Millisecond) {
						if time.Now().After(deadline) {
							t.Fatalf("%s: %+v", way, found)
						}
						found = sighted(in, s.inode, local)
					}
				}
			})
		})
	}
}
