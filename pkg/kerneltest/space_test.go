// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
)

// required says that what a test needs must be there.
func required() bool { return os.Getenv("STATED_KERNEL_TEST") != "" }

// missing skips the test, or fails it where it must run.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if required() {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func openProbe(t *testing.T, o probe.Options) *probe.Probe {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root: run the tests with sudo")
	}
	if o.RingBytes == 0 {
		o.RingBytes = 32 << 20 // the namespace of the test before may end just now, with all its sockets
	}
	p, err := probe.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// space is a network namespace with addresses that no other has: the witnesses
// see all namespaces and do not say which one a socket is in.
type space struct {
	t     *testing.T
	inode uint32
	net   netip.Prefix // of 127.0.0.0/8
	v4    netip.Addr   // one of net
	v6    netip.Addr
	fds   []int
}

// newSpace names the addresses: processes that run at the same time differ in
// their ids.
func newSpace(t *testing.T) *space {
	pid := os.Getpid()
	v6 := netip.MustParseAddr("fd53::").As16()
	v6[14], v6[15] = byte(pid>>8), byte(pid)|1
	net := [4]byte{127, byte(1 + pid>>8%250), byte(pid), 0}
	s := &space{t: t, net: netip.PrefixFrom(netip.AddrFrom4(net), 24), v6: netip.AddrFrom16(v6)}
	net[3] = 1
	s.v4 = netip.AddrFrom4(net)
	return s
}

// ours reports whether an address is one of the namespace's own.
func (s *space) ours(addrs ...netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return s.net.Contains(a) || a == s.v6 })
}

// run runs f in the namespace to its end.
func (s *space) run(f func()) {
	s.t.Helper()
	if err := <-s.start(f); err != nil {
		s.t.Fatalf("in the namespace: %v", err)
	}
}

// start runs f in the namespace, in a thread of its own that stays on one CPU:
// loopback then does all of its work there, so that the order of events is the
// same for witnesses that keep a buffer for each CPU. The result is nil or what
// f panicked with.
func (s *space) start(f func()) <-chan any {
	failed := make(chan any, 1)
	go func() {
		defer func() {
			for _, fd := range s.fds {
				unix.Close(fd)
			}
			failed <- recover()
		}()
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		check(unix.Unshare(unix.CLONE_NEWNET))
		var st unix.Stat_t
		check(unix.Stat("/proc/thread-self/ns/net", &st))
		s.inode = uint32(st.Ino)
		var cpus unix.CPUSet
		cpus.Set(firstCPU())
		check(unix.SchedSetaffinity(0, &cpus))
		s.loopback()
		f()
	}()
	return failed
}

func firstCPU() int {
	var cpus unix.CPUSet
	check(unix.SchedGetaffinity(0, &cpus))
	for i := range 1024 {
		if cpus.IsSet(i) {
			return i
		}
	}
	panic("no CPU")
}

// loopback brings lo up, and gives it the IPv6 address (struct in6_ifreq of
// include/uapi/linux/ipv6.h).
func (s *space) loopback() {
	fd := must(unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fd)
	up := must(unix.NewIfreq("lo"))
	up.SetUint16(unix.IFF_UP)
	check(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up))
	req := struct {
		addr      [16]byte
		prefixLen uint32
		index     int32
	}{s.v6.As16(), 128, 1} // lo is the first interface of a namespace
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&req))); errno != 0 {
		panic(fmt.Sprint("give lo an IPv6 address: ", errno))
	}
	// the address can be used when a worker of the kernel has run (addrconf_dad_work)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := unix.Bind(fd, &unix.SockaddrInet6{Addr: s.v6.As16()})
		if err == nil {
			return
		}
		if err != unix.EADDRNOTAVAIL || time.Now().After(deadline) {
			panic(fmt.Sprint("bind to the IPv6 address of lo: ", err))
		}
	}
}

func check(err error) {
	if err != nil {
		_, _, line, _ := runtime.Caller(1)
		panic(fmt.Sprintf("line %d: %v", line, err))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		_, file, line, _ := runtime.Caller(1)
		panic(fmt.Sprintf("%s:%d: %v", file, line, err))
	}
	return v
}

func (s *space) socket(family int) int {
	fd := must(unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	s.fds = append(s.fds, fd)
	return fd
}

// close closes now what would be closed at the end.
func (s *space) close(fds ...int) {
	for _, fd := range fds {
		check(unix.Close(fd))
		s.fds = slices.DeleteFunc(s.fds, func(f int) bool { return f == fd })
	}
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, int) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}, unix.AF_INET6
}

func (s *space) listen(at netip.Addr, backlog int) (fd int, addr netip.AddrPort) {
	sa, family := sockaddr(netip.AddrPortFrom(at, 0))
	fd = s.socket(family)
	check(unix.Bind(fd, sa))
	check(unix.Listen(fd, backlog))
	return fd, localOf(fd)
}

func localOf(fd int) netip.AddrPort {
	switch sa := must(unix.Getsockname(fd)).(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	panic("neither IPv4 nor IPv6")
}

func (s *space) connect(to netip.AddrPort) int {
	sa, family := sockaddr(to)
	fd := s.socket(family)
	check(unix.Connect(fd, sa))
	return fd
}

func (s *space) accept(listener int) int {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	check(err)
	s.fds = append(s.fds, fd)
	return fd
}

// pair is a connection with both ends here; its listener is closed.
func (s *space) pair(at netip.Addr) (client, server int) {
	l, addr := s.listen(at, 8)
	client = s.connect(addr)
	server = s.accept(l)
	s.close(l)
	return client, server
}

// refused connects to a port of the namespace on which nobody listens.
func (s *space) refused(port uint16) {
	sa, family := sockaddr(netip.AddrPortFrom(s.v4, port))
	fd := s.socket(family)
	if err := unix.Connect(fd, sa); err != unix.ECONNREFUSED {
		panic(fmt.Sprint("connect: ", err))
	}
	s.close(fd)
}

// readEOF reads to the end of file or to a reset.
func readEOF(fd int) {
	var buf [4096]byte
	for {
		if n, err := unix.Read(fd, buf[:]); n == 0 || errors.Is(err, unix.ECONNRESET) {
			return
		} else if err != nil {
			panic(fmt.Sprint("read: ", err))
		}
	}
}

func linger0(fd int) {
	check(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
}

// awaitState waits until the kernel says that fd is in state.
func awaitState(fd int, state event.State) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		is := must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)).State
		if is == uint8(state) {
			return
		}
		if time.Now().After(deadline) {
			panic(fmt.Sprintf("in %s, awaited %s", event.State(is), state))
		}
	}
}

// readUntil hands over the events of the namespace until done says so. It
// fails after 20 seconds, and at any loss.
func (s *space) readUntil(p *probe.Probe, each func(*event.Event), done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(deadline) {
			s.t.Fatal("what was awaited did not come")
		}
		var e event.Event
		switch err := p.Read(&e); {
		case errors.Is(err, event.ErrIdle):
		case err != nil:
			s.t.Fatal(err)
		case e.Kind == event.KindLost:
			s.t.Fatalf("%d events lost", e.Count)
		case e.Netns == s.inode && s.ours(e.Local.Addr(), e.Peer.Addr()): // the number may be another's by now
			each(&e)
		}
	}
}

func rawConnect(fd int, addr *unix.RawSockaddr) error {
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(addr)), unsafe.Sizeof(*addr)); errno != 0 {
		return errno
	}
	return nil
}
