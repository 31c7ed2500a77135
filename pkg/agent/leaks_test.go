// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/leak"
)

// slow is an Inspector that looks until it may not.
type slow chan struct{}

func (s slow) Sockets(event.StateSet, func(*event.Sighting)) error { <-s; return nil }
func (s slow) Holders(event.StateSet, func(*event.Sighting)) error { return nil }

// TestLookDoesNotHoldUp: a look that does not end holds up nobody, is told of
// once, and its report comes when it ends after all.
func TestLookDoesNotHoldUp(t *testing.T) {
	release := make(slow)
	now, shown, late := int64(1), 0, 0
	l := Leaks{Inspector: release, Filter: &filter.Filter{}, Every: 1, Now: func() (int64, int64) { return now, now },
		Late: func() { late++ },
		Show: func(leak.Report, []leak.Group, map[string]float64, error) error { shown++; return nil }}
	for ; now < 3*lateAfter; now += lateAfter / 10 {
		if err := l.Idle(); err != nil || shown > 0 {
			t.Fatal(err, shown)
		}
	}
	if late != 1 {
		t.Errorf("told %d times that it is late", late)
	}
	close(release)
	for shown == 0 {
		if err := l.Idle(); err != nil {
			t.Fatal(err)
		}
	}
}

// sightings is an Inspector that shows the same sockets to all.
type sightings []event.Sighting

func (s sightings) Sockets(_ event.StateSet, each func(*event.Sighting)) error {
	for i := range s {
		each(&s[i])
	}
	return nil
}
func (sightings) Holders(event.StateSet, func(*event.Sighting)) error { return nil }

// TestAgeByLooks: a socket whose last segment says nothing, as it goes on sending,
// is known to be as old as the looks that found it so, and no older.
func TestAgeByLooks(t *testing.T) {
	const second = int64(1e9)
	addr := netip.MustParseAddrPort
	for name, tt := range map[string]struct {
		change func(*event.Sighting)
		age    int64
	}{
		"goes on sending":     {func(s *event.Sighting) { s.BytesSent += 500 }, 3 * second},
		"connected anew":      {func(s *event.Sighting) { s.BytesSent = 10 }, 0},
		"to another":          {func(s *event.Sighting) { s.Peer = addr("10.0.0.3:443") }, 0},
		"in another state":    {func(s *event.Sighting) { s.New = event.StateClose }, 0},
		"another socket":      {func(s *event.Sighting) { s.Inode++ }, 0},
		"has a cookie by now": {func(s *event.Sighting) { s.Socket = 9 }, 3 * second},
	} {
		at := 100 * second
		s := event.Sighting{Event: event.Event{Kind: event.KindSnapshot, New: event.StateCloseWait, Time: at, Local: addr("10.0.0.1:40000"),
			Peer: addr("10.0.0.2:443"), BytesSent: 1000}, Inode: 5, References: 1, Opened: true, LastSegment: at}
		look := sightings{s}
		l := Leaks{Inspector: look, Filter: &filter.Filter{}, By: leak.ByNone, Rules: leak.Rules{States: leak.DefaultStates},
			Now: func() (int64, int64) { return at, at }}
		if _, _, err := l.Report(); err != nil {
			t.Fatal(err)
		}
		at += 3 * second
		look[0].Time, look[0].LastSegment = at, at
		tt.change(&look[0])
		r, _, err := l.Report()
		if err != nil || len(r.Findings) != 1 || r.Findings[0].Age.Min != tt.age {
			t.Errorf("%s: %+v %v", name, r.Findings, err)
		}
	}
}

// TestAgeByLooksMPTCP: an MPTCP connection and its subflow, which has the same inode
// and goes on, are not taken for each other.
func TestAgeByLooksMPTCP(t *testing.T) {
	const second = int64(1e9)
	local, peer := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:443")
	at := 100 * second
	whole := event.Sighting{Event: event.Event{Kind: event.KindHolder, New: event.StateCloseWait, Time: at, Local: local, Peer: peer,
		Protocol: event.ProtoMPTCP, Task: event.Task{PID: 7}}, Inode: 5, References: 1, Opened: true}
	subflow := event.Sighting{Event: event.Event{Kind: event.KindSnapshot, New: event.StateEstablished, Time: at, Local: local, Peer: peer,
		Protocol: event.ProtoTCP, Socket: 9, Flags: event.FlagMPTCP}, Inode: 5, References: 1, Opened: true, LastSegment: at}
	look := sightings{subflow, whole}
	l := Leaks{Inspector: look, Filter: &filter.Filter{}, By: leak.ByNone, Rules: leak.Rules{States: leak.DefaultStates},
		Now: func() (int64, int64) { return at, at }}
	for range 3 {
		r, _, err := l.Report()
		if err != nil || len(r.Findings) != 1 || !r.Findings[0].Multipath() || r.Findings[0].Age.Min != at-100*second {
			t.Errorf("after %d: %+v %v", at, r.Findings, err)
		}
		at += 3 * second
		look[0].Time, look[1].Time, look[0].LastSegment = at, at, at
	}
}

func groupOf(key string, n int) leak.Group {
	g := leak.Group{Key: key}
	for range n {
		g.Findings = append(g.Findings, leak.Finding{Socket: new(census.Socket)})
	}
	return g
}

// TestNoGrowthByLooks: what was there before, and is known to be stuck by now only,
// did not grow.
func TestNoGrowthByLooks(t *testing.T) {
	const second = int64(1e9)
	at := 100 * second
	look := make(sightings, 2)
	l := Leaks{Inspector: look, Filter: &filter.Filter{}, By: func(*leak.Finding) string { return "" }, Now: func() (int64, int64) { return at, at },
		Rules: leak.Rules{MinAge: second, States: leak.DefaultStates}}
	var growth float64
	l.Show = func(r leak.Report, _ []leak.Group, g map[string]float64, _ error) error { growth = g[""]; return nil }
	show := func(n int) {
		for i := range look { // the second is not there at first
			look[i] = event.Sighting{Event: event.Event{Kind: event.KindSnapshot, New: event.StateListen}}
			if i < n {
				look[i] = event.Sighting{Event: event.Event{Kind: event.KindSnapshot, New: event.StateCloseWait, Time: at + 1, Socket: event.SocketID(i) + 1}, Inode: 5 + uint64(i), LastSegment: at}
			}
		}
	}
	show(1)
	l.Begin()
	for _, tt := range []struct {
		sockets int
		growth  float64
	}{{1, 0}, {2, 0}, {2, 1. / 6}} { // the second is stuck two seconds after it came
		at += 2 * second
		show(tt.sockets)
		if err := l.Tell(); err != nil || growth != tt.growth {
			t.Errorf("growth %v after %v, want %v: %v", growth, at, tt.growth, err)
		}
	}
}

// TestGrowth: it is that of the last hour, whatever was before, and of a group
// that is new since it came.
func TestGrowth(t *testing.T) {
	const second, minute = int64(1e9), int64(60e9)
	var l Leaks
	report := func(at int64, sockets map[string]int) map[string]float64 {
		var groups []leak.Group
		for key, n := range sockets {
			groups = append(groups, groupOf(key, n))
		}
		return l.growth(at, groups)
	}
	if g := report(second, map[string]int{"old": 100}); g != nil {
		t.Error("growth in the first report:", g)
	}
	for at := minute; at <= 600*minute; at += minute { // ten hours of nothing
		if g := report(at, map[string]int{"old": 100}); g["old"] != 0 {
			t.Fatal("growth of what does not grow:", g)
		}
	}
	var g map[string]float64
	for i := 1; i <= 10; i++ { // ten minutes of a leak, and of more of the old one
		g = report((600+int64(i))*minute, map[string]int{"old": 100 + 6*i, "new": 6 * i})
	}
	if got := g["new"]; got < 0.099 || got > 0.101 {
		t.Errorf("six a minute are %v a second", got)
	}
	if got := g["old"]; got < 60/3700. || got > 60/3500. {
		t.Errorf("60 in an hour are %v a second", got)
	}
	if len(l.past) > growthSteps+1 {
		t.Errorf("%d reports are kept", len(l.past))
	}
	if g = report(611*minute, nil); len(g) != 0 {
		t.Error("growth of what is gone:", g)
	}
}
