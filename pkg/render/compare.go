// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"strconv"

	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Comparison is what became of the leaks of one recording in another.
type Comparison struct {
	Changes      []leak.Change
	Clean        int   // services that leaked in neither
	Before       int64 // length of the recording, nanoseconds
	After        int64
	MinAge       int64 // nanoseconds
	BeforeFailed bool  // the recording lost events: there may have been more
	AfterFailed  bool
}

var progressWords = [leak.NumProgresses]string{
	leak.TooLittle: "too little seen to tell", leak.Fixed: "fixed", leak.Better: "better", leak.Same: "same", leak.Worse: "worse",
}

// Comparison shows what changed: as text, or a record of event name
// tcp.leak_comparison for each program and service that leaked.
func (r *Writer) Comparison(c *Comparison) {
	for i := range c.Changes {
		if r.opts.Format.records() {
			r.jsonChange(c, &c.Changes[i])
		} else {
			r.textChange(c, &c.Changes[i])
		}
		r.full()
	}
	if r.opts.Format.records() {
		return
	}
	r.textThresholds(c)
	r.full()
}

func (r *Writer) textChange(c *Comparison, change *leak.Change) {
	style := styleBold
	if change.Progress == leak.Worse {
		style = styleRed
	}
	r.wrapped(0, style, appendChange(r.line[:0], change))
	r.wrapped(2, "", c.appendCount(append(r.line[:0], "before: "...), &change.Before, c.Before))
	r.wrapped(2, "", c.appendCount(append(r.line[:0], "after:  "...), &change.After, c.After))
	r.buf = append(r.buf, '\n')
}

// appendChange says the verdict and of what.
func appendChange(b []byte, change *leak.Change) []byte {
	b = append(append(b, progressWords[change.Progress]...), ": "...)
	if name := change.Program.Bytes(); len(name) > 0 {
		b = EscapeText(b, name)
	} else {
		b = append(b, "a program that was not seen"...)
	}
	if change.Role == lifecycle.RoleServer {
		return appendInt(append(b, ", came in at port "...), int64(change.Service.Port()))
	}
	return AppendAddr(append(b, ", called "...), change.Service)
}

// appendCount says how many leaked of how many.
func (c *Comparison) appendCount(b []byte, n *leak.Count, span int64) []byte {
	b = AppendGrouped(b, n.Leaked)
	b = AppendGrouped(append(b, " of "...), n.Conns)
	b = append(b, " connections leaked"...)
	if n.Leaked > 0 {
		b = append(strconv.AppendFloat(append(b, " ("...), 100*float64(n.Leaked)/float64(n.Conns), 'f', 1, 64), '%')
		if rate, ok := c.perHour(n, span); ok {
			b = append(strconv.AppendFloat(append(b, ", "...), rate, 'f', 0, 64), "/h"...)
		}
		b = append(b, ')')
	}
	if n.Old > 0 {
		b = AppendGrouped(append(b, "; stuck since before it: "...), n.Old)
	}
	if n.Left > 0 {
		b = AppendGrouped(append(b, "; stuck at its end: "...), n.Left)
	}
	return b
}

// perHour is how many connections began to leak in an hour. Those of the last
// MinAge of a recording are not known yet.
func (c *Comparison) perHour(n *leak.Count, span int64) (float64, bool) {
	if span <= c.MinAge {
		return 0, false
	}
	return float64(n.Leaked) / (float64(span-c.MinAge) / 3600e9), true
}

func (r *Writer) textThresholds(c *Comparison) {
	b := r.line[:0]
	if len(c.Changes) == 0 {
		b = append(b, "nothing leaked in either recording"...)
		if c.Clean == 0 {
			b = append(b, ", and nothing was seen that could have"...)
		}
		b = append(b, ". "...)
	} else if c.Clean > 0 {
		b = append(appendCount(b, c.Clean, "more service"), " leaked in neither recording. "...)
	}
	b = AppendDuration(append(b, "Recorded: "...), c.Before)
	b = AppendDuration(append(b, " before, "...), c.After)
	b = AppendDuration(append(b, " after. Leaked is what was stuck in CLOSE_WAIT, or ended without close(), for "...), c.MinAge)
	b = fmt.Appendf(b, " or longer. Better, worse and fixed are said where chance explains the difference in at most %.0f of 100 cases and the share changed by %.0f%% or more; fixed where none leaks any more; same where a fix would have shown.",
		100*leak.MaxChance, 100*leak.MinChange)
	r.wrapped(0, styleDim, b)
	for _, lost := range []struct {
		failed bool
		name   string
	}{{c.BeforeFailed, "first"}, {c.AfterFailed, "second"}} {
		if lost.failed {
			r.wrapped(0, styleRed, []byte("The "+lost.name+" recording is not complete: events were lost, numbers may be too low."))
		}
	}
}

func (r *Writer) jsonChange(c *Comparison, change *leak.Change) {
	severity := "INFO"
	if change.After.Leaked+change.After.Old > 0 {
		severity = "WARN"
	}
	r.begin("tcp.leak_comparison", severity, 0)
	b := text(r.buf, "network.transport", "tcp")
	if name := change.Program.Bytes(); len(name) > 0 {
		b = appendString(key(b, "process.executable.name"), name)
	}
	b = text(b, "stated.leak.opened_by", change.Role.String())
	if change.Role == lifecycle.RoleServer {
		b = number(b, "network.local.port", int64(change.Service.Port()))
	} else {
		b = end(b, "network.peer", change.Service)
	}
	b = text(b, "stated.comparison.verdict", change.Progress.String())
	b = number(b, "stated.comparison.min_age_ns", c.MinAge)
	b = c.jsonCount(b, "before", &change.Before, c.Before, c.BeforeFailed)
	b = c.jsonCount(b, "after", &change.After, c.After, c.AfterFailed)
	r.buf = quote(key(b, "message"), appendChange(nil, change))
	r.end()
}

func (c *Comparison) jsonCount(b []byte, which string, n *leak.Count, span int64, failed bool) []byte {
	prefix := "stated.comparison." + which + "."
	b = number(b, prefix+"duration_ns", span)
	b = number(b, prefix+"connections", int64(n.Conns))
	b = number(b, prefix+"leaked", int64(n.Leaked))
	b = number(b, prefix+"stuck_before", int64(n.Old))
	b = number(b, prefix+"stuck_at_end", int64(n.Left))
	if rate, ok := c.perHour(n, span); ok {
		b = strconv.AppendFloat(key(b, prefix+"leaked_per_hour"), rate, 'f', 1, 64)
	}
	if failed {
		b = append(key(b, prefix+"gap"), "true"...)
	}
	return b
}
