// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

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
