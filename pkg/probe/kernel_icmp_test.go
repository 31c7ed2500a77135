// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/kerneltest/peer"
)

// TestUnreachableWhileLocked: an ICMP error comes for a SYN while a system call has the
// socket, as it does where the answer is made on this host: a firewall that rejects, or
// a router in another network namespace. The socket stays in SYN_SENT, and the process
// closes it for the error that it saw.
func TestUnreachableWhileLocked(t *testing.T) {
	p := openTier(t, Options{})
	for _, tt := range []struct {
		name    string
		kernel  netip.Prefix
		code    byte
		errno   unix.Errno
		options []func(fd int)
	}{
		{"host", netip.MustParsePrefix("10.77.0.1/24"), 1, unix.EHOSTUNREACH, nil},
		{"port", netip.MustParsePrefix("10.77.1.1/24"), 3, unix.ECONNREFUSED, nil},
		{"IPv6 port", netip.MustParsePrefix("fd77::1/64"), 4, unix.ECONNREFUSED,
			[]func(fd int){option(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)}}, // else it waits for the next SYN
	} {
		t.Run(tt.name, func(t *testing.T) {
			netns := inSpace(t, func(s *space) {
				dev := must(peer.Open(tt.kernel))
				defer dev.Close()
				sc := &script{space: s, dev: dev}
				connecting := func() (int, *peer.Conn) {
					return sc.connectingTo(tt.kernel.Addr().Next(), tt.kernel.Addr(), tt.options...)
				}

				fd, c := connecting()
				release := holdLock(t, fd)
				c.Unreachable(tt.code)
				release()
				if !failing(fd) {
					panic("the kernel does not tell the process")
				}
				soError(fd, tt.errno)
				wait(fd, event.StateSynSent)
				s.close(fd)

				fd, c = connecting()
				c.Unreachable(tt.code)
				wait(fd, event.StateClose)
				if err := unix.Connect(fd, sockaddr(c.Local)); err != tt.errno {
					panic(err)
				}
				check(unix.SetNonblock(fd, true))
				if err := unix.Connect(fd, sockaddr(c.Local)); err != unix.EINPROGRESS {
					panic(err)
				}
				s.close(fd) // its queue has what came for the SYN before
			})
			ends := collect(t, p, netns, 3).ends
			if want := []string{"client unreachable unknown", "client unreachable unknown", "client connect_cancelled local"}; !slices.Equal(ends, want) {
				t.Errorf("got %q, want %q", ends, want)
			}
		})
	}
}

// failing reports whether poll says that there is an error.
func failing(fd int) bool {
	polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	must(unix.Poll(polled, 0))
	return polled[0].Revents&unix.POLLERR != 0
}

// soError takes the error of a socket, which must be this one.
func soError(fd int, want unix.Errno) {
	if got := unix.Errno(must(unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR))); got != want {
		panic(fmt.Sprintf("SO_ERROR %v, want %v", got, want))
	}
}
