// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// wrapped adds text on as many lines as it needs, all but the first indented
// by two more. It must be escaped.
func (r *Writer) wrapped(indent int, style string, text []byte) {
	r.buf = append(r.buf, strings.Repeat(" ", indent)...)
	column := indent
	for i, word := range bytes.Fields(text) {
		n := utf8.RuneCount(word)
		switch {
		case i == 0:
		case column+1+n > r.opts.Width && r.opts.Format == FormatText:
			r.buf = append(r.buf, '\n')
			r.buf = append(r.buf, strings.Repeat(" ", indent+2)...)
			column = indent + 2
		default:
			r.buf = append(r.buf, ' ')
			column++
		}
		if style != "" {
			r.styled(style, word)
		} else {
			r.buf = append(r.buf, word...)
		}
		column += n
	}
	r.buf = append(r.buf, '\n')
}

// lineOf adds a line of text, cut at the width unless all is asked for.
func (r *Writer) lineOf(indent int, style string, text []byte) {
	r.buf = append(r.buf, strings.Repeat(" ", indent)...)
	if r.opts.Format == FormatText {
		text = cut(text, r.opts.Width-indent)
	}
	if style == "" {
		r.buf = append(r.buf, text...)
	} else {
		r.styled(style, text)
	}
	r.buf = append(r.buf, '\n')
}

func (r *Writer) textLeak(l *Leaks, g *leak.Group) {
	p := l.parties(g)
	owners := p.owners
	r.wrapped(0, styleBold, r.appendHeadline(r.line[:0], l, g, &p))
	for _, t := range owners {
		if text := appendProcess(r.line[:0], l.Processes(t), p.several(), &t); len(text) > 0 {
			r.lineOf(2, styleDim, text)
		}
	}
	for v, n := range g.Verdicts {
		if n > 0 {
			r.textVerdict(g, leak.Verdict(v), n)
		}
	}
	if f := p.flow; f.In+f.Out > 0 {
		b := strconv.AppendUint(append(r.line[:0], "while watched, "...), f.In, 10)
		b = strconv.AppendUint(append(b, " came into CLOSE_WAIT and "...), f.Out, 10)
		b = append(b, " left it, of this process"...)
		if p.several() {
			b = append(b[:len(b)-len("this process")], "these processes"...)
		}
		r.lineOf(2, "", b)
	}
	if idle := g.CommonIdle(); idle != 0 {
		b := AppendDuration(append(r.line[:0], "most were closed by the peer after about "...), idle)
		r.wrapped(2, "", append(b, " of silence: its keep-alive time-out is shorter than ours"...))
	}
	r.textFDs(l, g, &p)
	if l.Stacks {
		r.textOrigins(g)
	}
	shown := min(len(g.Findings), l.Examples)
	for i := range g.Findings[:shown] {
		r.textFinding(l, &g.Findings[i], g, &p)
	}
	if more := len(g.Findings) - shown; more > 0 {
		r.lineOf(4, styleDim, append(appendInt(append(r.line[:0], "and "...), int64(more)), " more"...))
	}
	r.textAdvice(l, g, &p)
	r.buf = append(r.buf, '\n')
}

// appendHeadline says who holds how many of what.
func (r *Writer) appendHeadline(b []byte, l *Leaks, g *leak.Group, p *parties) []byte {
	b, told := l.appendCommon(b, g, p)
	for i, t := range p.owners {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = AppendTask(b, &t)
	}
	if p.more > 0 {
		b = append(appendInt(append(b, " and "...), int64(p.more)), " more"...)
	}
	switch f := g.Oldest(); {
	case len(p.owners) == 0 && (f.Orphan() || f.HalfOpen()):
		b = append(b, "no process"...)
	case len(p.owners) == 0 && g.Kernel():
		b = append(b, "the kernel itself (NFS, SMC or the like)"...)
	case len(p.owners) == 0:
		b = append(b, "a process that was not found"...)
	case g.Verdicts[leak.NotAccepted] == len(g.Findings) && len(p.owners) > 1 && !p.mixed:
		b = append(b, " (one of them)"...)
	}
	b = append(b, ": "...)
	b = appendCounts(b, g, r.opts.Names)
	role, service := g.Oldest().Service()
	switch {
	case told:
	case !sameService(g):
		b = append(b, ", of several services"...)
	case role == lifecycle.RoleServer:
		b = appendInt(append(b, ", came in at port "...), int64(service.Port()))
	case role == lifecycle.RoleUnknown:
		b = AppendAddr(append(b, ", with "...), service)
	default:
		b = AppendAddr(append(b, ", called "...), service)
	}
	b = append(b, ", oldest "...)
	b = AppendAge(b, g.Oldest().Age)
	if rate, ok := l.Growth[g.Key]; ok && rate != 0 {
		b = appendRate(append(b, ", "...), rate)
	}
	return b
}

// appendCounts counts the findings by state; what the kernel calls CLOSE is
// said in words.
func appendCounts(b []byte, g *leak.Group, names event.Naming) []byte {
	first := true
	for s, n := range g.States {
		if n == 0 {
			continue
		}
		if !first {
			b = append(b, " and "...)
		}
		first = false
		b = append(appendInt(b, int64(n)), ' ')
		if event.State(s) == event.StateClose {
			b = append(b, "ended but not closed"...)
		} else {
			b = append(b, event.State(s).Name(names)...)
		}
	}
	return b
}

// appendRate says a growth per second in a unit that gives a number of some size.
func appendRate(b []byte, perSecond float64) []byte {
	unit := "/s"
	switch size := max(perSecond, -perSecond); {
	case size < 1.0/60:
		perSecond, unit = perSecond*3600, "/h"
	case size < 1:
		perSecond, unit = perSecond*60, "/min"
	}
	if perSecond > 0 {
		b = append(b, '+')
	}
	digits := 0 // three that matter, as of times
	for size := max(perSecond, -perSecond); size < 100 && digits < 2; size *= 10 {
		digits++
	}
	b = strconv.AppendFloat(b, perSecond, 'f', digits, 64)
	if digits > 0 {
		b = bytes.TrimRight(bytes.TrimRight(b, "0"), ".")
	}
	return append(b, unit...)
}

func appendProcess(b []byte, p Process, named bool, t *event.Task) []byte {
	start := len(b)
	if named {
		b = append(AppendTask(b, t), ": "...)
		start = len(b)
	}
	put := func(label, value string) {
		if value == "" {
			return
		}
		if len(b) > start {
			b = append(b, "  "...)
		}
		b = EscapeText(append(b, label...), []byte(value))
	}
	if p.CommandLine != "" {
		put("", p.CommandLine)
	} else {
		put("", p.Executable)
	}
	put("user ", p.User)
	put("unit ", p.Unit)
	put("container ", p.label())
	put("pod ", cmp.Or(p.PodName, p.Pod))
	if len(b) == start {
		return b[:0]
	}
	return b
}

func (r *Writer) textVerdict(g *leak.Group, v leak.Verdict, n int) {
	b := appendInt(r.line[:0], int64(n))
	b = append(append(b, ' '), v.String()...)
	why := meaning[v]
	if v == leak.Unknown {
		for i := range g.Findings {
			if g.Findings[i].Verdict == v {
				why = g.Findings[i].Why
				break
			}
		}
	}
	b = append(append(b, ": "...), why...)
	if v == leak.DataUnread {
		b = append(AppendBytes(append(b, " ("...), g.Unread), ')')
	}
	r.wrapped(2, "", b)
	if v != leak.NotAccepted {
		return
	}
	for _, s := range queues(g) {
		b := AppendAddr(append(r.line[:0], "listener "...), s.Local)
		waiting, limit := s.Queue()
		b = appendInt(append(b, ": "...), waiting)
		b = appendInt(append(b, " in its queue of at most "...), limit)
		if waiting >= limit {
			b = append(b, ": full, new connections are dropped"...)
		}
		r.lineOf(4, "", b)
	}
}

// textFDs says how near the processes are to their limits.
func (r *Writer) textFDs(l *Leaks, g *leak.Group, of *parties) {
	for _, t := range of.owners {
		p := l.Processes(t)
		if p.FDLimit == 0 || p.FDs == 0 {
			continue
		}
		b := r.line[:0]
		if of.several() {
			b = append(AppendTask(b, &t), ": "...)
		}
		b = append(AppendGrouped(b, p.FDs), " of "...)
		b = append(AppendGrouped(b, p.FDLimit), " descriptors used"...)
		style := ""
		if left, ok := l.Exhaustion(g, p); ok && !of.mixed {
			b = append(AppendDuration(append(b, "; none left in about "...), left), " at this rate"...)
			style = styleRed
		}
		r.lineOf(2, style, b)
	}
}

// AppendGrouped adds a number with a comma between thousands.
func AppendGrouped(b []byte, n int) []byte {
	text := strconv.Itoa(n)
	for i := range len(text) {
		if i > 0 && (len(text)-i)%3 == 0 {
			b = append(b, ',')
		}
		b = append(b, text[i])
	}
	return b
}

// textFinding shows one socket and who waits on it: behind it, or below where
// there is no room.
func (r *Writer) textFinding(l *Leaks, f *leak.Finding, g *leak.Group, p *parties) {
	b := r.appendFinding(r.line[:0], f, g, p)
	wait := appendWait(nil, l.waitOn(f.Socket), f.Socket)
	if len(wait) == 0 || r.opts.Format != FormatText || 4+utf8.RuneCount(b)+utf8.RuneCount(wait) <= r.opts.Width {
		r.lineOf(4, "", append(b, wait...))
		return
	}
	r.lineOf(4, "", b)
	r.lineOf(16, "", wait)
}

// appendFinding shows what a socket itself tells.
func (r *Writer) appendFinding(b []byte, f *leak.Finding, g *leak.Group, p *parties) []byte {
	at := len(b)
	for i := range f.Holders {
		h := &f.Holders[i]
		if i > 0 {
			b = append(b, ", "...)
		}
		if left := len(f.Holders) - i; i == 1 && left > 1 && r.opts.Format == FormatText {
			b = append(appendInt(b, int64(left)), " more"...) // else age and ends have no room
			break
		}
		if p.several() {
			b = append(appendInt(append(b, "pid "...), int64(h.PID)), ' ')
		}
		b = appendFDs(append(b, "fd "...), h)
	}
	if n := f.Elsewhere(); n > 0 && f.Inode != 0 {
		if len(b) > at {
			b = append(b, ", "...)
		}
		b = append(appendInt(b, int64(n)), " held elsewhere"...)
	}
	if len(f.Holders) == 0 && f.NotAccepted() {
		if !p.mixed {
			b = append(b, "in the queue"...)
		}
		for i, t := range f.Owners() {
			if p.mixed {
				b = appendInt(append(b, [2]string{"queue of pid ", ", "}[min(i, 1)]...), int64(t.PID))
			}
		}
	}
	if f.HalfOpen() {
		b = append(b, "half-open"...)
	}
	width := 12
	if p.mixed {
		width = len("pid 1234567 fd 12")
	}
	b = pad(b, at, width)
	b = pad(AppendAge(append(b, "  "...), f.Age), at, width+10)
	b = AppendEnds(append(b, "  "...), f.Socket)
	if f.Multipath() {
		b = append(b, "  MPTCP"...)
	}
	if p.networks > 1 && r.opts.Format != FormatWide {
		b = appendInt(append(b, "  netns:"...), int64(f.Netns))
	}
	if g.Verdicts[f.Verdict] < len(g.Findings) {
		b = append(append(b, "  "...), f.Verdict.String()...)
	}
	if f.Unread > 0 {
		b = append(AppendBytes(append(b, "  "...), uint64(f.Unread)), " unread"...)
	}
	if f.Err != 0 {
		b = append(append(b, "  "...), ErrnoText(f.Err)...)
	}
	if r.opts.Format == FormatWide {
		b = appendSocketIDs(b, f.Socket)
	}
	return b
}

// pad fills up with blanks to a width that counts from at.
func pad(b []byte, at, width int) []byte {
	for n := utf8.RuneCount(b[at:]); n < width; n++ {
		b = append(b, ' ')
	}
	return b
}

// textAdvice says what to look for and how to get rid of the sockets. stated
// does none of it. Where not all sockets are of one process, it is about one of them.
func (r *Writer) textAdvice(l *Leaks, g *leak.Group, p *parties) {
	worst := worstVerdict(g)
	of := slices.IndexFunc(g.Findings, func(f leak.Finding) bool { return f.Verdict == worst && len(f.Owners()) > 0 })
	if of < 0 {
		return
	}
	next := Advice(&g.Findings[of])
	if next == "" {
		return
	}
	owners := g.Findings[of].Owners()
	halted := 0
	for i := range owners {
		if process := l.Processes(owners[i]); process.Halts() {
			r.wrapped(2, "", AppendHalt(append(r.line[:0], "next: "...), &owners[i], &process))
			halted++
		}
	}
	if halted == len(owners) {
		return
	}
	owner := owners[0]
	r.wrapped(2, "", append(append(r.line[:0], "next: "...), next...))
	b := append(r.line[:0], "threads: gdb -p "...)
	if p.mixed {
		b = append(AppendTask(append(r.line[:0], "threads of "...), &owner), ": gdb -p "...)
	}
	b = appendInt(b, int64(owner.PID))
	r.lineOf(8, styleDim, append(b, " -batch -ex 'thread apply all bt'"...))
	unit := l.Processes(owner).Unit
	same := p.more == 0 && !slices.ContainsFunc(p.owners, func(t event.Task) bool { return l.Processes(t).Unit != unit })
	if unit != "" && safeWord(unit) && (same || !p.mixed) {
		r.lineOf(8, styleDim, append(append(r.line[:0], "restart: systemctl restart "...), unit...))
	}
	closable := func(f leak.Finding) bool { return len(f.Holders) > 0 && !f.HalfClosed() }
	at := slices.IndexFunc(g.Findings[of:], closable) + of
	if at < of {
		at = slices.IndexFunc(g.Findings, closable)
	}
	if at < 0 {
		return
	}
	f := &g.Findings[at]
	h := f.Holders[0]
	b = append(r.line[:0], "close one from outside: gdb -p "...)
	if p.mixed {
		b = append(AppendTask(append(r.line[:0], "close one of "...), &h.Task), " from outside: gdb -p "...)
	}
	b = appendInt(b, int64(h.PID))
	b = appendInt(append(b, " -batch -ex 'call (int)close("...), int64(h.FDs[0]))
	r.lineOf(8, styleDim, append(b, ")'"...))
	if n := len(f.Holders); n > 1 {
		b = appendInt(append(r.line[:0], "it ends only when each of the "...), int64(n))
		r.lineOf(8, styleDim, append(b, " processes that hold it has closed it"...))
	}
	if f.New != event.StateClose {
		r.lineOf(8, styleDim, append(r.line[:0], "ss -K ends the connection, but the descriptor stays open: it only hides the leak"...))
	}
}

// safeWord reports whether s can stand in a command that a person copies.
func safeWord(s string) bool {
	return !bytes.ContainsFunc([]byte(s), func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.@:", c))
	})
}
