// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/agent"
	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// needMPTCP skips where the kernel has none.
func needMPTCP() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		panic(skip("the kernel lacks MPTCP: " + err.Error()))
	}
	unix.Close(fd)
}

// stuckMPTCP are ways not to close an MPTCP connection.
var stuckMPTCP = []struct {
	name    string
	verdict leak.Verdict
	state   event.State
	plant   func(*space) (fd int, local netip.AddrPort)
}{
	{"server's end", leak.Unknown, event.StateCloseWait, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(unix.IPPROTO_MPTCP)
		s.close(c)
		return held(s, a)
	}},
	{"client's end", leak.Unknown, event.StateCloseWait, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(unix.IPPROTO_MPTCP)
		s.close(a)
		return held(s, c)
	}},
	{"client's end, the server does not speak MPTCP", leak.Unknown, event.StateCloseWait, func(s *space) (int, netip.AddrPort) {
		l, at := s.listen(local4(), 8, 0)
		c := s.connect(at, unix.IPPROTO_MPTCP)
		s.close(s.accept(l))
		return held(s, c)
	}},
	{"reset", leak.Hidden, event.StateClose, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(unix.IPPROTO_MPTCP)
		must(unix.Write(c, []byte("x"))) // else the end that accepted may not know yet that it has spoken MPTCP
		readSome(a)
		_, local := held(s, a)
		linger0(c)
		s.close(c)
		return a, local
	}},
	{"reset, the server does not speak MPTCP", leak.Hidden, event.StateClose, func(s *space) (int, netip.AddrPort) {
		l, at := s.listen(local4(), 8, 0)
		c := s.connect(at, unix.IPPROTO_MPTCP)
		_, local := held(s, c)
		a := s.accept(l)
		linger0(a)
		s.close(a)
		return c, local
	}},
	{"both ways shut", leak.Hidden, event.StateClose, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(unix.IPPROTO_MPTCP)
		_, local := held(s, c)
		check(unix.Shutdown(c, unix.SHUT_WR))
		readEOF(a)
		s.close(a)
		readEOF(c)
		return c, local
	}},
}

func readSome(fd int) {
	var b [1]byte
	must(unix.Read(fd, b[:]))
}

// TestStuckMPTCP: of an MPTCP connection that its process does not close, the socket
// with the descriptor is found, once, and with a bound of its age, which its subflows
// tell. They are not called stuck.
func TestStuckMPTCP(t *testing.T) {
	in := openInspector(t)
	for _, tt := range stuckMPTCP {
		t.Run(tt.name, func(t *testing.T) {
			inSpace(t, func(s *space) {
				s.t = t
				needMPTCP()
				before, _ := Now()
				fd, local := tt.plant(s)
				found := findings(in, s, 1, nil)
				if len(found) != 1 || found[0].Local != local {
					t.Fatalf("%d findings, expected one on %s: %+v", len(found), local, found)
				}
				f := found[0]
				after, _ := Now()
				if f.New != tt.state || f.Verdict != tt.verdict || !f.Multipath() {
					t.Errorf("%s in %s, protocol %d; expected %s in %s", f.Verdict, f.New, f.Protocol, tt.verdict, tt.state)
				}
				if f.Age.Min <= 0 || f.Age.Min > after-before {
					t.Errorf("age %+v of a socket that was planted %v ago", f.Age, time.Duration(after-before))
				}
				checkHolder(t, &f, fd)
			})
		})
	}
}

// TestExactAgeMPTCP: events of an MPTCP connection are joined to its socket, though it
// has the cookie of its listener.
func TestExactAgeMPTCP(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		needMPTCP()
		p := openTier(s.t, Options{})
		in, err := p.Inspector()
		check(err)
		defer in.Close()
		table := lifecycle.New(&collector{open: make(map[*lifecycle.Conn][]string)}, lifecycle.Options{})
		c, _ := s.pair(unix.IPPROTO_MPTCP)
		s.close(c)
		for e := (event.Event{}); e.Netns != s.inode || e.New != event.StateCloseWait || e.Protocol != event.ProtoMPTCP; {
			if err := p.Read(&e); err != nil {
				continue
			}
			table.Apply(&e)
		}
		found := findings(in, s, 1, table.Get)
		if len(found) != 1 || found[0].Age.Known != lifecycle.Seen || found[0].Role != lifecycle.RoleServer || found[0].RoleKnown != lifecycle.Seen {
			t.Errorf("%d findings: %+v", len(found), found)
		}
	})
}

// TestSoundMPTCP: what is no leak of MPTCP is not called one, whatever its subflows are in.
func TestSoundMPTCP(t *testing.T) {
	in := openInspector(t)
	inSpace(t, func(s *space) {
		needMPTCP()
		s.pair(unix.IPPROTO_MPTCP)
		s.socket(unix.AF_INET, unix.IPPROTO_MPTCP)
		l, at := s.listen(local4(), 1, unix.IPPROTO_MPTCP)
		s.close(l)
		_ = unix.Connect(s.socket(unix.AF_INET, unix.IPPROTO_MPTCP), at) // ECONNREFUSED
		c, a := s.pair(unix.IPPROTO_MPTCP)
		disconnect(c)
		s.close(a)
		c, a = s.pair(0)
		s.close(c)
		wait(a, event.StateCloseWait)
		_, want := held(s, a)
		for _, f := range findings(in, s, 1, nil) {
			if f.Local != want {
				t.Errorf("false finding: %s %v %v %s", f.New, f.Local, f.Peer, f.Verdict)
			}
		}
	})
}

// TestLookMPTCP: connections, subflows and listeners of MPTCP are told apart, and each
// has the holder that it has. By sock_diag there are no connections.
func TestLookMPTCP(t *testing.T) {
	for name, in := range map[string]*Inspector{"iterators": openInspector(t), "sock_diag": OpenSockDiag()} {
		t.Run(name, func(t *testing.T) {
			inSpace(t, func(s *space) {
				s.t = t
				needMPTCP()
				l, at := s.listen(local4(), 8, unix.IPPROTO_MPTCP)
				c := s.connect(at, unix.IPPROTO_MPTCP)
				a := s.accept(l)
				_, local := held(s, a)
				gone := s.connect(at, unix.IPPROTO_MPTCP)
				b := s.accept(l)
				orphan := addrOf(must(unix.Getsockname(gone)))
				s.close(gone)
				waiting := addrOf(must(unix.Getsockname(s.connect(at, unix.IPPROTO_MPTCP)))) // never accepted
				peer := addrOf(must(unix.Getsockname(c)))
				var found []*census.Socket
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
					now, _ := Now()
					all, err := agent.Look(in, event.AllStates, now, nil)
					check(err)
					found = slices.DeleteFunc(all.Sockets, func(f *census.Socket) bool { return f.Netns != s.inode })
					closing := slices.ContainsFunc(found, func(f *census.Socket) bool { return f.New == event.StateCloseWait })
					if closing || in.Limited() != nil || time.Now().After(deadline) {
						break
					}
				}
				fds := func(f *census.Socket) []int32 {
					if len(f.Holders) != 1 || f.Holders[0].PID != uint32(os.Getpid()) {
						return nil
					}
					return f.Holders[0].FDs
				}
				wholes, subflows, listeners := 0, 0, 0
				for _, f := range found {
					switch {
					case f.New == event.StateListen:
						listeners++
						if !f.Multipath() || !slices.Equal(fds(f), []int32{int32(l)}) {
							t.Errorf("listener: protocol %d, held by %+v", f.Protocol, f.Holders)
						}
					case f.Multipath():
						wholes++
						if fds(f) == nil || f.Subflow() || f.Elsewhere() != 0 {
							t.Errorf("%s %s %s: held by %+v, %d elsewhere", f.New, f.Local, f.Peer, f.Holders, f.Elsewhere())
						}
						if want := event.StateCloseWait; slices.Equal(fds(f), []int32{int32(b)}) && f.New != want {
							t.Errorf("descriptor %d is in %s, expected %s", b, f.New, want)
						}
					case !f.Subflow():
						t.Errorf("%s %s %s is no subflow", f.New, f.Local, f.Peer)
					case f.Local == orphan:
						subflows++
						if len(f.Holders) != 0 || f.Whole != nil || f.Orphan() != (in.Limited() == nil) {
							t.Errorf("subflow of what was closed: %+v, orphan %v", f.Holders, f.Orphan())
						}
					case f.Peer == waiting:
						subflows++
						if len(f.Holders) != 0 || f.Whole != nil || f.Orphan() {
							t.Errorf("subflow of what was not accepted: %+v, orphan %v", f.Holders, f.Orphan())
						}
					default:
						subflows++
						if fds(f) == nil || (f.Whole != nil) != (in.Limited() == nil) || leak.Judge(f).Socket.NotAccepted() {
							t.Errorf("subflow %s %s: held by %+v, of %+v", f.Local, f.Peer, f.Holders, f.Whole)
						}
						if want := map[netip.AddrPort]int{local: a, peer: c}[f.Local]; f.Peer == peer && !slices.Equal(fds(f), []int32{int32(want)}) {
							t.Errorf("subflow %s %s: descriptors %v, expected %d", f.Local, f.Peer, fds(f), want)
						}
					}
				}
				want := 4 // of six ends one was closed, and one not accepted
				if in.Limited() != nil {
					want = 0
				}
				if wholes != want || subflows != 6 || listeners != 1 {
					t.Errorf("%d connections, %d subflows, %d listeners; expected %d, 6, 1", wholes, subflows, listeners, want)
				}
			})
		})
	}
}
