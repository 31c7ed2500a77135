// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
)

// row is what ss and the table must agree on about a socket.
type row struct {
	state       event.State
	local, peer netip.AddrPort
	mini        bool     // a mini socket: it has no process
	pids        []uint32 // of the processes that have a descriptor of it
}

func (r row) String() string {
	kind := ""
	if r.mini {
		kind = " (mini)"
	}
	return fmt.Sprintf("%s%s %s %s pids %v", r.state, kind, r.local, r.peer, r.pids)
}

var (
	ssCookie = regexp.MustCompile(` sk:([0-9a-f]+)`)
	ssPID    = regexp.MustCompile(`,pid=([0-9]+),fd=`)
)

// runSS asks ss for all TCP sockets of the namespace of this thread, by cookie:
// numeric (-n), with processes (-p), cookies (-e) and timers (-o), a line each.
func runSS() map[event.SocketID]row {
	out := must(exec.Command("ss", "-tanpeoHO").Output())
	rows := make(map[event.SocketID]row)
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			panic("ss: " + line)
		}
		r := row{state: must(event.ParseState(f[0])), local: ssEndpoint(f[3]), peer: ssEndpoint(f[4])}
		r.mini = strings.Contains(line, "timer:(timewait,")
		for _, m := range ssPID.FindAllStringSubmatch(line, -1) {
			pid := uint32(must(strconv.ParseUint(m[1], 10, 32)))
			if !slices.Contains(r.pids, pid) {
				r.pids = append(r.pids, pid)
			}
		}
		cookie := ssCookie.FindStringSubmatch(line)
		if cookie == nil {
			panic("ss: no cookie: " + line)
		}
		rows[event.SocketID(must(strconv.ParseUint(cookie[1], 16, 64)))] = r
	}
	return rows
}

// ssEndpoint reads address:port, * being any port.
func ssEndpoint(s string) netip.AddrPort {
	i := strings.LastIndexByte(s, ':')
	port := s[i+1:]
	if port == "*" {
		port = "0"
	}
	return must(endpoint(strings.Trim(s[:i], "[]"), port))
}

// tableRows are the rows of a table.
type tableRows struct {
	space *space
	probe *probe.Probe
	table *lifecycle.Table
	lossy bool   // losses are meant
	shown bool   // by a snapshot, not by events alone
	skips uint64 // of runs of our programs
}

func newTableRows(s *space, p *probe.Probe) *tableRows {
	r := &tableRows{space: s, probe: p}
	r.table = lifecycle.New(r, lifecycle.Options{})
	return r
}

func (*tableRows) Transition(*lifecycle.Conn, *event.Event) {}
func (*tableRows) Finished(*lifecycle.Conn)                 {}

// differences compares the table with ss, each socket with its row:
//
//   - State, addresses and cookie must be the same, for each socket that only
//     one of the two has, too. ss shows no socket in CLOSE.
//   - The owner must be among the processes that have a descriptor. Where
//     nobody has one, the socket waits for accept() (the owner is said to be
//     the listener's) or its process closed it.
//   - connect() finds a local port after its change of state, so that a socket in
//     SYN_SENT has none for us; unless a snapshot came since (shown).
//   - A mini socket of ours is inferred: FIN_WAIT2 becomes TIME_WAIT when the
//     peer's FIN comes, which no hook of the core tier tells.
func (r *tableRows) differences(ss map[event.SocketID]row) (diffs []string) {
	differs := func(id event.SocketID, format string, args ...any) {
		diffs = append(diffs, fmt.Sprintf("sk:%x: ", uint64(id))+fmt.Sprintf(format, args...))
	}
	open := make(map[event.SocketID]bool)
	r.table.All(func(c *lifecycle.Conn) {
		if c.End != 0 {
			return
		}
		open[c.Socket] = true
		got, ok := ss[c.Socket]
		want := row{state: c.State, local: c.Local.AddrPort(), peer: c.Peer.AddrPort()}
		if !ok {
			differs(c.Socket, "only in the table: %s", want)
			return
		}
		if c.State == event.StateSynSent && c.Local.Port() == 0 && !r.shown {
			want.local = netip.AddrPortFrom(c.Local.Addr(), got.local.Port())
		}
		if c.Role == lifecycle.RoleListener {
			want.peer = got.peer // it has none
		}
		if got.mini || got.state != want.state || got.local != want.local || got.peer != want.peer {
			differs(c.Socket, "in the table %s, for ss %s", want, got)
		}
		waits := c.Owner.Source == event.OwnerListener
		if c.Owner.PID == 0 || len(got.pids) > 0 && (waits || !slices.Contains(got.pids, c.Owner.PID)) || len(got.pids) == 0 && !waits && c.Closer == nil {
			differs(c.Socket, "owner %d by %s, for ss %s", c.Owner.PID, c.Owner.Source, got)
		}
	})
	mini := make(map[event.SocketID]bool)
	r.table.Lingering(func(c *lifecycle.Conn) {
		mini[c.Socket] = true
		got, ok := ss[c.Socket]
		switch {
		case !ok && probeAge(c) > 50*time.Second: // TIME_WAIT lasts for 60
		case !ok:
			differs(c.Socket, "only left behind for us: %s of %s %s", c.State, c.Local, c.Peer)
		case !got.mini || got.local != c.Local.AddrPort() || got.peer != c.Peer.AddrPort() || got.state != c.State && (c.State != event.StateFinWait2 || got.state != event.StateTimeWait):
			differs(c.Socket, "left behind %s of %s %s, for ss %s", c.State, c.Local, c.Peer, got)
		}
	})
	for id, got := range ss {
		if !open[id] && !mini[id] {
			differs(id, "only for ss: %s", got)
		}
	}
	return diffs
}

func probeAge(c *lifecycle.Conn) time.Duration {
	now, _ := probe.Now()
	return time.Duration(now - c.FirstEvent)
}

// settle applies the events of the namespace until none has come for a while.
func (r *tableRows) settle(until func(*event.Event) bool) {
	deadline := time.Now().Add(20 * time.Second)
	for quiet := 0; quiet < 4; {
		if time.Now().After(deadline) {
			panic("the events do not end")
		}
		var e event.Event
		switch err := r.probe.Read(&e); {
		case errors.Is(err, event.ErrIdle):
			boot, wall := probe.Now()
			r.table.Apply(&event.Event{Kind: event.KindClock, Time: boot, Wall: wall})
			if until == nil {
				quiet++
			}
		case err != nil:
			panic(err)
		case e.Kind == event.KindLost && !r.lossy:
			panic(fmt.Sprintf("%d events lost", e.Count))
		case e.Netns == r.space.inode || e.Netns == 0:
			r.table.Apply(&e)
			quiet = 0
			if until != nil && until(&e) {
				until = nil
			}
		}
	}
}

// snapshot has the table see all sockets, again where it wants to: as agent.Loop does.
func (r *tableRows) snapshot() {
	for again := true; again; again = r.table.Doubtful() {
		done := make(chan error, 1)
		go func() { done <- r.probe.Snapshot() }()
		r.settle(func(e *event.Event) bool { return e.Kind == event.KindSnapshotEnd })
		check(<-done)
	}
	r.shown = true
}

// skipped says whether the kernel has skipped runs of our programs since it was
// asked last: then events are missing of which no count tells in the stream.
func (r *tableRows) skipped() bool {
	n := must(r.probe.Stats()).Skipped
	defer func() { r.skips = n }()
	return n > r.skips
}

// agree compares with ss until there is no difference; what is on its way
// between the two looks differs, what stays different is wrong. It returns how
// many sockets are in which state.
func (r *tableRows) agree(t *testing.T, when string) map[string]int {
	t.Helper()
	ss := runSS()
	diffs := r.differences(ss)
	for deadline := time.Now().Add(20 * time.Second); len(diffs) > 0 && time.Now().Before(deadline); {
		r.settle(nil)
		if r.lossy || r.skipped() {
			r.snapshot()
		}
		ss = runSS()
		diffs = r.differences(ss)
	}
	states := make(map[string]int)
	for _, row := range ss {
		name := row.state.String()
		if row.mini {
			name += " (mini)"
		}
		states[name]++
	}
	t.Logf("%s: %v, %d differences", when, states, len(diffs))
	for _, d := range diffs[:min(len(diffs), 20)] {
		t.Errorf("%s: %s", when, d)
	}
	return states
}

func requireSS(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("ss"); err != nil {
		missing(t, "ss is not installed (Debian: iproute2): %v", err)
	}
	if os.Geteuid() != 0 {
		missing(t, "needs root: run the tests with sudo")
	}
}

// TestSS: after churn, at moments when nothing moves, the table has the sockets
// that ss has, each in the same state, with the same cookie, addresses and
// process, those that were there before us included.
func TestSS(t *testing.T) {
	if os.Getenv("STATED_TEST_ACCEPT") != "" {
		holdAccepted()
		return
	}
	requireSS(t)
	s := newSpace(t)
	s.run(func() {
		before, beforeAt := s.listen(s.v4, 64)
		s.connect(beforeAt)
		s.accept(before)
		half, other := s.pair(s.v6)
		check(unix.Shutdown(half, unix.SHUT_WR))
		awaitState(other, event.StateCloseWait)

		p := must(probe.Open(probe.Options{RingBytes: 32 << 20}))
		defer p.Close()
		r := newTableRows(s, p)
		r.snapshot()
		for round := range 3 {
			s.churn(before, beforeAt, 3+round, 2000)
			end := s.population()
			r.shown = false
			r.settle(nil)
			if round == 2 || r.skipped() {
				r.snapshot()
			}
			states := r.agree(t, fmt.Sprintf("round %d", round))
			for _, state := range []string{"LISTEN", "ESTABLISHED", "SYN_SENT", "CLOSE_WAIT", "FIN_WAIT2", "TIME_WAIT (mini)"} {
				if states[state] == 0 {
					t.Errorf("round %d: no socket in %s", round, state)
				}
			}
			end()
		}
	})
}

// TestSSAfterLoss: when nearly all events of 100,000 connections were lost,
// since nobody read them, a snapshot has the table agree with ss again, to the
// last socket and its owner.
func TestSSAfterLoss(t *testing.T) {
	requireSS(t)
	s := newSpace(t)
	s.run(func() {
		before, beforeAt := s.listen(s.v4, 64)
		p := must(probe.Open(probe.Options{RingBytes: 1 << 16})) // 300 events
		defer p.Close()
		r := newTableRows(s, p)
		r.lossy = true
		r.snapshot()
		for round := range 2 {
			end := s.population() // these are told, and what becomes of them is not
			r.settle(nil)
			s.churn(before, beforeAt, 3+round, 47_000)
			end()
			endMore := s.population() // nothing is told of these
			r.settle(nil)
			if lost := must(p.Stats()).Lost; lost < 300_000*uint64(round+1) {
				t.Errorf("round %d: only %d events lost", round, lost)
			}
			r.snapshot()
			r.agree(t, fmt.Sprintf("round %d", round))
			endMore()
		}
		t.Logf("%d events lost, repaired: %+v", r.table.Stats().Lost, r.table.Stats().Repaired)
	})
}

// population leaves sockets in every state that lasts, of two processes. The
// result ends some of them.
func (s *space) population() (end func()) {
	l, at := s.listen(s.v4, 8)
	s.connect(at)
	s.connect(at) // two that nobody accepts
	accepted := s.connect(at)
	s.accept(l)

	c, a := s.pair(s.v6)
	check(unix.Shutdown(c, unix.SHUT_WR)) // FIN_WAIT2 with a process, CLOSE_WAIT
	awaitState(c, event.StateFinWait2)
	awaitState(a, event.StateCloseWait)
	c, a = s.pair(s.v4)
	s.close(c) // FIN_WAIT2 without one
	awaitState(a, event.StateCloseWait)

	_, full := s.listen(s.v4, 0)
	s.connect(full)
	sa, family := sockaddr(full)
	syn := s.socket(family)
	check(unix.SetNonblock(syn, true))
	if err := unix.Connect(syn, sa); err != unix.EINPROGRESS {
		panic(fmt.Sprint("connect: ", err))
	}
	endChild := s.childAccepts()
	return func() {
		s.close(accepted, syn)
		endChild()
	}
}

// childAccepts lets a child accept and hold two connections on a listener that
// it inherits; the result ends it.
func (s *space) childAccepts() (end func()) {
	l, at := s.listen(s.v4, 8)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSS$")
	cmd.Env = append(os.Environ(), "STATED_TEST_ACCEPT=1")
	cmd.Stderr = os.Stderr
	file := os.NewFile(uintptr(must(unix.FcntlInt(uintptr(l), unix.F_DUPFD_CLOEXEC, 0))), "listener")
	cmd.ExtraFiles = []*os.File{file}
	stdin, stdout := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	check(cmd.Start())
	check(file.Close())
	s.connect(at)
	s.connect(at)
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		panic(fmt.Sprint("the child did not accept: ", err))
	}
	return func() {
		check(stdin.Close())
		check(cmd.Wait())
	}
}

// holdAccepted is the child: it accepts twice, says so, and waits.
func holdAccepted() {
	for range 2 {
		if _, _, err := unix.Accept4(3, unix.SOCK_CLOEXEC); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Stdout.WriteString(".")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}
