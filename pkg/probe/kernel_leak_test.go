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

// stuck are sockets that their process does not close, and what must be said of
// each. A plant returns the descriptor of the one that leaks, or none, and its
// address.
var stuck = []struct {
	name    string
	verdict leak.Verdict
	state   event.State
	unread  uint32
	plant   func(*space) (fd int, local netip.AddrPort)
}{
	{"end of file never read", leak.EOFUnread, event.StateCloseWait, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		s.close(c)
		return held(s, a)
	}},
	{"data and end of file never read", leak.DataUnread, event.StateCloseWait, 5, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		must(unix.Write(c, []byte("hello")))
		s.close(c)
		return held(s, a)
	}},
	{"data read, end of file not", leak.EOFUnread, event.StateCloseWait, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		var buf [5]byte
		must(unix.Write(c, []byte("hello")))
		must(unix.Read(a, buf[:])) // before the FIN, so that it cannot join the data
		s.close(c)
		return held(s, a)
	}},
	{"all read, not closed", leak.Drained, event.StateCloseWait, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		s.close(c)
		readEOF(a)
		return held(s, a)
	}},
	{"client's end", leak.EOFUnread, event.StateCloseWait, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		s.close(a)
		return held(s, c)
	}},
	{"reset", leak.Hidden, event.StateClose, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		linger0(c)
		s.close(c)
		return held(s, a)
	}},
	{"reset after the end of file", leak.Hidden, event.StateClose, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		s.close(c)
		wait(a, event.StateCloseWait)
		must(unix.Write(a, []byte("x"))) // answered by RST
		return held(s, a)
	}},
	{"killed", leak.Hidden, event.StateClose, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		s.close(c)
		wait(a, event.StateCloseWait)
		local := addrOf(must(unix.Getsockname(a)))
		if err := destroy(a); err == unix.EOPNOTSUPP {
			panic(skip("no SOCK_DESTROY"))
		} else if err != nil {
			panic(err)
		}
		return a, local
	}},
	{"both ways shut, server", leak.ShutDown, event.StateClose, 0, func(s *space) (int, netip.AddrPort) {
		l, at := s.listen(local4(), 1, 0) // tells the role
		c := s.connect(at, 0)
		a := s.accept(l)
		local := addrOf(at)
		s.close(c)
		wait(a, event.StateCloseWait)
		check(unix.Shutdown(a, unix.SHUT_WR))
		wait(a, event.StateClose)
		return a, local
	}},
	{"both ways shut, client", leak.ShutDown, event.StateClose, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		local := addrOf(must(unix.Getsockname(c)))
		check(unix.Shutdown(c, unix.SHUT_WR))
		s.close(a)
		wait(c, event.StateClose)
		return c, local
	}},
	{"never accepted", leak.NotAccepted, event.StateCloseWait, 0, func(s *space) (int, netip.AddrPort) {
		_, at := s.listen(local4(), 8, 0)
		c := s.connect(at, 0)
		s.close(c)
		return -1, addrOf(at)
	}},
	{"in flight", leak.EOFUnread, event.StateCloseWait, 0, func(s *space) (int, netip.AddrPort) {
		c, a := s.pair(0)
		local := addrOf(must(unix.Getsockname(a)))
		pipe := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		s.fds = append(s.fds, pipe[:]...)
		check(unix.Sendmsg(pipe[0], []byte{0}, unix.UnixRights(a), nil, 0))
		s.close(a, c)
		return -1, local
	}},
}

// sound are sockets that nobody may call leaked.
var sound = []struct {
	name  string
	plant func(*space)
}{
	{"established", func(s *space) { s.pair(0) }},
	{"not connected", func(s *space) { s.socket(unix.AF_INET, 0) }},
	{"refused", func(s *space) {
		l, at := s.listen(local4(), 1, 0)
		s.close(l)
		_ = unix.Connect(s.socket(unix.AF_INET, 0), at) // ECONNREFUSED
	}},
	{"disconnected", func(s *space) {
		c, a := s.pair(0)
		disconnect(c)
		s.close(a)
	}},
	{"listener", func(s *space) { s.listen(local4(), 1, 0) }},
}

func held(_ *space, fd int) (int, netip.AddrPort) { return fd, addrOf(must(unix.Getsockname(fd))) }

// wait until the socket is in the state.
func wait(fd int, want event.State) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)).State == uint8(want) {
			return
		}
	}
	panic("never came to " + want.String())
}

func openInspector(t *testing.T) *Inspector {
	t.Helper()
	requireKernel(t)
	in := must(OpenInspector())
	if why := in.Limited(); why != nil {
		if _, noBTF := os.Stat("/sys/kernel/btf/vmlinux"); noBTF != nil {
			t.Skip("no BTF")
		}
		t.Fatal(why)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

// findings looks until n leaks are found in the namespace: the last segments
// may still be on their way.
func findings(in *Inspector, s *space, n int, history census.History) []leak.Finding {
	var found []leak.Finding
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		now, _ := Now()
		c, err := agent.Look(in, leak.DefaultStates, now, history)
		check(err)
		r := leak.Find(c, leak.Rules{States: leak.DefaultStates})
		found = slices.DeleteFunc(r.Findings, func(f leak.Finding) bool { return f.Netns != s.inode })
		if len(found) >= n || time.Now().After(deadline) {
			return found
		}
	}
}

// TestStuck: each way to leak a socket that was there before us is found, with
// its verdict, its holder and a bound of its age.
func TestStuck(t *testing.T) {
	in := openInspector(t)
	for _, tt := range stuck {
		t.Run(tt.name, func(t *testing.T) {
			inSpace(t, func(s *space) {
				s.t = t
				before, _ := Now()
				fd, local := tt.plant(s)
				found := slices.DeleteFunc(findings(in, s, 1, nil), func(f leak.Finding) bool { return f.Local != local })
				after, _ := Now()
				if len(found) != 1 {
					t.Fatalf("%d findings on %v: %+v", len(found), local, found)
				}
				f := found[0]
				if f.Verdict != tt.verdict || f.New != tt.state || f.Unread != tt.unread {
					t.Errorf("%s in %s, %d bytes unread; expected %s in %s, %d", f.Verdict, f.New, f.Unread, tt.verdict, tt.state, tt.unread)
				}
				if f.Age.Min > after-before || f.Age.Max != 0 && f.Age.Min > f.Age.Max {
					t.Errorf("age %+v of a socket that was planted %v ago", f.Age, time.Duration(after-before))
				}
				if tt.state == event.StateClose && f.Age.Known != lifecycle.Inferred {
					t.Errorf("age is %s", f.Age.Known)
				}
				checkHolder(t, &f, fd)
			})
		})
	}
}

func checkHolder(t *testing.T, f *leak.Finding, fd int) {
	owners := f.Owners()
	switch {
	case fd < 0 && f.Verdict != leak.NotAccepted: // in flight
		if len(f.Holders) != 0 || f.Elsewhere() != 1 {
			t.Errorf("held by %+v, %d elsewhere", f.Holders, f.Elsewhere())
		}
		return
	case len(owners) != 1 || owners[0].PID != uint32(os.Getpid()):
		t.Errorf("held by %+v, we are %d", owners, os.Getpid())
	case fd >= 0 && (len(f.Holders) != 1 || !slices.Equal(f.Holders[0].FDs, []int32{int32(fd)}) || f.Elsewhere() != 0):
		t.Errorf("held by %+v and %d elsewhere, expected descriptor %d", f.Holders, f.Elsewhere(), fd)
	case fd < 0 && (len(f.Listeners) != 1 || f.Listeners[0].Sighting.Unread != 1):
		t.Errorf("waits at %+v", f.Listeners)
	}
}

// TestSound: what is no leak is not called one.
func TestSound(t *testing.T) {
	in := openInspector(t)
	inSpace(t, func(s *space) {
		for _, tt := range sound {
			tt.plant(s)
		}
		// One that leaks, planted last: when it is found, all have been looked at.
		c, a := s.pair(0)
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

// TestSoundWithHistory: what events told of a connection does not make a leak of the
// descriptor that it was on.
func TestSoundWithHistory(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		p := openTier(s.t, Options{})
		in, err := p.Inspector()
		check(err)
		defer in.Close()
		for _, tt := range sound {
			tt.plant(s)
		}
		c, a := s.pair(0)
		s.close(c)
		wait(a, event.StateCloseWait)
		_, want := held(s, a)
		table := lifecycle.New(&collector{open: make(map[*lifecycle.Conn][]string)}, lifecycle.Options{})
		ended := 0
		for e := (event.Event{}); e.Netns != s.inode || e.Kind != event.KindState || e.New != event.StateCloseWait || e.Local != want; {
			if err := p.Read(&e); err != nil {
				continue
			}
			table.Apply(&e)
		}
		table.All(func(c *lifecycle.Conn) {
			if c.Netns == s.inode && c.Disconnected() {
				ended++
			}
		})
		if ended != 1 {
			t.Errorf("%d disconnected", ended)
		}
		for _, f := range findings(in, s, 1, table.Get) {
			if f.Local != want {
				t.Errorf("false finding: %s %v %v %s", f.New, f.Local, f.Peer, f.Verdict)
			}
		}
	})
}

// TestExactAge: where the change of state was seen, the age is exact, and so is
// for how long the connection had been silent before.
func TestExactAge(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		p := openTier(s.t, Options{})
		in, err := p.Inspector()
		check(err)
		defer in.Close()
		table := lifecycle.New(&collector{open: make(map[*lifecycle.Conn][]string)}, lifecycle.Options{})
		c, a := s.pair(0)
		s.close(c)
		wait(a, event.StateCloseWait)
		var seen int64
		for e := (event.Event{}); seen == 0; {
			if err := p.Read(&e); err != nil {
				continue
			}
			table.Apply(&e)
			if e.Netns == s.inode && e.Kind == event.KindState && e.New == event.StateCloseWait {
				seen = e.Time
			}
		}
		found := findings(in, s, 1, table.Get)
		if len(found) != 1 {
			t.Fatalf("%d findings", len(found))
		}
		f := found[0]
		if f.Age.Known != lifecycle.Seen || f.Age.Min != f.Age.Max {
			t.Errorf("age %+v", f.Age)
		}
		if now, _ := Now(); f.Age.Min > now-seen {
			t.Errorf("age %v, seen %v ago", time.Duration(f.Age.Min), time.Duration(now-seen))
		}
		if f.Role != lifecycle.RoleServer || f.RoleKnown != lifecycle.Seen {
			t.Errorf("role %s, %s", f.Role, f.RoleKnown)
		}
	})
}

func TestJiffies(t *testing.T) {
	for _, tt := range []struct {
		seconds int64
		hz      int64
	}{{5, 250}, {1000, 250}, {5, 100}, {86400 * 400, 1000}, {3600, 300}, {290, 250}} {
		jiffies := uint64(1<<32 - 300*tt.hz + tt.seconds*tt.hz)
		want := tt.hz
		if tt.seconds == 290 {
			want = 0 // too near to the point where all rates agree
		}
		if got := jiffiesPerSecond(jiffies, tt.seconds*1e9); got != want {
			t.Errorf("after %d s at %d Hz: %d", tt.seconds, tt.hz, got)
		}
	}
}

// TestRoles: who called is found when the listener is gone, by what the kernel
// counts, whichever port has the larger number.
func TestRoles(t *testing.T) {
	for name, in := range map[string]*Inspector{"iterators": openInspector(t), "sock_diag": OpenSockDiag()} {
		t.Run(name, func(t *testing.T) {
			inSpace(t, func(s *space) {
				clients := make(map[netip.AddrPort]bool)
				for _, end := range []func(c, a int){
					func(c, a int) {},
					func(c, a int) { must(unix.Write(c, []byte("hello"))); must(unix.Write(a, make([]byte, 100_000))) },
					func(c, a int) { s.close(c); wait(a, event.StateCloseWait) },
					func(c, a int) { check(unix.Shutdown(c, unix.SHUT_WR)); wait(c, event.StateFinWait2) },
					func(c, a int) { check(unix.Shutdown(a, unix.SHUT_WR)); wait(a, event.StateFinWait2) },
				} {
					c, a := s.pair(0)
					clients[addrOf(must(unix.Getsockname(c)))] = true
					end(c, a)
				}
				now, _ := Now()
				found, err := agent.Look(in, event.AllStates, now, nil)
				check(err)
				n := 0
				for _, socket := range found.Sockets {
					if socket.Netns != s.inode || socket.New == event.StateListen {
						continue
					}
					n++
					want := lifecycle.RoleServer
					if clients[socket.Local] {
						want = lifecycle.RoleClient
					}
					if socket.Role != want || socket.RoleKnown != lifecycle.Inferred {
						t.Errorf("%s %s → %s: %s %s, want %s", socket.New, socket.Local, socket.Peer, socket.RoleKnown, socket.Role, want)
					}
				}
				if n != 2*5 {
					t.Errorf("%d sockets, want 10", n)
				}
			})
		})
	}
}
