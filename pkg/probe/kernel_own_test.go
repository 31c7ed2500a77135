// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestKernelsOwn: a socket that the kernel made for itself says so, and is nobody's
// descriptor.
func TestKernelsOwn(t *testing.T) {
	in := openInspector(t)
	for _, tier := range tiers[:3] {
		t.Run(tier.name, func(t *testing.T) {
			p := openTier(t, tier.opts)
			t.Run("NFS", func(t *testing.T) { testNFS(t, p, in) })
			t.Run("SMC", func(t *testing.T) { testSMC(t, p, in) })
			t.Run("MPTCP", func(t *testing.T) { testPlainToMPTCP(t, p, in) })
		})
	}
}

// testNFS mounts from a server that has no such program: a client of NFS asks for
// the root of the file system first, by a connection of the kernel's.
func testNFS(t *testing.T, p *Probe, in *Inspector) {
	inSpace(t, func(s *space) {
		l, at := s.listen(local4(), 8, 0)
		port := at.(*unix.SockaddrInet4).Port
		var found []census.Socket
		var server sync.WaitGroup
		server.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					t.Error("server:", p)
				}
			}()
			found = serveNothing(in, l, s.inode)
		})
		dir := t.TempDir()
		err := unix.Mount("127.0.0.1:/x", dir, "nfs", 0,
			fmt.Sprintf("addr=127.0.0.1,mountaddr=127.0.0.1,vers=3,mountvers=3,proto=tcp,mountproto=tcp,port=%d,mountport=%d,nolock,soft,noresvport", port, port))
		unix.Shutdown(l, unix.SHUT_RDWR) // accept returns
		server.Wait()
		if err == unix.ENODEV {
			panic(skip("this kernel has no NFS"))
		}
		if err == nil {
			check(unix.Unmount(dir, 0))
			t.Fatal("mounted")
		}
		t.Logf("mount: %v", err)
		if len(found) == 0 {
			t.Fatal("the server has not seen a client")
		}
		for i := range found {
			c := &found[i]
			if int(c.Local.Port()) != port && !c.Kernel() || int(c.Local.Port()) == port && c.Flags.Has(event.FlagKernel) {
				t.Errorf("%s %s %s: kernel's %v, held by %+v, %d elsewhere", c.New, c.Local, c.Peer, c.Kernel(), c.Holders, c.Elsewhere())
			}
		}
		clients := 0
		for _, c := range collect(t, p, s.inode, 2).conns {
			client := c.Role == lifecycle.RoleClient
			if c.Kernel != client {
				t.Errorf("%s %s %s: kernel's %v", c.Role, c.Local, c.Peer, c.Kernel)
			}
			if client {
				clients++
				t.Logf("%s %s by %s[%d] by %s", c.Local, c.Outcome, c.Owner.Comm.String(), c.Owner.PID, c.Owner.Source)
				if !strings.HasPrefix(c.Owner.Comm.String(), "kworker/") || c.Owner.Source != event.OwnerConnect || c.Outcome != lifecycle.OutcomeClosed {
					t.Errorf("%s by %s, %s", c.Owner.Comm.String(), c.Owner.Source, c.Outcome)
				}
			}
		}
		if clients == 0 {
			t.Error("no client")
		}
	})
}

// serveNothing answers each call of ONC RPC (RFC 5531) that there is no such
// program, and returns the sockets that were in the namespace at the first.
func serveNothing(in *Inspector, listener int, netns uint32) (found []census.Socket) {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return found
		}
		conn := os.NewFile(uintptr(fd), "connection")
		for {
			var header [8]byte // the record's length, and the call's number
			if _, err := io.ReadFull(conn, header[:]); err != nil {
				break
			}
			length := binary.BigEndian.Uint32(header[:]) &^ (1 << 31)
			if _, err := io.CopyN(io.Discard, conn, int64(length)-4); err != nil {
				break
			}
			if found == nil {
				found = lookAround(in, netns)
			}
			answer := binary.BigEndian.AppendUint32(nil, 1<<31|24)
			answer = append(answer, header[4:]...)
			for _, word := range []uint32{1, 0, 0, 0, 1} { // REPLY, MSG_ACCEPTED, AUTH_NONE, PROG_UNAVAIL
				answer = binary.BigEndian.AppendUint32(answer, word)
			}
			if _, err := conn.Write(answer); err != nil {
				break
			}
		}
		conn.Close()
	}
}

// lookAround returns the connections of a namespace.
func lookAround(in *Inspector, netns uint32) (found []census.Socket) {
	now, _ := Now()
	c := census.New(now)
	check(in.Sockets(event.AllStates, c.Add))
	check(in.Holders(event.AllStates, c.Add))
	for _, s := range c.Sockets {
		if s.Netns == netns && s.New != event.StateListen && !s.Orphan() {
			found = append(found, *s)
		}
	}
	return found
}

// testPlainToMPTCP: a listener of MPTCP, as Go's are, accepts plain TCP by sockets
// that the kernel made, and gives them to the process.
func testPlainToMPTCP(t *testing.T, p *Probe, in *Inspector) {
	inSpace(t, func(s *space) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err == unix.EPROTONOSUPPORT {
			panic(skip("this kernel has no MPTCP"))
		}
		check(err)
		unix.Close(fd)
		l, at := s.listen(local4(), 8, unix.IPPROTO_MPTCP)
		c := s.connect(at, 0)
		queued := lookAround(in, s.inode) // the server's
		if len(queued) != 2 {
			t.Errorf("%d ends, expected 2", len(queued))
		}
		for _, socket := range queued {
			if socket.Flags.Has(event.FlagKernel) {
				t.Errorf("%s %s, queued %v: called the kernel's", socket.Local, socket.Peer, socket.NotAccepted())
			}
		}
		a := s.accept(l)
		accepted := lookAround(in, s.inode)
		if len(accepted) != 2 {
			t.Errorf("%d ends, expected 2", len(accepted))
		}
		for _, socket := range accepted {
			if socket.Flags.Has(event.FlagKernel) || len(socket.Holders) != 1 {
				t.Errorf("%s %s: kernel's %v, held by %+v", socket.Local, socket.Peer, socket.Kernel(), socket.Holders)
			}
		}
		s.close(c)
		readEOF(a)
		s.close(a)
		for _, c := range collect(t, p, s.inode, 2).conns {
			if c.Kernel {
				t.Errorf("%s %s: called the kernel's", c.Role, c.Local)
			}
		}
	})
}

// testSMC talks by SMC, which falls back to TCP on a socket of its own, as there is
// no device for it. From then on that is the process's descriptor.
func testSMC(t *testing.T, p *Probe, in *Inspector) {
	inSpace(t, func(s *space) {
		const afSMC = 43 // include/linux/socket.h
		open := func() int {
			fd, err := unix.Socket(afSMC, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == unix.EAFNOSUPPORT {
				panic(skip("this kernel has no SMC"))
			}
			check(err)
			s.fds = append(s.fds, fd)
			return fd
		}
		l := open()
		check(unix.Bind(l, local4()))
		check(unix.Listen(l, 8))
		c := open()
		check(unix.Connect(c, must(unix.Getsockname(l))))
		a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		check(err)
		must(unix.Write(c, []byte("x")))
		must(unix.Read(a, make([]byte, 1)))
		ends := lookAround(in, s.inode)
		if len(ends) != 2 {
			t.Errorf("%d ends, expected 2", len(ends))
		}
		for _, socket := range ends {
			t.Logf("%s %s: held by %+v", socket.Local, socket.Peer, socket.Holders)
			if !socket.Flags.Has(event.FlagKernel) || socket.Elsewhere() > 0 {
				t.Errorf("%s %s: kernel's %v, held by %+v, %d elsewhere", socket.Local, socket.Peer, socket.Flags.Has(event.FlagKernel), socket.Holders, socket.Elsewhere())
			}
		}
		unix.Close(c)
		unix.Close(a)
		for _, c := range collect(t, p, s.inode, 2).conns {
			t.Logf("%s %s %s by %s[%d] by %s", c.Role, c.Local, c.Outcome, c.Owner.Comm.String(), c.Owner.PID, c.Owner.Source)
			if !c.Kernel || c.Owner.PID != uint32(os.Getpid()) {
				t.Errorf("%s: kernel's %v, owner %s[%d]", c.Role, c.Kernel, c.Owner.Comm.String(), c.Owner.PID)
			}
		}
	})
}
