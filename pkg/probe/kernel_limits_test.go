// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

// TestTimeWaitFull: above net.ipv4.tcp_max_tw_buckets a connection has no TIME_WAIT.
// What sees each one says so; what infers them claims none that is not there, and
// says where it does not know.
func TestTimeWaitFull(t *testing.T) {
	for name, opts := range map[string]Options{"seen": {}, "inferred": {NoTrampolines: true}} {
		t.Run(name, func(t *testing.T) { timeWaitFull(t, openTier(t, opts)) })
	}
}

func timeWaitFull(t *testing.T, p *Probe) {
	const rounds, room = 30, 8
	o := &ender{}
	table := tableFor(p, o)
	there := 0
	netns := inSpace(t, func(s *space) {
		check(os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", fmt.Append(nil, room), 0))
		for range rounds {
			c, a := s.pair(0)
			s.close(c)
			readEOF(a)
			s.close(a)
		}
		there = timeWaits()
	})
	follow(t, p, table, netns, func() bool { return len(o.finished) == 2*rounds+rounds }) // listeners, too
	told, unsure := 0, 0
	for i := range o.finished {
		c := &o.finished[i]
		if c.Lingers != event.StateNone {
			told++
		}
		if c.Crowded {
			unsure++
		}
	}
	t.Logf("%d in TIME_WAIT, %d told, %d unsure", there, told, unsure)
	if there != room {
		t.Fatalf("%d in TIME_WAIT, the limit is %d", there, room)
	}
	if p.SeesTimeWait() && (told != there || unsure > 0) || told > there || told < there-1 {
		t.Errorf("%d were told to be in TIME_WAIT, of %d nobody knew; %d were", told, unsure, there)
	}
	if s := table.Stats(); int(s.Crowded) != rounds-told || !p.SeesTimeWait() && unsure != rounds-told {
		t.Errorf("%d ended without TIME_WAIT or maybe without, %d unsure, want %d", s.Crowded, unsure, rounds-told)
	}
}

// timeWaits is how many mini sockets the namespace of this thread has.
func timeWaits() (n int) {
	for line := range strings.Lines(string(must(os.ReadFile("/proc/thread-self/net/sockstat")))) {
		var inuse, orphans int
		if _, err := fmt.Sscanf(line, "TCP: inuse %d orphan %d tw %d", &inuse, &orphans, &n); err == nil {
			return n
		}
	}
	panic("no line of TCP in sockstat")
}
