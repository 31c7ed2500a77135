// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"sync/atomic"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/render"
)

// findings makes records of leaks: of a group of sockets when it is new or has
// changed, and again every so often while it stays.
type findings struct {
	leaks     *Leaks
	out       *render.Writer
	log       *slog.Logger
	processes func(event.Task) render.Process
	told      map[string]told // by the group's key; those that are gone are forgotten
	failed    bool            // the last look was not complete
	meter     *atomic.Pointer[Meter]
}

type told struct {
	sockets  int
	verdicts [leak.NumVerdicts]int
	at       int64
}

// tellAgain is after how long an unchanged finding is told again, nanoseconds.
const tellAgain = 3600e9

// LookForLeaks has the stream look for leaks with l, whose Show and Late it sets.
// Call it before the loop runs.
func (d *Daemon) LookForLeaks(l *Leaks, processes func(event.Task) render.Process) {
	f := &findings{leaks: l, out: d.Stream.out, log: d.Log, processes: processes, meter: &d.meter}
	l.Show = f.show
	l.Late = func() {
		d.Log.Warn("a look for leaks does not end, and until it does there is no other: some process may hold the lock of a socket")
	}
	d.Stream.findings = f
}

func (f *findings) show(r leak.Report, groups []leak.Group, growth map[string]float64, err error) error {
	if err != nil && !f.failed {
		f.log.Warn("not all sockets could be looked at for leaks", "error", err)
	}
	f.failed = err != nil
	next := make(map[string]told, len(groups))
	var news []leak.Group
	for i := range groups {
		g := &groups[i]
		now := told{len(g.Findings), g.Verdicts, r.Now}
		before, known := f.told[g.Key]
		if known && before.sockets == now.sockets && before.verdicts == now.verdicts && r.Now-before.at < tellAgain {
			now.at = before.at
		} else {
			news = append(news, *g)
		}
		next[g.Key] = now
	}
	f.told = next
	all := render.Leaks{Report: r, Groups: groups, Processes: f.processes, Growth: growth, Flow: f.leaks.Flow, MinAge: f.leaks.Rules.MinAge, Examples: 5}
	if m := f.meter.Load(); m != nil {
		(*m).Leaks(&all)
	}
	all.Groups = news
	f.out.Leaks(&all)
	return nil
}
