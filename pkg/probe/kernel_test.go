// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

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
	{"no_trampolines", Options{NoTrampolines: true}},
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

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	if d := differ(what, got, want); d != "" {
		t.Error(d)
	}
}

// differ says how two lists differ but for their order, or nothing.
func differ(what string, got, want []string) string {
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if slices.Equal(got, want) {
		return ""
	}
	return fmt.Sprintf("%s:\n  got  %s\n  want %s\n", what, strings.Join(got, "\n       "), strings.Join(want, "\n       "))
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
	if e.Flags.Has(event.FlagMini) && e.Old != event.StateListen && e.Old != event.StateSynRecv {
		return // what goes on after the socket's own CLOSE
	}
	if e.Kind == event.KindState {
		o.open[c] = append(o.open[c], e.Old.String()+">"+e.New.String())
	}
}

func (o *collector) Finished(c *lifecycle.Conn) {
	o.paths = append(o.paths, strings.Join(o.open[c], " "))
	delete(o.open, c)
	end := fmt.Sprintf("%s %s %s", c.Role, c.Outcome, c.Initiator)
	switch {
	case c.Lingers == event.StateTimeWait && c.LingerStart > c.End:
		end += " FIN_WAIT2" // and TIME_WAIT by now, where that is seen
	case c.Lingers != event.StateNone:
		end += " " + c.Lingers.String()
	}
	o.ends = append(o.ends, end)
	o.conns = append(o.conns, *c)
}

// collect applies the events of a namespace until n connections have finished
// and nothing more comes.
func collect(t *testing.T, p *Probe, netns uint32, n int) observed {
	t.Helper()
	return collectIf(t, p, n, func(e *event.Event) bool { return of(netns, e) })
}

// of reports whether an event is of a namespace; 0: of our ports.
func of(netns uint32, e *event.Event) bool {
	if netns != 0 {
		return e.Netns == netns
	}
	return onOurPorts(e.Local, e.Peer)
}

func onOurPorts(local, peer netip.AddrPort) bool {
	low, high := ourPorts()
	return local.Port() >= low && local.Port() < high || peer.Port() >= low && peer.Port() < high
}

func collectIf(t *testing.T, p *Probe, n int, wanted func(*event.Event) bool) observed {
	t.Helper()
	seen, missing := collectMost(t, p, n, wanted)
	if missing != "" {
		t.Fatal(missing)
	}
	return seen
}

// collectMost also says what has not come within 20 s.
func collectMost(t *testing.T, p *Probe, n int, wanted func(*event.Event) bool) (_ observed, missing string) {
	t.Helper()
	o := &collector{open: make(map[*lifecycle.Conn][]string)}
	table := lifecycle.New(o, lifecycle.Options{NoDestroy: p.Partial(), NoResets: p.Partial(), SeesTimeWait: p.SeesTimeWait()})
	for quiet, deadline := 0, time.Now().Add(20*time.Second); quiet < 3; {
		if time.Now().After(deadline) {
			if n := skipped(t, p); n > 0 {
				t.Logf("the kernel skipped %d runs of our programs", n)
				break // the test will miss what they would have told
			}
			return o.observed, fmt.Sprintf("%d connections finished, want %d; open: %v\n", len(o.ends), n, o.open)
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
	return o.observed, ""
}

func hookWorks(p *Probe, program string) bool {
	return slices.ContainsFunc(p.Hooks(), func(h HookStatus) bool { return h.Program == program && h.Err == nil })
}

// follow applies the events of a namespace until done says so.
func follow(t *testing.T, p *Probe, table *lifecycle.Table, netns uint32, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); {
		var e event.Event
		err := p.Read(&e)
		switch {
		case errors.Is(err, event.ErrIdle):
			boot, wall := Now()
			e = event.Event{Kind: event.KindClock, Time: boot, Wall: wall}
		case err != nil:
			t.Fatal(err)
		case netns != 0 && !inOurs(p, &e, netns):
			continue
		}
		table.Apply(&e)
		if time.Now().After(deadline) {
			table.All(func(c *lifecycle.Conn) { t.Logf("%s %s %s %s", c.State, c.Local, c.Peer, c.Role) })
			t.Fatalf("what was waited for did not come: %+v", table.Stats())
		}
	}
}

// looked takes a snapshot into the table.
func looked(t *testing.T, p *Probe, table *lifecycle.Table, netns uint32) {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- p.Snapshot() }()
	var e event.Event
	for e.Kind != event.KindSnapshotEnd {
		err := p.Read(&e)
		if errors.Is(err, event.ErrIdle) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if inOurs(p, &e, netns) {
			table.Apply(&e)
		}
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// inOurs reports whether an event is of a namespace of this test, or of none.
func inOurs(p *Probe, e *event.Event, netns uint32) bool {
	low, high := ourPorts()
	ours := func(port uint16) bool { return port >= low && port < high }
	switch {
	case e.Kind == event.KindLost, e.Kind == event.KindSnapshotEnd, e.Netns == netns:
		return true
	case !p.Partial() || e.Netns != 0:
		return false
	}
	return e.Kind == event.KindSnapshotBegin || e.Kind == event.KindSnapshotDone || ours(e.Local.Port()) || ours(e.Peer.Port())
}
