// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// traffic lets sockets go through all that two ends of one host can.
func (s *space) traffic() {
	mapped := netip.AddrFrom16(s.v4.As16()) // ::ffff:127.x.y.z: IPv4 through an IPv6 socket
	for _, at := range []netip.Addr{s.v4, s.v6, mapped} {
		c, a := s.pair(at)
		must(unix.Write(c, make([]byte, 1000)))
		s.close(c)
		readEOF(a)
		s.close(a)

		c, a = s.pair(at)
		s.close(a)
		readEOF(c)
		s.close(c)
		s.resets(at)
		s.halves(at)
		s.queues(at)
	}
	s.refused(9)
	s.again()
	s.oneself()
}

// resets ends connections by RST, from either side.
func (s *space) resets(at netip.Addr) {
	c, a := s.pair(at)
	linger0(c)
	s.close(c)
	readEOF(a)
	s.close(a)

	c, a = s.pair(at)
	must(unix.Write(c, []byte("unread")))
	s.close(a)
	readEOF(c)
	s.close(c)

	c, a = s.pair(at) // in CLOSE_WAIT
	check(unix.Shutdown(c, unix.SHUT_WR))
	readEOF(a)
	linger0(c)
	must(unix.Write(a, []byte("late")))
	s.close(c)
	s.close(a)

	c, a = s.pair(at) // data after close
	s.close(a)
	awaitState(c, event.StateCloseWait)
	must(unix.Write(c, []byte("too late")))
	s.close(c)
}

// halves closes one direction first.
func (s *space) halves(at netip.Addr) {
	c, a := s.pair(at)
	check(unix.Shutdown(c, unix.SHUT_WR))
	readEOF(a)
	must(unix.Write(a, []byte("answer")))
	s.close(a)
	readEOF(c)
	s.close(c)

	c, a = s.pair(at)
	check(unix.Shutdown(a, unix.SHUT_WR))
	readEOF(c)
	check(unix.Shutdown(c, unix.SHUT_WR))
	readEOF(a)
	s.close(a, c)

	c, a = s.pair(at) // close() in FIN_WAIT2 tells the state again
	check(unix.Shutdown(c, unix.SHUT_WR))
	awaitState(c, event.StateFinWait2)
	s.close(c)
	readEOF(a)
	s.close(a)
}

// queues closes listeners on connections that nobody accepted, and gives up a
// connect() that a full queue does not answer.
func (s *space) queues(at netip.Addr) {
	l, addr := s.listen(at, 8)
	c, d := s.connect(addr), s.connect(addr)
	s.close(l)
	readEOF(c)
	readEOF(d)
	s.close(c, d)

	l, addr = s.listen(at, 0)
	c = s.connect(addr)
	sa, family := sockaddr(addr)
	d = s.socket(family)
	check(unix.SetNonblock(d, true))
	if err := unix.Connect(d, sa); err != unix.EINPROGRESS {
		panic(fmt.Sprint("connect: ", err))
	}
	s.close(d)
	s.close(l)
	readEOF(c)
	s.close(c)
}

// again uses one socket twice.
func (s *space) again() {
	l, addr := s.listen(s.v4, 8)
	sa, _ := sockaddr(addr)
	c := s.connect(addr)
	a := s.accept(l)
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if err := rawConnect(c, &unspec); err != nil {
		panic(err)
	}
	readEOF(a)
	s.close(a)
	check(unix.Connect(c, sa))
	b := s.accept(l)
	s.close(l, c)
	readEOF(b)
	s.close(b)
}

// oneself connects a socket to itself: both sides open and close at once.
func (s *space) oneself() {
	sa, family := sockaddr(netip.AddrPortFrom(s.v4, 0))
	fd := s.socket(family)
	check(unix.Bind(fd, sa))
	check(unix.Connect(fd, must(unix.Getsockname(fd))))
	s.close(fd)
}
