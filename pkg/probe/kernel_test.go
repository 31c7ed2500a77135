// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// requireKernel skips where BPF cannot be used, and fails there when
// STATED_KERNEL_TEST says that it must work.
func requireKernel(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("STATED_KERNEL_TEST") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: run the tests with sudo")
}

// tiers are the ways in which the kernel side can work; all must tell the same
// transitions.
var tiers = []struct {
	name string
	opts Options
}{
	{"storage", Options{}},
	{"lru", Options{NoStorage: true}},
	{"classic", Options{Classic: true}},
}

// openTier opens the probe as a tier wants it, or skips the test where this
// kernel lacks what the tier needs.
func openTier(t *testing.T, opts Options) *Probe {
	t.Helper()
	requireKernel(t)
	p, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if p.Partial() && !opts.Classic {
		if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err == nil {
			t.Fatalf("this kernel has BTF, but only the classic program loads: %v", p.Hooks()[0].Err)
		}
		t.Skip("no BTF: the classic tier is the only one")
	}
	return p
}

// space is a network namespace of one test, entered by a thread of its own.
type space struct {
	t     *testing.T
	inode uint32
	fds   []int
}

// inSpace runs f in a fresh network namespace with lo up.
func inSpace(t *testing.T, f func(*space)) uint32 {
	t.Helper()
	s := &space{t: t}
	failed := make(chan any, 1)
	go func() {
		defer func() { failed <- recover() }()
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		check(unix.Unshare(unix.CLONE_NEWNET))
		var st unix.Stat_t
		check(unix.Stat("/proc/thread-self/ns/net", &st))
		s.inode = uint32(st.Ino)
		loopbackUp()
		f(s)
		for _, fd := range s.fds {
			unix.Close(fd)
		}
	}()
	err := <-failed
	if why, ok := err.(skip); ok {
		t.Skip(string(why))
	}
	if err != nil {
		t.Fatalf("in the namespace: %v", err)
	}
	return s.inode
}

// skip is a panic that says that the kernel lacks what a scenario needs.
type skip string

// destroy does to a connected IPv4 socket what `ss -K` does: SOCK_DESTROY
// (include/uapi/linux/sock_diag.h, inet_diag.h).
func destroy(fd int) error {
	local := must(unix.Getsockname(fd)).(*unix.SockaddrInet4)
	peer := must(unix.Getpeername(fd)).(*unix.SockaddrInet4)
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

const (
	listener = "CLOSE>LISTEN LISTEN>CLOSE"
	client   = "CLOSE>SYN_SENT SYN_SENT>ESTABLISHED "
	server   = "LISTEN>SYN_RECV SYN_RECV>ESTABLISHED "
	active   = "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>FIN_WAIT2 FIN_WAIT2>CLOSE"
	passive  = "ESTABLISHED>CLOSE_WAIT CLOSE_WAIT>LAST_ACK LAST_ACK>CLOSE"
)

// scenarios are real sockets, what the kernel must tell of each, in order, and
// what must follow from it: role, outcome, who closed first.
var scenarios = []struct {
	name  string
	run   func(*space)
	want  []string // a line for each connection, any order
	ends  []string // the same for its lifecycle
	exact bool     // which mini socket is left behind does not depend on the order of packets
	typed bool     // the classic tracepoint does not tell enough for ends
}{
	{
		name: "client closes first",
		run: func(s *space) {
			c, a := s.pair(0)
			s.close(c)
			readEOF(a)
			s.close(a)
		},
		want: []string{listener, client + active, server + passive},
		ends: []string{"listener listen_ended local", "client closed local TIME_WAIT", "server closed peer"},
	},
	{
		name: "server closes first",
		run: func(s *space) {
			c, a := s.pair(0)
			s.close(a)
			readEOF(c)
			s.close(c)
		},
		want: []string{listener, client + passive, server + active},
		ends: []string{"listener listen_ended local", "client closed peer", "server closed local TIME_WAIT"},
	},
	{
		name: "ipv6",
		run: func(s *space) {
			l, at := s.listen(&unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}, 8, 0)
			c := s.connect(at, 0)
			a := s.accept(l)
			s.close(l, c, a)
		},
		want: []string{listener, client + active, server + passive},
		ends: []string{"listener listen_ended local", "client closed local TIME_WAIT", "server closed peer"},
	},
	{
		name: "ipv4 through ipv6",
		run: func(s *space) {
			l, at := s.listen(&unix.SockaddrInet6{}, 8, 0)
			c := s.connect(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: at.(*unix.SockaddrInet6).Port}, 0)
			a := s.accept(l)
			s.close(l, c, a)
		},
		want: []string{listener, client + active, server + passive},
		ends: []string{"listener listen_ended local", "client closed local TIME_WAIT", "server closed peer"},
	},
	{
		name: "refused",
		run: func(s *space) {
			fd := s.socket(unix.AF_INET, 0)
			if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}); err != unix.ECONNREFUSED {
				panic(err)
			}
		},
		want:  []string{"CLOSE>SYN_SENT SYN_SENT>CLOSE"},
		ends:  []string{"client refused peer"},
		typed: true,
	},
	{
		name: "closed with unread data",
		run: func(s *space) {
			c, a := s.pair(0)
			must(unix.Write(c, []byte("unread")))
			s.close(a)
			s.close(c)
		},
		want:  []string{listener, client + "ESTABLISHED>CLOSE", server + "ESTABLISHED>CLOSE"},
		ends:  []string{"listener listen_ended local", "client reset_by_peer peer", "server reset_unread_data local"},
		typed: true,
	},
	{
		name: "linger 0",
		run: func(s *space) {
			c, a := s.pair(0)
			linger0(c)
			s.close(c, a)
		},
		want:  []string{listener, client + "ESTABLISHED>CLOSE", server + "ESTABLISHED>CLOSE"},
		ends:  []string{"listener listen_ended local", "client reset_linger local", "server reset_by_peer peer"},
		typed: true,
	},
	{
		name: "reset in CLOSE_WAIT",
		run: func(s *space) {
			c, a := s.pair(0)
			check(unix.Shutdown(c, unix.SHUT_WR))
			readEOF(a)
			linger0(c)
			must(unix.Write(a, []byte("late")))
			s.close(c) // unread data: RST
			s.close(a)
		},
		want: []string{listener, client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>FIN_WAIT2 FIN_WAIT2>CLOSE",
			server + "ESTABLISHED>CLOSE_WAIT CLOSE_WAIT>CLOSE"},
		ends:  []string{"listener listen_ended local", "client reset_unread_data local", "server reset_by_peer peer"},
		typed: true,
	},
	{
		name:  "half close by the client",
		exact: true,
		run: func(s *space) {
			c, a := s.pair(0)
			check(unix.Shutdown(c, unix.SHUT_WR))
			readEOF(a)
			must(unix.Write(a, []byte("answer")))
			s.close(a)
			readEOF(c)
			s.close(c)
		},
		want: []string{listener, client + active, server + passive},
		ends: []string{"listener listen_ended local", "client closed local TIME_WAIT", "server closed peer"},
	},
	{
		name:  "close in FIN_WAIT2 tells the state again",
		exact: true,
		run: func(s *space) {
			c, a := s.pair(0)
			check(unix.Shutdown(c, unix.SHUT_WR))
			for must(unix.GetsockoptTCPInfo(c, unix.IPPROTO_TCP, unix.TCP_INFO)).State != uint8(event.StateFinWait2) {
				time.Sleep(time.Millisecond) // the acknowledgement may be delayed
			}
			s.close(c)
			readEOF(a)
			s.close(a)
		},
		// __tcp_close hands over to a mini socket at once
		want: []string{listener, client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>FIN_WAIT2 FIN_WAIT2>FIN_WAIT2 FIN_WAIT2>CLOSE", server + passive},
		ends: []string{"listener listen_ended local", "client closed local FIN_WAIT2", "server closed peer"},
	},
	{
		name: "destroyed",
		run: func(s *space) {
			c, _ := s.pair(0)
			if err := destroy(c); err == unix.EOPNOTSUPP {
				panic(skip("the kernel lacks CONFIG_INET_DIAG_DESTROY"))
			} else if err != nil {
				panic(err)
			}
		},
		want:  []string{listener, client + "ESTABLISHED>CLOSE", server + "ESTABLISHED>CLOSE"},
		ends:  []string{"listener listen_ended local", "client killed local", "server reset_by_peer peer"},
		typed: true,
	},
	{
		name: "listener closed with a child in its queue",
		run: func(s *space) {
			l, at := s.listen(local4(), 8, 0)
			c := s.connect(at, 0)
			s.close(l)
			s.close(c)
		},
		want:  []string{listener, client + "ESTABLISHED>CLOSE", server + "ESTABLISHED>CLOSE"},
		ends:  []string{"listener listen_ended local", "client reset_by_peer peer", "server reset_listener_closed local"},
		typed: true,
	},
	{
		name: "disconnect and use again",
		run: func(s *space) {
			l, at := s.listen(local4(), 8, 0)
			c := s.connect(at, 0)
			a := s.accept(l)
			disconnect(c)
			s.close(a)
			check(unix.Connect(c, at))
			b := s.accept(l)
			s.close(l, c, b)
		},
		want: []string{listener, client + "ESTABLISHED>CLOSE", server + "ESTABLISHED>CLOSE",
			client + active, server + passive},
		ends: []string{"listener listen_ended local", "client reset_linger local", "server reset_by_peer peer",
			"client closed local TIME_WAIT", "server closed peer"},
		typed: true,
	},
	{
		name:  "connect to oneself",
		exact: true,
		run: func(s *space) {
			fd := s.socket(unix.AF_INET, 0)
			check(unix.Bind(fd, local4()))
			check(unix.Connect(fd, must(unix.Getsockname(fd))))
			s.close(fd)
		},
		want: []string{"CLOSE>SYN_SENT SYN_SENT>SYN_RECV SYN_RECV>ESTABLISHED ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSING CLOSING>CLOSE"},
		ends: []string{"simultaneous closed simultaneous TIME_WAIT"},
	},
	{
		name: "no answer",
		run: func(s *space) {
			at := s.full()
			fd := s.socket(unix.AF_INET, 0)
			check(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 300))
			if err := unix.Connect(fd, at); err != unix.ETIMEDOUT {
				panic(fmt.Sprint("connect: ", err))
			}
		},
		want:  []string{listener, client + "ESTABLISHED>CLOSE", server + "ESTABLISHED>CLOSE", "CLOSE>SYN_SENT SYN_SENT>CLOSE"},
		ends:  []string{"listener listen_ended local", "client reset_by_peer peer", "server reset_listener_closed local", "client connect_timeout unknown"},
		typed: true,
	},
	{
		name: "connect given up",
		run: func(s *space) {
			at := s.full()
			fd := s.socket(unix.AF_INET, 0)
			check(unix.SetNonblock(fd, true))
			if err := unix.Connect(fd, at); err != unix.EINPROGRESS {
				panic(fmt.Sprint("connect: ", err))
			}
			s.close(fd)
		},
		want:  []string{listener, client + "ESTABLISHED>CLOSE", server + "ESTABLISHED>CLOSE", "CLOSE>SYN_SENT SYN_SENT>CLOSE"},
		ends:  []string{"listener listen_ended local", "client reset_by_peer peer", "server reset_listener_closed local", "client connect_cancelled local"},
		typed: true,
	},
}

func TestScenarios(t *testing.T) {
	for _, tier := range tiers {
		t.Run(tier.name, func(t *testing.T) {
			p := openTier(t, tier.opts)
			for _, sc := range scenarios {
				t.Run(strings.ReplaceAll(sc.name, " ", "_"), func(t *testing.T) {
					netns := inSpace(t, sc.run)
					if p.Partial() {
						netns = 0 // the classic tracepoint does not tell it
					}
					seen := collect(t, p, netns, len(sc.want))
					compare(t, "transitions", seen.paths, sc.want)
					if !p.Partial() || !sc.typed {
						if sc.exact && !p.Partial() {
							compare(t, "lifecycles", seen.ends, sc.ends)
						} else {
							compare(t, "lifecycles", withoutMini(seen.ends), withoutMini(sc.ends))
						}
					}
				})
			}
		})
	}
}

// withoutMini drops what is left behind: FIN_WAIT2 if our FIN is acknowledged
// before the peer's comes, TIME_WAIT if both come in one packet.
func withoutMini(ends []string) []string {
	ends = slices.Clone(ends)
	for i := range ends {
		ends[i] = strings.TrimSuffix(strings.TrimSuffix(ends[i], " TIME_WAIT"), " FIN_WAIT2")
	}
	return ends
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n  got  %s\n  want %s", what, strings.Join(got, "\n       "), strings.Join(want, "\n       "))
	}
}

// observed is what came of a scenario.
type observed struct {
	paths []string // the transitions of each connection
	ends  []string
	conns []lifecycle.Conn
}

// collector is an Observer that keeps paths and ends.
type collector struct {
	observed
	open map[*lifecycle.Conn][]string
}

func (o *collector) Transition(c *lifecycle.Conn, e *event.Event) {
	if e.Kind == event.KindState {
		o.open[c] = append(o.open[c], e.Old.String()+">"+e.New.String())
	}
}

func (o *collector) Finished(c *lifecycle.Conn) {
	o.paths = append(o.paths, strings.Join(o.open[c], " "))
	delete(o.open, c)
	end := fmt.Sprintf("%s %s %s", c.Role, c.Outcome, c.Initiator)
	if c.Lingers != event.StateNone {
		end += " " + c.Lingers.String()
	}
	o.ends = append(o.ends, end)
	o.conns = append(o.conns, *c)
}

// collect applies the events of a namespace until n connections have finished
// and nothing more comes.
func collect(t *testing.T, p *Probe, netns uint32, n int) observed {
	t.Helper()
	return collectIf(t, p, n, func(e *event.Event) bool {
		if netns != 0 {
			return e.Netns == netns
		}
		return e.Local.Addr().IsLoopback() || e.Local.Addr().IsUnspecified()
	})
}

func collectIf(t *testing.T, p *Probe, n int, wanted func(*event.Event) bool) observed {
	t.Helper()
	o := &collector{open: make(map[*lifecycle.Conn][]string)}
	table := lifecycle.New(o, lifecycle.Options{NoDestroy: p.Partial(), NoResets: p.Partial()})
	for quiet, deadline := 0, time.Now().Add(20*time.Second); quiet < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections finished, want %d; open: %v", len(o.ends), n, o.open)
		}
		var e event.Event
		err := p.Read(&e)
		switch {
		case errors.Is(err, event.ErrIdle):
			if len(o.ends) >= n {
				quiet++
			}
			boot, wall := Now()
			e = event.Event{Kind: event.KindClock, Time: boot, Wall: wall}
		case err != nil:
			t.Fatal(err)
		case e.Kind == event.KindLost:
			t.Fatalf("%d events lost", e.Count)
		case !wanted(&e):
			continue
		}
		table.Apply(&e)
	}
	return o.observed
}

// TestFacts checks what a record says against what the socket itself says.
func TestFacts(t *testing.T) {
	p := openTier(t, Options{})
	var cookie, acceptedCookie uint64
	var acceptedFD int
	var local, peer netip.AddrPort
	netns := inSpace(t, func(s *space) {
		c, a := s.pair(0)
		cookie, acceptedCookie = getCookie(c), getCookie(a)
		acceptedFD = a
		local, peer = addrOf(must(unix.Getsockname(c))), addrOf(must(unix.Getpeername(c)))
		must(unix.Write(c, make([]byte, 1000)))
		var buf [600]byte
		must(unix.Read(a, buf[:]))
		must(unix.Write(a, make([]byte, 70)))
		check(unix.Shutdown(c, unix.SHUT_WR))
		readEOF(a)
		s.close(a)
		readEOF(c)
		s.close(c)
	})
	seen := collect(t, p, netns, 3)
	leader := must(os.ReadFile("/proc/self/comm"))
	for _, c := range seen.conns {
		if c.Owner.PID != uint32(os.Getpid()) {
			t.Errorf("%s: owner %d, want %d", c.Role, c.Owner.PID, os.Getpid())
		}
		if got := c.Owner.Comm.String(); got != strings.TrimSpace(string(leader)) {
			t.Errorf("%s: owner's name %q, want %q", c.Role, got, leader)
		}
		if c.Owner.Start == 0 {
			t.Errorf("%s: owner without start time", c.Role)
		}
		if c.UID != uint32(os.Getuid()) || c.Netns != netns {
			t.Errorf("%s: uid %d, netns %d", c.Role, c.UID, c.Netns)
		}
		switch c.Role {
		case lifecycle.RoleClient:
			if c.Local != local || c.Peer != peer {
				t.Errorf("client: %s to %s, want %s to %s", c.Local, c.Peer, local, peer)
			}
			if !c.OwnID && uint64(c.Socket) != cookie {
				t.Errorf("client: cookie %x, want %x", c.Socket, cookie)
			}
			if c.BytesSent != 1000 || c.BytesReceived != 70 || c.SRTT == 0 {
				t.Errorf("client: sent %d, received %d, rtt %d", c.BytesSent, c.BytesReceived, c.SRTT)
			}
			if c.Owner.Source != event.OwnerConnect {
				t.Errorf("client: owner by %s", c.Owner.Source)
			}
		case lifecycle.RoleServer:
			if c.Local != peer || c.Peer != local {
				t.Errorf("server: %s to %s, want %s to %s", c.Local, c.Peer, peer, local)
			}
			if !c.OwnID && uint64(c.Socket) != acceptedCookie {
				t.Errorf("server: cookie %x, want %x", c.Socket, acceptedCookie)
			}
			if c.BytesSent != 70 || c.BytesReceived != 1000 {
				t.Errorf("server: sent %d, received %d", c.BytesSent, c.BytesReceived)
			}
			if hookWorks(p, bpfProgStAccept4) && (c.Owner.Source != event.OwnerAccept || int(c.Acceptor) != acceptedFD) {
				t.Errorf("server: owner by %s, descriptor %d, want accept, %d", c.Owner.Source, c.Acceptor, acceptedFD)
			}
		}
	}
}

func hookWorks(p *Probe, program string) bool {
	return slices.ContainsFunc(p.Hooks(), func(h HookStatus) bool { return h.Program == program && h.Err == nil })
}

func getCookie(fd int) uint64 {
	return must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE))
}

func addrOf(sa unix.Sockaddr) netip.AddrPort {
	a := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
}

// TestSnapshot: what was there before, with its holder, once and in its state.
func TestSnapshot(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		c, a := s.pair(0)
		check(unix.Shutdown(a, unix.SHUT_WR))
		for must(unix.GetsockoptTCPInfo(c, unix.IPPROTO_TCP, unix.TCP_INFO)).State != uint8(event.StateCloseWait) {
			time.Sleep(time.Millisecond)
		}
		p := openTier(s.t, Options{})
		if !hookWorks(p, bpfProgStIterTcp) || !hookWorks(p, bpfProgStIterFile) {
			panic(skip("no iterators"))
		}
		done := make(chan error, 1)
		go func() { done <- p.Snapshot() }()
		o := &collector{open: make(map[*lifecycle.Conn][]string)}
		table := lifecycle.New(o, lifecycle.Options{})
		for e := (event.Event{}); e.Kind != event.KindSnapshotEnd; {
			if err := p.Read(&e); err == nil && e.Netns == s.inode {
				table.Apply(&e)
			} else if err != nil && !errors.Is(err, event.ErrIdle) {
				panic(err)
			}
		}
		check(<-done)
		found := 0
		table.All(func(conn *lifecycle.Conn) {
			if uint64(conn.Socket) != getCookie(c) {
				return
			}
			found++
			if conn.State != event.StateCloseWait || conn.Owner.PID != uint32(os.Getpid()) || conn.Owner.Source != event.OwnerHolder {
				s.t.Errorf("found in %s, owner %d by %s", conn.State, conn.Owner.PID, conn.Owner.Source)
			}
			if conn.Spans[0].Known != lifecycle.AtLeast {
				s.t.Errorf("known %s", conn.Spans[0].Known)
			}
		})
		if found != 1 {
			s.t.Errorf("found %d times", found)
		}
		s.close(c, a)
	})
}

// TestFilter: a filter takes whole connections or none.
func TestFilter(t *testing.T) {
	requireKernel(t)
	run := func(s *space) {
		for range 2 {
			c, a := s.pair(0)
			s.close(c, a)
		}
	}
	for name, f := range map[string]event.Filter{
		"other pid":    {PIDs: []uint32{1 << 22}},
		"other family": {Family: 6},
		"other port":   {Remote: []uint16{1}},
		"other addr":   {Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
		"other netns":  {Netns: 1},
		"other comm":   {Comms: []string{"nobody"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			p := openTier(t, Options{Filter: f})
			netns := inSpace(t, run)
			for e := (event.Event{}); ; {
				if err := p.Read(&e); errors.Is(err, event.ErrIdle) {
					break
				}
				child := e.Old == event.StateListen && e.New == event.StateSynRecv || slices.Contains([]event.OwnerSource{
					event.OwnerUnknown, event.OwnerListener, event.OwnerClose}, e.OwnerSource)
				if e.Netns == netns && e.Kind == event.KindState && !(child && (len(f.PIDs) > 0 || len(f.Comms) > 0)) {
					t.Errorf("let through: %s %s > %s of %s, %s, owner by %s", e.Kind, e.Old, e.New, e.Local, e.Peer, e.OwnerSource)
				}
			}
		})
	}
	for name, f := range map[string]event.Filter{
		"pid":    {PIDs: []uint32{uint32(os.Getpid())}},
		"family": {Family: 4},
		"addr":   {Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	} {
		t.Run(name, func(t *testing.T) {
			p := openTier(t, Options{Filter: f})
			netns := inSpace(t, run)
			seen := collect(t, p, netns, 6)
			compare(t, "transitions", seen.paths, []string{listener, listener, client + active, client + active, server + passive, server + passive})
		})
	}
}

// TestTwoNamespacesAtOnce: the same addresses and ports in two namespaces are
// not confused.
func TestTwoNamespacesAtOnce(t *testing.T) {
	p := openTier(t, Options{})
	var spaces [2]uint32
	var wait sync.WaitGroup
	for i := range spaces {
		wait.Go(func() {
			spaces[i] = inSpace(t, func(s *space) {
				for range 20 {
					l, at := s.listen(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 4000}, 8, 0)
					c := s.connect(at, 0)
					a := s.accept(l)
					linger0(c)
					s.close(l, c, a)
				}
			})
		})
	}
	wait.Wait()
	seen := collectIf(t, p, 120, func(e *event.Event) bool { return slices.Contains(spaces[:], e.Netns) })
	count := make(map[string]int)
	for i, c := range seen.conns {
		if c.Gap {
			t.Errorf("gap in %s to %s", c.Local, c.Peer)
		}
		count[fmt.Sprintf("%v %s", c.Netns == spaces[0], seen.paths[i])]++
	}
	for _, first := range []bool{true, false} {
		for _, path := range []string{listener, client + "ESTABLISHED>CLOSE", server + "ESTABLISHED>CLOSE"} {
			if n := count[fmt.Sprintf("%v %s", first, path)]; n != 20 {
				t.Errorf("%d of %s in namespace %v, want 20: %v", n, path, first, count)
			}
		}
	}
}

// TestInheritedSocket: a descriptor that a child has keeps the connection open
// when its creator closes; who closes in the end is the child.
func TestInheritedSocket(t *testing.T) {
	if os.Getenv("STATED_TEST_HOLD") != "" { // we are the child
		io.Copy(io.Discard, os.Stdin)
		return
	}
	p := openTier(t, Options{})
	var child int
	netns := inSpace(t, func(s *space) {
		c, a := s.pair(0)
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestInheritedSocket$")
		cmd.Env = append(os.Environ(), "STATED_TEST_HOLD=1")
		held := os.NewFile(uintptr(must(unix.FcntlInt(uintptr(c), unix.F_DUPFD_CLOEXEC, 0))), "socket")
		cmd.ExtraFiles = []*os.File{held}
		stdin := must(cmd.StdinPipe())
		check(cmd.Start())
		child = cmd.Process.Pid
		check(held.Close())
		s.close(c)
		if state := must(unix.GetsockoptTCPInfo(a, unix.IPPROTO_TCP, unix.TCP_INFO)).State; state != uint8(event.StateEstablished) {
			panic(fmt.Sprint("state ", state, " although the child has the descriptor"))
		}
		stdin.Close()
		check(cmd.Wait())
		readEOF(a)
		s.close(a)
	})
	for _, c := range collect(t, p, netns, 3).conns {
		if c.Role != lifecycle.RoleClient {
			continue
		}
		if c.Owner.PID != uint32(os.Getpid()) || c.Closer.PID != uint32(child) {
			t.Errorf("owner %d, closer %d; want %d, %d", c.Owner.PID, c.Closer.PID, os.Getpid(), child)
		}
	}
}

// TestMPTCP: the connection and its subflow are told apart, on both sides, and
// a connection that was accepted is not taken for its listener, whose cookie
// it has.
func TestMPTCP(t *testing.T) {
	p := openTier(t, Options{})
	netns := inSpace(t, func(s *space) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err != nil {
			panic(skip("the kernel lacks MPTCP: " + err.Error()))
		}
		s.fds = append(s.fds, fd)
		c, a := s.pair(unix.IPPROTO_MPTCP)
		must(unix.Write(c, []byte("hello")))
		var buf [16]byte
		must(unix.Read(a, buf[:]))
		s.close(c)
		readEOF(a)
		s.close(a)
	})
	seen := collect(t, p, netns, 6) // listener, client and server, each twice
	for i, c := range seen.conns {
		path := seen.paths[i]
		if c.Gap {
			t.Errorf("gap in %s %s", c.Role, path)
		}
		want := map[lifecycle.Role]string{lifecycle.RoleListener: "CLOSE>LISTEN", lifecycle.RoleClient: "CLOSE>SYN_SENT SYN_SENT>ESTABLISHED", lifecycle.RoleServer: "LISTEN>"}[c.Role]
		if want == "" || !strings.HasPrefix(path, want) || !strings.HasSuffix(path, ">CLOSE") {
			t.Errorf("%s, protocol %d: %s", c.Role, c.Protocol, path)
		}
	}
}
