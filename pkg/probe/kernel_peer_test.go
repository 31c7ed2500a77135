// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/kerneltest/peer"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// scripted is a scenario whose other end is a script.
type scripted struct {
	name string
	run  func(*script)
	want []string // transitions: a line for each connection, any order
	ends []string // role, outcome, who closed first, what is left, how the owner is known

	// half-open connections that came to nothing, as ends without the owner; only
	// trampolines tell of them
	half []string

	grows    bool // FIN_WAIT2 becomes TIME_WAIT, maybe before the connection is told where that is seen
	anyOwner bool // it depends on time how the owner is known: ends do not have it
	unborn   bool // accepted in SYN_RECV: before 6.18 it has no cookie then, and only trampolines tell who did
}

// script is a network namespace with a script behind a TUN device.
type script struct {
	*space
	dev              *peer.Device
	kernel4, peer4   netip.Addr
	kernel6, peer6   netip.Addr
	listening        int
	nextPort, atPort uint16
}

// sysctl sets a number of this namespace.
func (s *script) sysctl(name string, value int) {
	path := "/proc/sys/net/ipv4/" + name
	check(os.WriteFile(path, fmt.Appendln(nil, value), 0))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// connecting is a client whose SYN has come.
func (s *script) connecting(options ...func(fd int)) (int, *peer.Conn) {
	return s.connectingTo(s.peer4, s.kernel4, options...)
}

func (s *script) connectingTo(to, from netip.Addr, options ...func(fd int)) (int, *peer.Conn) {
	const port = 80
	c := s.dev.Conn(netip.AddrPortFrom(to, port), netip.AddrPortFrom(from, 0))
	family := unix.AF_INET
	if to.Is6() {
		family = unix.AF_INET6
	}
	fd := s.socket(family, 0)
	for _, set := range options {
		set(fd)
	}
	check(unix.SetNonblock(fd, true))
	if err := unix.Connect(fd, sockaddr(c.Local)); err != unix.EINPROGRESS {
		panic(fmt.Sprint("connect: ", err))
	}
	check(unix.SetNonblock(fd, false))
	c.Expect(peer.SYN)
	return fd, c
}

// connected is a client of the script.
func (s *script) connected(options ...func(fd int)) (int, *peer.Conn) {
	fd, c := s.connecting(options...)
	c.Send(peer.SYN | peer.ACK)
	c.Expect(peer.ACK)
	return fd, c
}

// serve begins to listen.
func (s *script) serve(backlog int) int {
	s.atPort = 8080
	s.listening, _ = s.listen(sockaddr(netip.AddrPortFrom(s.kernel4, s.atPort)), backlog, 0)
	return s.listening
}

// client is an end of the script that will connect to the listener.
func (s *script) client() *peer.Conn {
	s.nextPort++
	return s.dev.Conn(netip.AddrPortFrom(s.peer4, 4000+s.nextPort), netip.AddrPortFrom(s.kernel4, s.atPort))
}

// shake makes the three steps of a client of the script.
func shake(c *peer.Conn) {
	c.Send(peer.SYN)
	c.Expect(peer.SYN | peer.ACK)
	c.Send(peer.ACK)
}

// accepted is a connection of the script to a listener, which is closed.
func (s *script) accepted() (int, *peer.Conn) {
	l := s.serve(8)
	c := s.client()
	shake(c)
	fd := s.accept(l)
	s.close(l)
	return fd, c
}

// sockets counts those of the namespace in a state, mini sockets and requests
// included, that have one of these timers, or any (net/ipv4/tcp_ipv4.c,
// get_tcp4_sock and get_timewait4_sock).
func (s *script) sockets(state event.State, timers ...string) (n int) {
	for line := range strings.Lines(string(must(os.ReadFile("/proc/thread-self/net/tcp")))) {
		words := strings.Fields(line)
		if len(words) < 6 || words[3] != fmt.Sprintf("%02X", uint8(state)) {
			continue
		}
		timer, _, _ := strings.Cut(words[5], ":")
		if len(timers) == 0 || slices.Contains(timers, timer) {
			n++
		}
	}
	return n
}

// until waits for what the kernel does by itself.
func until(what string, done func() bool) {
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			panic("never came: " + what)
		}
	}
}

// none waits until the namespace has no socket in the state.
func (s *script) none(state event.State) {
	until("no socket in "+state.String(), func() bool { return s.sockets(state) == 0 })
}

// handedOver waits until a socket in FIN_WAIT2 is a mini socket, whose timer
// is number 3.
func (s *script) handedOver() {
	until("a mini socket in FIN_WAIT2", func() bool { return s.sockets(event.StateFinWait2, "03") == 1 })
}

func option(level, name, value int) func(int) {
	return func(fd int) { check(unix.SetsockoptInt(fd, level, name, value)) }
}

// network is where scenario i plays: its addresses tell its connections, also
// where the kernel side cannot tell the namespace.
func network(i int) (v4, v6 netip.Prefix) {
	v6bytes := [16]byte{0: 0xfd, 1: 0x77, 7: byte(i), 15: 1}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 1}), 24), netip.PrefixFrom(netip.AddrFrom16(v6bytes), 64)
}

// stage is a run of all scenarios at once.
type stage struct {
	mu     sync.Mutex
	spaces map[uint32][]int // scenarios by their namespace, whose number may be used again
	events [][]event.Event
	failed []any // what went wrong in each
}

// play runs scenario i.
func (st *stage) play(t *testing.T, i int, sc *scripted) {
	_, st.failed[i] = runSpace(t, func(sp *space) {
		st.mu.Lock()
		st.spaces[sp.inode] = append(st.spaces[sp.inode], i)
		st.mu.Unlock()
		v4, v6 := network(i)
		dev, err := peer.Open(v4, v6)
		check(err)
		defer dev.Close()
		sc.run(&script{space: sp, dev: dev, kernel4: v4.Addr(), peer4: v4.Addr().Next(), kernel6: v6.Addr(), peer6: v6.Addr().Next()})
	})
}

// keep puts an event to the scenario that it is of, by namespace and address.
// What comes behind the end of a connection may have no address any more; it
// goes to every scenario of its namespace, and those that do not know the
// socket ignore it.
func (st *stage) keep(e *event.Event) {
	at := -1
	if a := e.Local.Addr(); a.Is4() && a.As4()[0] == 10 && a.As4()[1] == 77 {
		at = int(a.As4()[2])
	} else if a.Is6() && a.As16()[0] == 0xfd && a.As16()[1] == 0x77 {
		at = int(a.As16()[7])
	} else if a.IsValid() && !a.IsUnspecified() || e.Kind == event.KindState {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	for i := range st.events {
		// the classic tracepoint does not tell the namespace
		if (e.Netns == 0 || slices.Contains(st.spaces[e.Netns], i)) && (at == i || at < 0) {
			st.events[i] = append(st.events[i], *e)
		}
	}
}

// gather reads until done is closed and nothing more comes, and sorts the
// events by scenario.
func (st *stage) gather(t *testing.T, p *Probe, done <-chan struct{}) {
	t.Helper()
	for quiet := 0; quiet < 3; {
		var e event.Event
		err := p.Read(&e)
		if errors.Is(err, event.ErrIdle) {
			select {
			case <-done:
				quiet++
			default:
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == event.KindLost {
			t.Fatalf("%d events lost", e.Count)
		}
		st.keep(&e)
	}
}

// TestScripted plays all scenarios at once, as many wait for timers of the
// kernel, and holds each against what it must have told.
func TestScripted(t *testing.T) {
	scenarios := slices.Concat(scriptedOpens, scriptedResets, scriptedCloses)
	for _, tier := range tiers {
		t.Run(tier.name, func(t *testing.T) {
			// both ways, with trampolines and without, by cookie and by address
			tier.opts.NoTrampolines = tier.opts.NoStorage
			p := openTier(t, tier.opts)
			n := len(scenarios)
			st := &stage{spaces: make(map[uint32][]int), events: make([][]event.Event, n), failed: make([]any, n)}
			hidden := watchUnseen(t)
			st.run(t, p, scenarios)
			for i, sc := range scenarios {
				t.Run(strings.ReplaceAll(sc.name, " ", "_"), func(t *testing.T) {
					wrong := st.judge(p, &sc, i)
					if wrong != "" {
						v4, v6 := network(i)
						lines := hidden.of(t, st.events[i], func(local, _ netip.AddrPort) bool {
							return v4.Contains(local.Addr()) || v6.Contains(local.Addr())
						})
						if lines != "" {
							t.Logf("once more: %s\nas the kernel runs no program here:\n%s", wrong, lines)
							wrong = st.again(t, p, scenarios, i)
						}
					}
					for try := 0; try < 3 && wrong != "" && skipped(t, p) > 0; try++ {
						// The kernel says that it skipped programs of ours, as it
						// does when one is interrupted by, or from 7.0 on preempted
						// for, another run of it on the same CPU. Once more, alone.
						t.Logf("%d runs skipped; %s", skipped(t, p), wrong)
						wrong = st.again(t, p, scenarios, i)
					}
					if wrong != "" {
						t.Error(wrong)
					}
				})
			}
		})
	}
}

func skipped(t *testing.T, p *Probe) uint64 {
	s, err := p.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s.Skipped
}

// run plays some scenarios, all by default, and gathers their events.
func (st *stage) run(t *testing.T, p *Probe, scenarios []scripted, which ...int) {
	t.Helper()
	var all sync.WaitGroup
	for i := range scenarios {
		if len(which) == 0 || slices.Contains(which, i) {
			all.Go(func() { st.play(t, i, &scenarios[i]) })
		}
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	st.gather(t, p, done)
}

// again plays scenario i alone, and judges that.
func (st *stage) again(t *testing.T, p *Probe, scenarios []scripted, i int) (wrong string) {
	t.Helper()
	st.failed[i], st.events[i] = nil, nil
	st.run(t, p, scenarios, i)
	return st.judge(p, &scenarios[i], i)
}

// judge makes lifecycles of the events and says what is wrong with them.
func (st *stage) judge(p *Probe, sc *scripted, scenario int) (wrong string) {
	if st.failed[scenario] != nil {
		return fmt.Sprintln(st.failed[scenario])
	}
	events := st.events[scenario]
	o := &collector{open: make(map[*lifecycle.Conn][]string)}
	table := lifecycle.New(o, lifecycle.Options{NoDestroy: p.Partial(), NoResets: p.Partial(), SeesTimeWait: p.SeesTimeWait()})
	for i := range events {
		table.Apply(&events[i])
	}
	table.Flush()
	want, ends := slices.Clone(sc.want), slices.Clone(sc.ends)
	if p.SeesRequests() {
		for _, end := range sc.half {
			want, ends = append(want, halfOpen), append(ends, end)
		}
	}
	wrong = differ("transitions", o.paths, want)
	table.All(func(c *lifecycle.Conn) { wrong += fmt.Sprintf("left in the table: %s in %s\n", c.Role, c.State) })
	if p.Partial() {
		return wrong
	}
	byAddress, anyOwner := false, sc.anyOwner || sc.unborn && !p.SeesRequests() || acceptedUnborn(events)
	for i := range o.conns {
		c := &o.conns[i]
		if sc.grows && p.SeesTimeWait() {
			o.ends[i] = strings.Replace(o.ends[i], "TIME_WAIT", "FIN_WAIT2", 1)
		}
		if !anyOwner && o.paths[i] != halfOpen {
			o.ends[i] += " by " + c.Owner.Source.String()
		}
		byAddress = byAddress || c.OwnID
		if c.Owner.PID != uint32(os.Getpid()) && c.Owner.Source != event.OwnerUnknown {
			wrong += fmt.Sprintf("%s: owner %d, want %d\n", c.Role, c.Owner.PID, os.Getpid())
		}
		if c.Gap {
			wrong += fmt.Sprintf("%s: gap\n", c.Role)
		}
	}
	for i := range ends {
		if byAddress { // a child does not inherit its listener's owner there
			ends[i] = strings.Replace(ends[i], " by listener", " by unknown", 1)
		}
		if anyOwner {
			ends[i], _, _ = strings.Cut(ends[i], " by ")
		}
	}
	return wrong + differ("lifecycles", o.ends, ends)
}

// acceptedUnborn reports whether accept() was told before the birth of the
// socket: Fast Open before 6.18, where a child's first transition is held back
// until its address is known.
func acceptedUnborn(events []event.Event) bool {
	born := make(map[event.SocketID]bool)
	for i := range events {
		switch e := &events[i]; e.Kind {
		case event.KindState:
			born[e.Socket] = true
		case event.KindAccept:
			if !born[e.Socket] {
				return true
			}
		}
	}
	return false
}

// halfOpen are the transitions of a half-open connection that came to nothing.
const halfOpen = "LISTEN>SYN_RECV SYN_RECV>CLOSE"
