// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"time"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
)

// Leaks is a report to show.
type Leaks struct {
	leak.Report
	Groups    []leak.Group
	Processes func(event.Task) Process
	// Waits says who waits on a socket that a process holds. It is asked for the
	// shown ones only; nil: not known.
	Waits func(*census.Socket) Wait
	By    By // how the groups were made
	// Growth is by how many sockets a group grew, per second, by its key;
	// present where the group was watched.
	Growth map[string]float64
	// Flow counts what came into CLOSE_WAIT and left it while a process was
	// watched; nil: it was not.
	Flow     func(pid uint32) leak.Flow
	MinAge   int64 // nanoseconds
	Examples int   // sockets shown of each group
	Each     bool  // each socket is a group: one record a socket
	Stacks   bool  // show where in the code the sockets were opened
}

// By is what the sockets of a group have in common.
type By uint8

// ByProcess is the processes that hold them, and the service.
const (
	ByProcess By = iota
	ByPeer
	ByListener
	ByContainer
	ByStack
	ByNone
)

// meaning says a verdict in a sentence.
var meaning = [leak.NumVerdicts]string{
	leak.Unknown:     "",
	leak.NotAccepted: "waiting in the queue of the listener for a process to call accept()",
	leak.DataUnread:  "data came that the process has not read, and the end of file behind it",
	leak.EOFUnread:   "all data was read, the end of file never: the process does not know that the peer closed",
	leak.Drained:     "nothing is left to read: the process saw the end, or will at its next read; close() is missing",
	leak.ShutDown:    "the process called shutdown(), and never close()",
	leak.Hidden:      "the connection has ended, its descriptor stays open; ss does not show it",
}

// advice is what to look for next, by verdict.
var advice = [leak.NumVerdicts]string{
	leak.NotAccepted: "the accept loop is stuck or too slow: look at what its threads do",
	leak.DataUnread:  "the handler is stuck, or forgot the socket: look at what its threads do",
	leak.EOFUnread:   "nobody reads this socket any more: an idle one in a pool, or a handler that is stuck elsewhere",
	leak.Drained:     "a close() is missing on some path: an error path, or a response body that is never closed",
	leak.ShutDown:    "close() must follow shutdown(); only close() gives the descriptor back",
	leak.Hidden:      "a close() is missing on the path that handles an error of the connection",
}

// Meaning says a verdict in a sentence, "" for leak.Unknown.
func Meaning(v leak.Verdict) string { return meaning[v] }

// Advice says what to look for next, "" where nothing is known to.
func Advice(f *leak.Finding) string {
	if f.Multipath() && f.New == event.StateCloseWait {
		return "the handler is stuck, forgot the socket, or a close() is missing on some path: look at what its threads do"
	}
	if f.HalfClosed() {
		return "the peer has not closed either, and may still send: only if the process wants no answer, close() must follow shutdown()"
	}
	return advice[f.Verdict]
}

// Leaks shows a report: as text, or a record for each group.
func (r *Writer) Leaks(l *Leaks) {
	for i := range l.Groups {
		if r.opts.Format.records() {
			r.jsonLeak(l, &l.Groups[i])
		} else {
			r.textLeak(l, &l.Groups[i])
		}
		r.full()
	}
	if !r.opts.Format.records() {
		r.buf = l.appendTotal(r.buf)
	}
	r.full()
}

// Again begins the next of the reports on and on: a terminal is emptied for it, else
// a line says when it was made. Records say so themselves.
func (r *Writer) Again(l *Leaks) {
	switch {
	case r.opts.Format.records():
	case r.opts.Color:
		r.buf = append(r.buf, "\x1b[H\x1b[2J"...)
	default:
		at := time.Unix(0, l.Now+r.offset).In(r.opts.Location)
		r.buf = at.AppendFormat(r.buf, "-- looked at 2006-01-02 15:04:05 -07:00 --\n")
	}
}

// LeaksWithin shows a report as Leaks does, on a terminal of this size: the first
// groups have most sockets, so they and the total stay where there is no room for all.
func (r *Writer) LeaksWithin(l *Leaks, rows, columns int) {
	if r.opts.Format.records() {
		r.Leaks(l)
		return
	}
	total := l.appendTotal(nil)
	room := rows - 1 - height(total, columns) // the cursor stands below
	start := len(r.buf)
	for i := range l.Groups {
		r.textLeak(l, &l.Groups[i])
		if text := r.buf[start:]; height(text, columns) > room {
			r.buf = append(r.buf[:start+len(atMost(text, room-1, columns))], "… the terminal has no room for more\n"...)
			break
		}
	}
	r.buf = append(r.buf, total...)
	r.full()
}

// height is how many lines of a terminal text takes.
func height(text []byte, columns int) (n int) {
	for line := range bytes.Lines(text) {
		n += rowsOf(line, columns)
	}
	return n
}

// atMost returns the first lines of text that take no more than rows.
func atMost(text []byte, rows, columns int) []byte {
	end := 0
	for line := range bytes.Lines(text) {
		if rows -= rowsOf(line, columns); rows < 0 {
			break
		}
		end += len(line)
	}
	return text[:end]
}

// rowsOf is how many lines of a terminal a line takes, which is broken where it is too long.
func rowsOf(line []byte, columns int) int {
	n := utf8.RuneCount(bytes.TrimSuffix(line, []byte("\n")))
	for _, style := range []string{styleBold, styleDim, styleRed, styleReset} {
		n -= bytes.Count(line, []byte(style)) * len(style)
	}
	return max(1, (n+columns-1)/max(1, columns))
}

func (l *Leaks) appendTotal(b []byte) []byte {
	if len(l.Findings) == 0 {
		b = append(b, "no leaks: nothing has been stuck for "...)
	} else {
		b = appendCount(b, len(l.Findings), "socket")
		b = append(b, " leaked: stuck for "...)
	}
	b = append(b, time.Duration(l.MinAge).String()...)
	b = append(b, " or longer"...)
	if l.Young > 0 {
		b = appendInt(append(b, "; "...), int64(l.Young))
		b = append(b, " younger"...)
	}
	if l.Undecided > 0 {
		b = appendInt(append(b, "; "...), int64(l.Undecided))
		b = append(b, " of unknown age: --for "...)
		b = append(b, time.Duration(l.MinAge).String()...)
		b = append(b, " tells"...)
	}
	if n := l.withoutStack(); n > 0 {
		b = appendInt(append(b, '\n'), int64(n))
		b = append(b, " of them without a stack: not accepted, or opened before stated began"...)
	}
	return append(b, '\n')
}

func appendCount(b []byte, n int, noun string) []byte {
	b = append(append(appendInt(b, int64(n)), ' '), noun...)
	if n != 1 {
		b = append(b, 's')
	}
	return b
}

// Exhaustion returns in how many nanoseconds the process has no descriptor
// left if the group goes on growing as it did. It must be the only one of its group.
func (l *Leaks) Exhaustion(g *leak.Group, p Process) (int64, bool) {
	rate := l.Growth[g.Key]
	if rate <= 0 || p.FDLimit == 0 || p.FDs > p.FDLimit {
		return 0, false
	}
	return int64(float64(p.FDLimit-p.FDs) / rate * 1e9), true
}
