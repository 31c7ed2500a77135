// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestChangesAtOnce: threads that share CPUs change states of sockets, so that now
// and then one comes while the same CPU is telling another. Each change is told, and
// once, but for those that the probe counts as skipped.
func TestChangesAtOnce(t *testing.T) {
	p := openTier(t, Options{RingBytes: 32 << 20})
	if !p.works(bpfProgStStateAgain) {
		t.Skip("this kernel has no cookies in tracing programs")
	}
	end := &ender{}
	table := tableFor(p, end)
	var halves atomic.Int64
	same := 0
	inSpace(t, func(s *space) {
		s.t = t
		check(os.WriteFile("/proc/sys/net/ipv4/tcp_fin_timeout", []byte("120"), 0)) // no mini socket
		var stops []func() int
		for range 6 {
			l, at := s.listen(local4(), 64, 0)
			stop := s.churn(func(i int) {
				c, a := s.transient(at, l)
				if i%2 == 0 { // close() is told as a change from a state to the same then
					check(unix.Shutdown(a, unix.SHUT_WR))
					halves.Add(1)
					unix.Close(a)
					unix.Close(c)
					return
				}
				unix.Close(c)
				unix.Close(a)
			})
			defer stop()
			stops = append(stops, stop)
		}
		for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
			if stats, err := p.Stats(); err != nil || stats.Attempts > 60_000 {
				break // the ring has room for twice as many
			}
		}
		made := 0
		for _, stop := range stops {
			made += stop()
		}
		for quiet := 0; quiet < 3; {
			var e event.Event
			switch err := p.Read(&e); {
			case errors.Is(err, event.ErrIdle): // what waits for late evidence ends
				quiet++
				boot, wall := Now()
				table.Apply(&event.Event{Kind: event.KindClock, Time: boot, Wall: wall})
			case err != nil:
				t.Fatal(err)
			case e.Netns == s.inode:
				table.Apply(&e)
				if e.Kind == event.KindState && e.Old == e.New {
					same++
				}
			}
		}
		stats, err := p.Stats()
		check(err)
		if stats.Lost > 0 {
			t.Fatalf("%d events lost", stats.Lost)
		}
		whole := 0
		for i := range end.finished {
			if c := &end.finished[i]; !c.Gap && c.FromStart && c.Role != lifecycle.RoleListener {
				whole++
			}
		}
		missing := 0
		once := make(map[string]bool)
		for _, prog := range stats.Programs {
			if once[prog.Name] {
				t.Errorf("%s is told of twice", prog.Name)
			}
			once[prog.Name] = true
			if prog.Name == bpfProgStSetState {
				missing = int(prog.Skipped)
			}
		}
		t.Logf("%d connections, %d ends whole; %d changes made good, %d missing", made, whole, stats.MadeGood, missing)
		if whole > 2*made || whole < 2*made-missing {
			t.Errorf("%d ends, expected %d or up to %d less", whole, 2*made, missing)
		}
		if shut := int(halves.Load()); same > shut || same < shut-missing {
			t.Errorf("%d times close() was told behind shutdown(), expected %d or up to %d less", same, shut, missing)
		}
		if skips := missing + int(stats.MadeGood); skips > 100 && missing > skips/4 {
			t.Errorf("of %d skipped, %d are missing", skips, missing)
		}
	})
}

// TestDestroyedOnce: that a socket is gone which ended before is told, and once, also
// where the kernel skips the program that does.
func TestDestroyedOnce(t *testing.T) {
	for _, tier := range tiers {
		if tier.opts.Classic {
			continue // it does not know that sockets are gone
		}
		t.Run(tier.name, func(t *testing.T) {
			p := openTier(t, tier.opts)
			if !p.works(bpfProgStDeadAgain) {
				t.Skip("this kernel skips none, or has no BTF")
			}
			for _, skip := range []bool{false, true} {
				if skip {
					at := slices.IndexFunc(p.progs, func(prog program) bool { return prog.name == bpfProgStDestroySock })
					check(p.links[at-1].Close()) // that of the core, the first program, comes last
				}
				ends := make(map[event.SocketID]int)
				netns := inSpace(t, func(s *space) {
					c, a := s.pair(0)
					linger0(c)
					s.close(c)
					wait(a, event.StateClose)
					s.close(a)
				})
				collectIf(t, p, 3, func(e *event.Event) bool {
					if e.Netns == netns && e.Kind == event.KindDestroy {
						ends[e.Socket]++
					}
					return e.Netns == netns
				})
				times := slices.Collect(maps.Values(ends)) // close() of a listener, or with SO_LINGER 0, too
				if !slices.Equal(times, []int{1, 1, 1}) {
					t.Errorf("told as often: %v; the first skipped: %v", times, skip)
				}
			}
		})
	}
}
