// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

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

// TestGrowth: it is that of the last hour, whatever was before, and of a group
// that is new since it came.
func TestGrowth(t *testing.T) {
	const second, minute = int64(1e9), int64(60e9)
	var l Leaks
	report := func(at int64, sockets map[string]int) map[string]float64 {
		var groups []leak.Group
		for key, n := range sockets {
			groups = append(groups, leak.Group{Key: key, Findings: make([]leak.Finding, n)})
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
