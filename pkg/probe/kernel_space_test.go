// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// space is a network namespace of one test, entered by a thread of its own.
type space struct {
	t     *testing.T
	inode uint32
	tid   int // of the thread
	fds   []int
}

// inSpace runs f in a fresh network namespace with lo up.
func inSpace(t *testing.T, f func(*space)) uint32 {
	t.Helper()
	inode, err := runSpace(t, f)
	if why, ok := err.(skip); ok {
		t.Skip(string(why))
	}
	if t.Skipped() { // which ended f's goroutine only
		t.SkipNow()
	}
	if err != nil {
		t.Fatalf("in the namespace: %v", err)
	}
	return inode
}

// runSpace does it, and returns what f panicked with.
func runSpace(t *testing.T, f func(*space)) (inode uint32, failed any) {
	s := &space{t: t}
	done := make(chan any, 1)
	go apart(func() { // the thread ends with its namespace
		defer func() { done <- recover() }()
		check(unix.Unshare(unix.CLONE_NEWNET))
		var st unix.Stat_t
		check(unix.Stat("/proc/thread-self/ns/net", &st))
		s.inode, s.tid = uint32(st.Ino), unix.Gettid()
		loopbackUp()
		low, high := ourPorts()
		check(os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "%d %d", low+1, high-1), 0))
		defer func() {
			for _, fd := range s.fds {
				unix.Close(fd)
			}
		}()
		f(s)
	})
	failed = <-done
	return s.inode, failed
}

// ourPorts are the ports of this process's namespaces, below those that a host
// uses: where a tier does not tell namespaces, events are told apart by them.
// The kernel never chooses low: a socket that got it and connects to it would
// connect to itself, where a scenario wants to be refused.
func ourPorts() (low, high uint16) {
	low = 10_000 + uint16(os.Getpid()%40)*500
	return low, low + 500
}

// skip is a panic that says that the kernel lacks what a scenario needs.
type skip string

// destroy does to an IPv4 socket, connected or a listener, what `ss -K` does:
// SOCK_DESTROY (include/uapi/linux/sock_diag.h, inet_diag.h).
func destroy(fd int) error {
	local := must(unix.Getsockname(fd)).(*unix.SockaddrInet4)
	peer := &unix.SockaddrInet4{}
	if to, err := unix.Getpeername(fd); err == nil {
		peer = to.(*unix.SockaddrInet4)
	}
	const sockDestroy = 21
	native, be := binary.NativeEndian, binary.BigEndian
	msg := native.AppendUint32(nil, 16+56)
	msg = native.AppendUint16(msg, sockDestroy)
	msg = native.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg = native.AppendUint64(msg, 1)                       // sequence, port
	msg = append(msg, unix.AF_INET, unix.IPPROTO_TCP, 0, 0) // sdiag_family, sdiag_protocol
	msg = native.AppendUint32(msg, 0xffffffff)              // idiag_states
	msg = be.AppendUint16(msg, uint16(local.Port))
	msg = be.AppendUint16(msg, uint16(peer.Port))
	msg = append(append(msg, local.Addr[:]...), make([]byte, 12)...)
	msg = append(append(msg, peer.Addr[:]...), make([]byte, 12)...)
	msg = native.AppendUint32(msg, 0)
	msg = native.AppendUint64(msg, ^uint64(0)) // INET_DIAG_NOCOOKIE
	nl := must(unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG))
	defer unix.Close(nl)
	check(unix.Sendto(nl, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	var buf [4096]byte
	n, _, err := unix.Recvfrom(nl, buf[:], 0)
	check(err)
	if n < 20 || native.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("answer of %d bytes", n)
	}
	if errno := -int32(native.Uint32(buf[16:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

func check(err error) {
	if err != nil {
		_, _, line, _ := runtime.Caller(1)
		panic(fmt.Sprintf("line %d: %v", line, err))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		_, _, line, _ := runtime.Caller(1)
		panic(fmt.Sprintf("line %d: %v", line, err))
	}
	return v
}

func loopbackUp() {
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fd)
	req := must(unix.NewIfreq("lo"))
	req.SetUint16(unix.IFF_UP)
	check(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req))
}

func (s *space) socket(family, protocol int) int {
	fd := must(unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol))
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

func (s *space) listen(addr unix.Sockaddr, backlog, protocol int) (fd int, at unix.Sockaddr) {
	family := unix.AF_INET
	if _, ok := addr.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd = s.socket(family, protocol)
	check(unix.Bind(fd, addr))
	check(unix.Listen(fd, backlog))
	return fd, must(unix.Getsockname(fd))
}

func (s *space) connect(to unix.Sockaddr, protocol int) int {
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd := s.socket(family, protocol)
	check(unix.Connect(fd, to))
	return fd
}

func (s *space) accept(listener int) int {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	check(err)
	s.fds = append(s.fds, fd)
	return fd
}

// pair is a connection with both ends here; the listener is closed.
func (s *space) pair(protocol int) (client, server int) {
	l, at := s.listen(local4(), 8, protocol)
	client = s.connect(at, protocol)
	server = s.accept(l)
	s.close(l)
	return client, server
}

// twice connects c, and d in vain, as there is no local port for it.
func (s *space) twice(listener int, at unix.Sockaddr, c, d int) {
	check(unix.Connect(c, at))
	if err := unix.Connect(d, at); err != unix.EADDRNOTAVAIL {
		panic(fmt.Sprint("connect: ", err))
	}
	a := s.accept(listener)
	s.close(listener, d, c)
	readEOF(a)
	s.close(a)
}

// putOff is a client that is connected as far as its process knows, and sends
// its SYN with the first data (tcp_fastopen_defer_connect).
func (s *space) putOff() (client, listener int) {
	const clientWithoutCookie = "5" // of net.ipv4.tcp_fastopen: TFO_CLIENT_ENABLE, TFO_CLIENT_NO_COOKIE
	check(os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte(clientWithoutCookie), 0))
	listener, at := s.listen(local4(), 8, 0)
	client = s.socket(unix.AF_INET, 0)
	check(unix.SetsockoptInt(client, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1))
	check(unix.Connect(client, at))
	return client, listener
}

// full is the address of a listener whose queue is full: the next SYN is dropped.
func (s *space) full() unix.Sockaddr {
	l, at := s.listen(local4(), 0, 0)
	s.connect(at, 0)
	// of a listener, Unacked is the length of the queue (tcp_get_info)
	for must(unix.GetsockoptTCPInfo(l, unix.IPPROTO_TCP, unix.TCP_INFO)).Unacked == 0 {
		time.Sleep(time.Millisecond)
	}
	return at
}

func local4() unix.Sockaddr { return &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}} }

// readEOF reads to the end of file.
// end closes one after the other, each when what the one before sent has come:
// softirq may be late.
func (s *space) end(first int, others ...int) {
	s.close(first)
	for _, fd := range others {
		heard(fd)
		s.close(fd)
	}
}

// heard waits until the other end's FIN or RST has come.
func heard(fd int) {
	for deadline := time.Now().Add(20 * time.Second); must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)).State == uint8(event.StateEstablished); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			panic("neither FIN nor RST has come")
		}
	}
}

func readEOF(fd int) {
	var buf [4096]byte
	for must(unix.Read(fd, buf[:])) > 0 {
	}
}

func linger0(fd int) {
	check(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
}

func disconnect(fd int) {
	var addr [16]byte // AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(ptr(&addr[0])), uintptr(len(addr)))
	if errno != 0 {
		panic(errno)
	}
}

// used is a socket that had a connection to a listener.
func (s *space) used(listener int, at unix.Sockaddr) (fd int) {
	fd = s.connect(at, 0)
	a := s.accept(listener)
	disconnect(fd)
	heard(a)
	s.close(a)
	return fd
}

func getCookie(fd int) uint64 {
	return must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE))
}

func addrOf(sa unix.Sockaddr) netip.AddrPort {
	a := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
}
