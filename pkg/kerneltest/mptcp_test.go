// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
)

// TestMultipath: a connection of two subflows, the second of which the kernel's
// worker opens (a third, the other way, may come), is one connection with its
// subflows at either end, and all of them are this process's.
func TestMultipath(t *testing.T) {
	p := openProbe(t, probe.Options{})
	requireProgram(t, "ip")
	s := newSpace(t)
	stop := gatherConns(p)
	var second netip.Addr
	s.run(func() {
		octets := s.v4.As4()
		octets[3]++
		second = netip.AddrFrom4(octets)
		for _, args := range [][]string{{"limits", "set", "subflow", "1"}, {"endpoint", "add", second.String(), "dev", "lo", "subflow"}} {
			if out, err := exec.Command("ip", append([]string{"mptcp"}, args...)...).CombinedOutput(); err != nil {
				panic(fmt.Sprintf("ip mptcp %v: %v: %s", args, err, out))
			}
		}
		l := s.multipath()
		check(unix.Bind(l, &unix.SockaddrInet4{Addr: s.v4.As4()}))
		check(unix.Listen(l, 8))
		c := s.multipath()
		check(unix.Connect(c, must(unix.Getsockname(l))))
		a := s.accept(l)
		must(unix.Write(c, []byte("hello")))
		var buf [8]byte
		must(unix.Read(a, buf[:]))
		for deadline := time.Now().Add(10 * time.Second); subflows(c) < 1 || subflows(a) < 1; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				panic("the second subflow does not come")
			}
		}
		s.close(c)
		readEOF(a)
		s.close(a, l)
	})
	ours := func(c *lifecycle.Conn) bool { return c.Netns == s.inode && c.Role != lifecycle.RoleListener }
	ended, open, err := stop(func(conns []lifecycle.Conn) bool {
		n := 0
		for i := range conns {
			if ours(&conns[i]) {
				n++
			}
		}
		return n >= 6
	})
	if err != nil {
		t.Fatal(err)
	}
	whole := make(map[lifecycle.Role]*lifecycle.Multipath)
	subflows := make(map[*lifecycle.Multipath]int)
	for _, c := range append(ended, open...) { // the end of a subflow that its netns took is not told
		if !ours(&c) {
			continue
		}
		if c.Protocol == event.ProtoMPTCP {
			whole[c.Role] = c.Multipath()
		} else {
			subflows[c.Multipath()]++
			if c.Local.Addr() == second && c.Role != lifecycle.RoleClient {
				t.Errorf("subflow from %s: %s", c.Local, c.Role)
			}
		}
		if c.Owner.PID != uint32(os.Getpid()) {
			t.Errorf("%s %s %s, protocol %d: owner %s[%d] by %s", c.Role, c.Local, c.Peer, c.Protocol, c.Owner.Comm, c.Owner.PID, c.Owner.Source)
		}
	}
	for _, role := range []lifecycle.Role{lifecycle.RoleClient, lifecycle.RoleServer} {
		if m := whole[role]; m == nil || m.Subflows < 2 || subflows[m] != m.Subflows {
			t.Errorf("%s: %+v, %d subflows", role, m, subflows[m])
		}
	}
}

func (s *space) multipath() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	check(err)
	s.fds = append(s.fds, fd)
	return fd
}

// subflows is how many more than the first one a connection has (MPTCP_INFO,
// mptcpi_subflows: include/uapi/linux/mptcp.h).
func subflows(fd int) int {
	const solMPTCP, mptcpInfo = 284, 1
	info := must(unix.GetsockoptString(fd, solMPTCP, mptcpInfo)) // ends at the first zero
	if info == "" {
		return 0
	}
	return int(info[0])
}
