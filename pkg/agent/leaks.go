// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"time"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Leaks looks for leaks. As a Consumer it does so every Every, with the ages
// that the events tell; Report alone does so once.
type Leaks struct {
	Inspector Inspector
	Rules     leak.Rules
	By        leak.Key
	Filter    *filter.Filter
	Now       func() (boot, wall int64)
	Table     *lifecycle.Table // nil: without history
	Every     time.Duration    // between reports while events are consumed
	Stacks    *Stacks          // nil: where in the code is not asked for
	// Show gets each report. An error ends the watching.
	Show func(r leak.Report, groups []leak.Group, growth map[string]float64, err error) error

	flows map[uint32]leak.Flow // by the pid of the owner
	first map[string]int       // sockets of each group in the first report
	began int64
	next  int64
}

// Report looks once. The error tells what could not be looked at.
func (l *Leaks) Report() (leak.Report, []leak.Group, error) {
	now, _ := l.Now()
	var history census.History
	if l.Table != nil {
		history = l.Table.Get
	}
	c, err := Look(l.Inspector, l.Rules.States, now, history)
	c.Drop(func(s *census.Socket) bool { return s.New != event.StateListen && !l.Filter.Socket(s) })
	r := leak.Find(c, l.Rules)
	if l.Stacks != nil {
		err = errors.Join(err, l.Stacks.Name(r.Findings))
	}
	return r, r.Group(l.By), err
}

// Event implements Consumer.
func (l *Leaks) Event(*event.Event) {}

// maxFlows bounds the processes whose flow is counted.
const maxFlows = 4096

// Transition implements lifecycle.Observer: it counts what comes into CLOSE_WAIT
// and leaves it.
func (l *Leaks) Transition(c *lifecycle.Conn, e *event.Event) {
	in, out := e.New == event.StateCloseWait, e.Old == event.StateCloseWait
	if e.Kind != event.KindState || in == out || c.Owner.PID == 0 {
		return
	}
	flow, known := l.flows[c.Owner.PID]
	if !known && len(l.flows) >= maxFlows {
		return
	}
	if l.flows == nil {
		l.flows = make(map[uint32]leak.Flow)
	}
	if in {
		flow.In++
	} else {
		flow.Out++
	}
	l.flows[c.Owner.PID] = flow
}

// Flow returns how many connections of the process came into CLOSE_WAIT and left
// it since events are consumed.
func (l *Leaks) Flow(pid uint32) leak.Flow { return l.flows[pid] }

// Finished implements lifecycle.Observer.
func (l *Leaks) Finished(*lifecycle.Conn) {}

// Idle reports when it is time.
func (l *Leaks) Idle() error {
	now, _ := l.Now()
	if now < l.next {
		return nil
	}
	l.next = now + int64(l.Every)
	return l.Tell()
}

// Tell reports now, with the growth since the first report.
func (l *Leaks) Tell() error {
	r, groups, err := l.Report()
	return l.Show(r, groups, l.growth(r.Now, groups), err)
}

// Begin takes the first report as the one that growth is counted from.
func (l *Leaks) Begin() {
	r, groups, _ := l.Report()
	l.growth(r.Now, groups)
}

func (l *Leaks) growth(now int64, groups []leak.Group) map[string]float64 {
	if l.first == nil {
		l.first, l.began = make(map[string]int, len(groups)), now
		for i := range groups {
			l.first[groups[i].Key] = len(groups[i].Findings)
		}
		return nil
	}
	seconds := float64(now-l.began) / 1e9
	if seconds < 1 {
		return nil
	}
	growth := make(map[string]float64, len(groups))
	for i := range groups {
		growth[groups[i].Key] = float64(len(groups[i].Findings)-l.first[groups[i].Key]) / seconds
	}
	return growth
}
