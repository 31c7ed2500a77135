// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"

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
}

type told struct {
	sockets  int
	verdicts [leak.NumVerdicts]int
	at       int64
}

// tellAgain is after how long an unchanged finding is told again, nanoseconds.
const tellAgain = 3600e9

// LookForLeaks has the stream look for leaks with l, whose Show it sets. Call
// it before the loop runs. The look is the loop's: 100,000 sockets take it a
// few tenths of a second, which the kernel's buffer has to bridge.
func (d *Daemon) LookForLeaks(l *Leaks, processes func(event.Task) render.Process) {
	f := &findings{leaks: l, out: d.Stream.out, log: d.Log, processes: processes}
	l.Show = f.show
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
	f.out.Leaks(&render.Leaks{Report: r, Groups: news, Processes: f.processes, Growth: growth, Flow: f.leaks.Flow, MinAge: f.leaks.Rules.MinAge, Examples: 5})
	return nil
}
