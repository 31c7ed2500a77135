// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// source is a client address, one for each connection, so that a connection
// is known by it: 127.block.x.y, block telling two churns apart.
func source(block, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(block), byte(n >> 8), byte(n)})
}

// churn makes n connections to its own listener and ends them, each in one of
// five ways, as fast as it can.
func (s *space) churn(l int, at netip.AddrPort, block, n int) {
	for i := range n {
		c := s.socket(unix.AF_INET)
		check(unix.SetsockoptInt(c, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
		sa, _ := sockaddr(netip.AddrPortFrom(source(block, i), 0))
		check(unix.Bind(c, sa))
		sa, _ = sockaddr(at)
		check(unix.Connect(c, sa))
		a := s.accept(l)
		switch i % 5 {
		case 0:
			s.close(c, a)
		case 1:
			s.close(a, c)
		case 2:
			linger0(c)
			s.close(c, a)
		case 3:
			must(unix.Write(c, []byte("unread")))
			s.close(a, c)
		case 4:
			check(unix.Shutdown(c, unix.SHUT_WR))
			must(unix.Write(a, []byte("answer")))
			s.close(a)
			readEOF(c)
			s.close(c)
		}
	}
}

// beside runs f in another thread in the namespace, on any CPU, with a space
// of its own to keep descriptors in; the result is nil or what it panicked with.
func (s *space) beside(f func(*space)) <-chan any {
	failed := make(chan any, 1)
	ns := must(unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0))
	go func() {
		defer func() { failed <- recover() }()
		defer unix.Close(ns)
		runtime.LockOSThread()
		check(unix.Setns(ns, unix.CLONE_NEWNET))
		other := *s
		other.fds = nil
		f(&other)
	}()
	return failed
}
