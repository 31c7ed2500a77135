// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
)

// transition is a change of state as a witness tells it.
type transition struct {
	local, peer netip.AddrPort
	from, to    event.State
}

func (x transition) String() string {
	return fmt.Sprintf("%s %s %s>%s", x.local, x.peer, x.from, x.to)
}

func transitionOf(e *event.Event) transition {
	return transition{e.Local, e.Peer, e.Old, e.New}
}

// lives cuts the transitions of each socket into connections: a socket, and
// far more so its address, is used again. The key is what the witness has for
// a socket.
type lives[K comparable] struct {
	open map[K]*[]string
	all  []*[]string
}

func (l *lives[K]) add(socket K, x transition) {
	if l.open == nil {
		l.open = make(map[K]*[]string)
	}
	birth := x.from == event.StateClose && x.to != event.StateClose || x.from == event.StateListen && x.to != event.StateClose
	life := l.open[socket]
	if life == nil || birth {
		life = new([]string)
		l.open[socket] = life
		l.all = append(l.all, life)
	}
	*life = append(*life, x.String())
}

// texts are the connections, each with its transitions in their order.
func (l *lives[K]) texts() []string {
	var texts []string
	for _, life := range l.all {
		texts = append(texts, strings.Join(*life, "\n\t"))
	}
	return texts
}

// difference lists what only one of two lists has.
func difference(a, b []string) (onlyA, onlyB []string) {
	count := make(map[string]int)
	for _, s := range a {
		count[s]++
	}
	for _, s := range b {
		count[s]--
	}
	for s, n := range count {
		for ; n > 0; n-- {
			onlyA = append(onlyA, s)
		}
		for ; n < 0; n++ {
			onlyB = append(onlyB, s)
		}
	}
	return onlyA, onlyB
}

// tcpstates is the tool of libbpf-tools at work.
type tcpstates struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer

	mu   sync.Mutex
	seen []witnessed
}

type witnessed struct {
	socket string // the kernel's address of it
	pid    uint32 // who was on the CPU
	transition
}

// startTcpstates runs the tool with a line of output at a time (it would keep
// what it writes to a pipe until there is much of it), in wide format: only
// that has room for IPv6.
func startTcpstates(t *testing.T) *tcpstates {
	t.Helper()
	path, err := exec.LookPath("tcpstates")
	if err != nil {
		missing(t, "tcpstates is not installed (Debian: libbpf-tools): %v", err)
	}
	w := &tcpstates{cmd: exec.Command("stdbuf", "-oL", path, "-w")}
	w.cmd.Stderr = &w.stderr
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if x, ok := parseTcpstates(lines.Text()); ok {
				w.mu.Lock()
				w.seen = append(w.seen, x)
				w.mu.Unlock()
			}
		}
	}()
	return w
}

// stop ends the tool and returns what it complained of.
func (w *tcpstates) stop() string {
	w.cmd.Process.Signal(os.Interrupt)
	w.cmd.Wait() // its exit code says nothing
	return w.stderr.String()
}

// parseTcpstates reads a line of `tcpstates -w`:
//
//	SKADDR PID COMM IP LADDR LPORT RADDR RPORT OLDSTATE -> NEWSTATE MS
//
// COMM may have spaces, so what stands behind it is counted from the end.
func parseTcpstates(line string) (w witnessed, ok bool) {
	f := strings.Fields(line)
	if len(f) < 12 || f[len(f)-3] != "->" {
		return w, false
	}
	pid, err := strconv.ParseUint(f[1], 10, 32)
	if err != nil {
		return w, false
	}
	w.socket, w.pid = f[0], uint32(pid)
	f = f[len(f)-8:]
	var errs [4]error
	w.local, errs[0] = endpoint(f[0], f[1])
	w.peer, errs[1] = endpoint(f[2], f[3])
	w.from, errs[2] = event.ParseState(f[4])
	w.to, errs[3] = event.ParseState(f[6])
	for _, err := range errs {
		if err != nil {
			return w, false
		}
	}
	return w, true
}

// endpoint reads an address and a port. IPv4 through an IPv6 socket is IPv4.
func endpoint(addr, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var p uint16
	if _, err := fmt.Sscan(port, &p); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(a.Unmap(), p), nil
}

// of returns what the tool saw of the namespace.
func (w *tcpstates) of(s *space) (seen []witnessed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.seen {
		if s.ours(x.local.Addr(), x.peer.Addr()) {
			seen = append(seen, x)
		}
	}
	return seen
}

func (w *tcpstates) await(s *space, what func(witnessed) bool) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, x := range w.of(s) {
			if what(x) {
				return true
			}
		}
	}
	return false
}

// Ports that mark the beginning and the end of what is compared: connecting to
// them is refused.
const (
	portBegin = 1
	portEnd   = 2
)

func marks(port uint16) func(witnessed) bool {
	return func(x witnessed) bool { return x.peer.Port() == port && x.to == event.StateClose }
}

// TestTcpstates: the same transitions as tcpstates sees of the same traffic,
// with the same addresses and ports, every one, in the same order for each
// socket. What the two tell differently by design, read in its source
// (libbpf-tools/tcpstates.bpf.c, tcpstates.c of iovisor/bcc):
//
//   - It knows a socket by its address in the kernel, which we never show; so
//     connections are compared as wholes, not by name.
//   - It does not tell the namespace: the traffic has addresses of its own.
//   - It has one buffer for each CPU and reads them in turn: the traffic stays
//     on one CPU, else not even its order for one socket could be relied on.
//   - Its text has room for 25 characters of an IPv6 address, and shows what
//     was in memory before where that is too little: the addresses are short.
//   - Of a socket that had a connection before, it shows the port of that at
//     CLOSE -> SYN_SENT, where the next one has none yet.
//   - It leaves out MPTCP (protocol 262): there is none in this traffic.
//
// Where it says itself that it lost events, the round says nothing and is
// repeated.
func TestTcpstates(t *testing.T) {
	for name, o := range map[string]probe.Options{"typed": {}, "without storage": {NoStorage: true}} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			for range 5 {
				if compareTcpstates(t, o) {
					return
				}
			}
			t.Fatal("tcpstates lost events each time")
		})
	}
}

// compareTcpstates reports whether tcpstates could be compared with.
func compareTcpstates(t *testing.T, o probe.Options) bool {
	p := openProbe(t, o)
	w := startTcpstates(t)
	s := newSpace(t)
	var said string
	s.run(func() {
		defer func() { said = w.stop() }()
		for begun := time.Now(); ; { // it may take a while to attach
			s.refused(portBegin)
			if len(w.of(s)) > 0 {
				break
			}
			if time.Since(begun) > 10*time.Second {
				panic("tcpstates does not begin")
			}
			time.Sleep(10 * time.Millisecond)
		}
		s.traffic()
		s.refused(portEnd)
		w.await(s, marks(portEnd)) // if it never comes, it will be a difference
	})
	var ours lives[event.SocketID]
	cpus := make(map[uint16]int)
	n, ended := 0, false
	s.readUntil(p, func(e *event.Event) {
		if e.Kind != event.KindState {
			return
		}
		x := transitionOf(e)
		if x.peer.Port() != portBegin {
			ours.add(e.Socket, x)
			cpus[e.CPU]++
			n++
		}
		ended = ended || marks(portEnd)(witnessed{transition: x})
	}, func() bool { return ended })
	if strings.Contains(said, "lost") {
		t.Logf("tcpstates: %s", said)
		return false
	}
	var theirs lives[string]
	before := make(map[string]uint16)
	for _, x := range w.of(s) {
		if x.peer.Port() == portBegin {
			continue
		}
		port := x.local.Port()
		if x.from == event.StateClose && x.to == event.StateSynSent && port == before[x.socket] {
			x.local = netip.AddrPortFrom(x.local.Addr(), 0)
		}
		before[x.socket] = port
		theirs.add(x.socket, x.transition)
	}
	missing, extra := difference(theirs.texts(), ours.texts())
	for _, life := range missing {
		t.Errorf("only tcpstates saw\n\t%s", life)
	}
	for _, life := range extra {
		t.Errorf("only stated saw\n\t%s", life)
	}
	t.Logf("%d connections, %d transitions, per CPU %v", len(ours.all), n, cpus)
	if n < 300 {
		t.Errorf("%d transitions: that is not all of the traffic", n)
	}
	return true
}
