// SPDX-License-Identifier: Apache-2.0

// Package render shows connections: as text for people, as one JSON object a
// line for machines. All are made of the same lifecycle.Conn.
package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/stated-tcp/stated/pkg/ecs"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Format is how connections are shown.
type Format uint8

// Formats.
const (
	FormatText Format = iota // at most two lines and 100 columns
	FormatWide               // one line with everything
	FormatJSON               // one object a line, with OpenTelemetry's names
	FormatECS                // one object a line, with the Elastic Common Schema's
)

// ParseFormat reads a format's name.
func ParseFormat(s string) (Format, error) {
	switch s {
	case "text":
		return FormatText, nil
	case "wide":
		return FormatWide, nil
	case "json":
		return FormatJSON, nil
	case "ecs":
		return FormatECS, nil
	}
	return FormatText, fmt.Errorf("unknown output format %q: one of text, wide, json, ecs", s)
}

// records reports whether a format is for machines.
func (f Format) records() bool { return f == FormatJSON || f == FormatECS }

// Host is what JSON records say of where they come from. A replay takes it from
// the recording.
type Host struct {
	RunID   string
	BootID  string
	Name    string
	ID      string
	Version string
}

// Options for New. The zero value is text in local time without colour.
type Options struct {
	Format   Format
	Names    event.Naming // of states, in text
	Color    bool
	Width    int            // of the terminal, for text; 0, or more than there is use for: Width
	Location *time.Location // of times in text; nil: local
	Host     Host
	// Netns is the network namespace of who reads: of sockets in another one, ls
	// says so; 0: not known.
	Netns uint32
	// Processes says more of a process than its name; nil, of all or of one: nothing
	// more is known. The same pointer stands for the same answer.
	Processes func(event.Task) *Process
}

// Writer writes connections. It buffers: call Flush when nothing more is at
// hand. The first failed write is kept and returned by Flush; what comes after
// is dropped. It is not safe for concurrent use.
type Writer struct {
	w        io.Writer
	opts     Options
	buf      []byte
	err      error
	offset   int64 // wall clock minus time since boot
	seq      uint64
	resource []byte // the part of a JSON record that never changes
	start    int    // of the record being made, in buf
	ecs      ecs.Converter
	second   int64 // of stamp
	stamp    []byte
	line     []byte
	held     []byte
	// fragments are the parts of records about processes. They go all at once
	// when they are too many.
	fragments map[*Process][]byte
	asked     struct { // by processOf, last
		seq     uint64
		task    event.Task
		process *Process
	}
	column int // of the line of text being written, and how many it has become
	lines  int
}

const bufferSize = 64 << 10

// New makes a Writer on w.
func New(w io.Writer, o Options) *Writer {
	if o.Location == nil {
		o.Location = time.Local
	}
	if o.Width == 0 {
		o.Width = Width
	}
	o.Width = min(max(o.Width, minWidth), Width)
	r := &Writer{w: w, opts: o, buf: make([]byte, 0, bufferSize+8192), second: -1}
	r.resource = resourceOf(o.Host)
	r.line = make([]byte, 0, 512)
	return r
}

// SetClock says which wall clock time a time since boot was, both in
// nanoseconds. All times that follow are shown by it.
func (r *Writer) SetClock(boot, wall int64) { r.offset = wall - boot }

// Flush writes what is buffered and returns the first error of any write.
func (r *Writer) Flush() error {
	if r.err == nil && len(r.buf) > 0 {
		if _, err := r.w.Write(r.buf); err != nil {
			r.err = err
		}
	}
	r.buf = r.buf[:0]
	return r.err
}

// Capture returns what f renders instead of writing it, until the next call of
// any method.
func (r *Writer) Capture(f func()) []byte {
	saved := r.buf
	r.buf = r.held[:0]
	f()
	r.held, r.buf = r.buf, saved
	return r.held
}

// Raw writes what Capture returned.
func (r *Writer) Raw(text []byte) {
	r.buf = append(r.buf, text...)
	r.full()
}

func (r *Writer) full() {
	if len(r.buf) >= bufferSize {
		r.Flush()
	}
}

// Transition shows a change of state.
func (r *Writer) Transition(c *lifecycle.Conn, e *event.Event) {
	if r.opts.Format.records() {
		r.jsonTransition(c, e)
	} else {
		r.textTransition(c, e)
	}
	r.full()
}

// Finished shows a connection that ended.
func (r *Writer) Finished(c *lifecycle.Conn) {
	switch r.opts.Format {
	case FormatJSON, FormatECS:
		r.jsonConn(c)
	case FormatWide:
		r.wideConn(c)
	default:
		r.textConn(c)
	}
	r.full()
}

// StillOpen shows a connection that stays in its state, as a change of state
// that does not come.
func (r *Writer) StillOpen(c *lifecycle.Conn, now int64) {
	e := event.Event{Kind: event.KindClock, Time: now, Old: c.State, New: c.State}
	r.Transition(c, &e)
}

// Lost shows that events are missing here.
func (r *Writer) Lost(e *event.Event) {
	if r.opts.Format.records() {
		r.jsonLost(e)
	} else {
		r.buf = fmt.Appendf(r.buf, "%s  -- %d events lost: the kernel's buffer was full --\n", r.clock(e.Time), e.Count)
	}
	r.full()
}

// clock is a time of day in text.
func (r *Writer) clock(boot int64) string {
	return time.Unix(0, boot+r.offset).In(r.opts.Location).Format("15:04:05.000")
}

// phrases say an outcome to a person. %s is who did it, where that is known.
var phrases = [lifecycle.NumOutcomes]string{
	lifecycle.OutcomeOpen:                "open",
	lifecycle.OutcomeUnknown:             "end unknown",
	lifecycle.OutcomeRefused:             "refused",
	lifecycle.OutcomeUnreachable:         "unreachable",
	lifecycle.OutcomeConnectTimeout:      "connect timed out",
	lifecycle.OutcomeConnectCancelled:    "connect cancelled by us",
	lifecycle.OutcomeNoLocalPort:         "no free local port",
	lifecycle.OutcomeResetByPeer:         "reset by peer",
	lifecycle.OutcomeResetUnreadData:     "reset by us: unread data",
	lifecycle.OutcomeResetLinger:         "reset by us: linger 0 or disconnect",
	lifecycle.OutcomeResetDataAfterClose: "reset by us: data came after close",
	lifecycle.OutcomeResetListenerClosed: "never accepted: listener closed",
	lifecycle.OutcomeResetKeepalive:      "reset by us: keep-alive unanswered",
	lifecycle.OutcomeResetProtocol:       "reset by us: protocol",
	lifecycle.OutcomeTimedOut:            "timed out",
	lifecycle.OutcomeKilled:              "killed",
	lifecycle.OutcomeHandshakeFailed:     "handshake failed",
	lifecycle.OutcomeListenEnded:         "stopped listening",
	lifecycle.OutcomeHandshakeExpired:    "handshake expired: no answer",
	lifecycle.OutcomeHandshakeReset:      "handshake reset by peer",
	lifecycle.OutcomeHandshakeOverflow:   "accept queue was full",
}

// Normal reports whether an outcome is what one hopes for.
func Normal(o lifecycle.Outcome) bool {
	return o == lifecycle.OutcomeClosed || o == lifecycle.OutcomeListenEnded || o == lifecycle.OutcomeOpen
}

// appendOutcome adds how the connection ended, in words.
func appendOutcome(b []byte, c *lifecycle.Conn) []byte {
	if c.Outcome == lifecycle.OutcomeClosed {
		switch c.Initiator {
		case lifecycle.InitiatorLocal:
			return appendBy(append(b, "closed"...), c)
		case lifecycle.InitiatorPeer:
			return append(b, "closed by peer"...)
		case lifecycle.InitiatorBoth:
			return append(b, "closed by both at once"...)
		}
		return append(b, "closed"...)
	}
	if c.Outcome == lifecycle.OutcomeNoLocalPort && c.Local.Port() != 0 {
		return append(b, "no SYN sent: addresses in use?"...) // or a route that depends on the port
	}
	if c.Outcome == lifecycle.OutcomeResetProtocol && c.Reset == event.ResetAbortOnMemory {
		return append(b, "reset by us: too many orphans, or no memory"...) // tcp_check_oom
	}
	if before, behind, ours := strings.Cut(phrases[c.Outcome], " by us"); ours {
		return append(appendBy(append(b, before...), c), behind...)
	}
	b = append(b, phrases[c.Outcome]...)
	switch c.Outcome {
	case lifecycle.OutcomeKilled:
		b = append(b, " by "...)
		b = AppendTask(b, c.Closer)
	case lifecycle.OutcomeUnknown, lifecycle.OutcomeHandshakeFailed, lifecycle.OutcomeHandshakeExpired:
		if c.Why != lifecycle.WhyNone {
			b = append(b, ": "...)
			b = append(b, c.Why.String()...)
		}
	case lifecycle.OutcomeUnreachable:
		b = append(b, ": "...)
		b = append(b, ErrnoText(c.Err)...)
	case lifecycle.OutcomeTimedOut:
		if c.Err != etimedout {
			b = append(b, ", last error: "...)
			b = append(b, ErrnoText(c.Err)...)
		}
	}
	return b
}

// appendBy adds that our end did it, by name where that was another process than the
// owner: a server may accept in one, and close in another. What the kernel does by
// itself, after a process has closed or not, is none's.
func appendBy(b []byte, c *lifecycle.Conn) []byte {
	byItself := c.Outcome == lifecycle.OutcomeResetKeepalive || c.Outcome == lifecycle.OutcomeResetProtocol
	if c.Closer == nil || c.Closer.IsZero() || c.Closer.PID == c.Owner.PID || byItself {
		return append(b, " by us"...)
	}
	return AppendTask(append(b, " by "...), c.Closer)
}

// AppendTask adds name[pid], or - for nobody.
func AppendTask(b []byte, t *event.Task) []byte {
	if t == nil || t.IsZero() {
		return append(b, '-')
	}
	b = EscapeText(b, t.Comm.Bytes())
	b = append(b, '[')
	b = appendInt(b, int64(t.PID))
	return append(b, ']')
}

// Totals are what a run saw.
type Totals struct {
	lifecycle.Stats
	Listening int  // of Open: sockets in LISTEN, which are no connections
	Filtered  bool // there were connections of which Stats counts the events, but not themselves
}

// Summary writes what a run saw, for a person, in a few lines.
func Summary(w io.Writer, s Totals, slow *Slow) {
	var b strings.Builder
	fmt.Fprintf(&b, "%d events", s.Events)
	if s.Filtered {
		b.WriteString(", those that the filter hides included")
	}
	fmt.Fprintf(&b, "; %d lost by the kernel", s.Lost)
	if s.Gaps > 0 {
		fmt.Fprintf(&b, "; %d connections with a gap", s.Gaps)
	}
	if s.Evicted > 0 {
		fmt.Fprintf(&b, "; %d connections given up: the table was full", s.Evicted)
	}
	if s.Unfollowed > 0 {
		fmt.Fprintf(&b, "; %d ended connections not followed through TIME_WAIT: the table of these was full", s.Unfollowed)
	}
	if s.Crowded > 0 {
		fmt.Fprintf(&b, "; %d connections without TIME_WAIT, or maybe without: there were as many as net.ipv4.tcp_max_tw_buckets allows", s.Crowded)
	}
	if n := s.Repaired.Sum(); n > 0 {
		fmt.Fprintf(&b, "; %d put right by a snapshot", n)
	}
	if s.Untold > 0 {
		fmt.Fprintf(&b, "; %d of %d half-open connections counted only: too many at once", s.Untold, s.Requests)
	}
	if s.Overflows > 0 {
		fmt.Fprintf(&b, "; %d SYNs dropped by full accept queues", s.Overflows)
	}
	summarizeEnds(&b, &s)
	b.WriteByte('\n')
	slow.write(&b)
	io.WriteString(w, b.String()) // stderr: nobody to tell when it fails
}

// summarizeEnds counts connections: those that are open, those that ended, and those
// that left something behind, which may have ended before stated began.
func summarizeEnds(b *strings.Builder, s *Totals) {
	fmt.Fprintf(b, "\nconnections: %d still open", s.Open-s.Listening)
	if s.Listening > 0 {
		fmt.Fprintf(b, ", beside %d in LISTEN", s.Listening)
	}
	between := "; ended: "
	for o, n := range s.Outcomes {
		if n > 0 && lifecycle.Outcome(o) != lifecycle.OutcomeOpen { // which was given up
			fmt.Fprintf(b, "%s%d %s", between, n, strings.ReplaceAll(lifecycle.Outcome(o).String(), "_", " "))
			between = ", "
		}
	}
	between = "; not gone yet: "
	if s.Held > 0 {
		fmt.Fprintf(b, "%s%d ended but not closed by their process", between, s.Held)
		between = ", "
	}
	if s.Lingering > 0 {
		fmt.Fprintf(b, "%s%d in TIME_WAIT or FIN_WAIT2 without a process", between, s.Lingering)
	}
}
