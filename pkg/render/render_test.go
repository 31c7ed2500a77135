// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/ecs"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

var update = flag.Bool("update", false, "rewrite testdata")

const ms = int64(time.Millisecond)

func endpoint(s string) lifecycle.Endpoint { return lifecycle.EndpointOf(netip.MustParseAddrPort(s)) }

// conns are connections that have given trouble to somebody's output.
func conns() []*lifecycle.Conn {
	base := func() *lifecycle.Conn {
		return &lifecycle.Conn{
			Shared: &lifecycle.Shared{UIDKnown: true, Netns: 4026531840, Family: 2, Protocol: event.ProtoTCP,
				Owner: lifecycle.Owner{Task: event.Task{PID: 4242, Comm: event.MakeComm("curl")}, Source: event.OwnerConnect}},
			Socket: 0x1002, FirstEvent: 1000 * ms, Local: endpoint("10.0.0.5:51234"), Peer: endpoint("93.184.216.34:443"),
			Role: lifecycle.RoleClient, State: event.StateClose, FromStart: true,
			Spans: lifecycle.PathOf(lifecycle.Span{Start: 1000 * ms, State: event.StateSynSent}, lifecycle.Span{Start: 1012 * ms, State: event.StateEstablished}),
			End:   3400 * ms, LastEvent: 3400 * ms, Outcome: lifecycle.OutcomeClosed, Initiator: lifecycle.InitiatorPeer,
			BytesSent: 1234, BytesReceived: 34567, SRTT: 11800,
		}
	}
	closed := base()
	closed.Initiator = lifecycle.InitiatorLocal
	closed.Spans.Add(lifecycle.Span{Start: 3380 * ms, State: event.StateFinWait1})
	closed.Spans.Add(lifecycle.Span{Start: 3399 * ms, State: event.StateFinWait2})
	closed.Lingers, closed.LingersKnown, closed.LingerStart = event.StateTimeWait, lifecycle.Inferred, closed.End
	hostile := base()
	hostile.Owner.Comm = event.Comm{0x1b, ']', '0', ';', 7, '\n', 0xff, '"', '\\', 0xc2, 0x9b, 0xe2, 0x80, 0xae, 'x', 'y'}
	long := base()
	long.Local = endpoint("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:1111]:65535")
	long.Peer = endpoint("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:2222]:65535")
	long.Outcome, long.Err = lifecycle.OutcomeTimedOut, 113
	before := base()
	before.FromStart = false
	before.Role = lifecycle.RoleUnknown
	before.Owner = lifecycle.Owner{}
	before.Spans = lifecycle.PathOf(lifecycle.Span{State: event.StateEstablished, Known: lifecycle.AtLeast}, lifecycle.Span{Start: 3000 * ms, State: event.StateCloseWait})
	gap := base()
	gap.Gap = true
	gap.Spans.Add(lifecycle.Span{Start: 3399 * ms, State: event.StateFinWait1, Known: lifecycle.Inferred})
	gap.Outcome, gap.Why = lifecycle.OutcomeUnknown, lifecycle.WhyEndLost
	killed := base()
	killed.Outcome, killed.Closer = lifecycle.OutcomeKilled, &event.Task{PID: 991, Comm: event.MakeComm("ss")}
	listener := base()
	listener.Role, listener.Peer = lifecycle.RoleListener, lifecycle.Endpoint{}
	listener.Local = endpoint("[::]:80")
	listener.Spans = lifecycle.PathOf(lifecycle.Span{Start: 1000 * ms, State: event.StateListen})
	listener.Outcome = lifecycle.OutcomeListenEnded
	waiting := base()
	waiting.Role, waiting.Owner.Source = lifecycle.RoleServer, event.OwnerListener
	waiting.Outcome = lifecycle.OutcomeResetListenerClosed
	accepted := base()
	accepted.Role, accepted.Cookie, accepted.Owner.Source = lifecycle.RoleServer, true, event.OwnerAccept
	accepted.AcceptedAt = 2000 * ms
	seen := base()
	seen.Lingers, seen.LingerStart, seen.LingerEnd, seen.LingerCause = event.StateTimeWait, seen.End, seen.End+ms, event.EndReused
	overflown := base()
	*overflown = *listener
	overflown.Rare = &lifecycle.Rare{Overflows: 400}
	crowded := base()
	crowded.Initiator, crowded.Crowded = lifecycle.InitiatorLocal, true
	crowded.Spans = lifecycle.PathOf(lifecycle.Span{Start: 1000 * ms, State: event.StateEstablished}, lifecycle.Span{Start: 3000 * ms, State: event.StateFinWait2})
	all := []*lifecycle.Conn{accepted, seen, overflown, closed, hostile, long, before, gap, killed, listener, waiting, crowded}
	for o := range lifecycle.NumOutcomes {
		c := base()
		c.Outcome = lifecycle.Outcome(o)
		all = append(all, c)
	}
	return all
}

var host = Host{RunID: "run", BootID: "boot", Name: "db1", Version: "v1"}

func render(o Options, f func(*Writer)) string {
	var b bytes.Buffer
	o.Location, o.Host = time.UTC, host
	w := New(&b, o)
	w.SetClock(0, 1_700_000_000_000_000_000)
	f(w)
	w.Flush()
	return b.String()
}

func every(w *Writer) {
	for _, c := range conns() {
		w.Finished(c)
	}
	for _, c := range conns() {
		e := event.Event{Kind: event.KindState, Time: c.End, Old: c.Spans.Last().State, New: event.StateClose, CPU: 1, Err: c.Err}
		w.Transition(c, &e)
		e = event.Event{Kind: event.KindSnapshot, Time: c.End, Old: event.StateCloseWait, New: event.StateCloseWait}
		w.Transition(c, &e)
	}
	mini := event.Event{Kind: event.KindState, Flags: event.FlagMini, Time: 4000 * ms, Old: event.StateTimeWait, New: event.StateClose, Cause: event.EndReused}
	w.Transition(conns()[1], &mini)
	mini.Old, mini.New, mini.Cause = event.StateFinWait2, event.StateTimeWait, event.EndUnknown
	w.Transition(conns()[1], &mini)
	open := conns()[0]
	open.End = 0
	w.StillOpen(open, 30000*ms)
	found := conns()[0]
	found.End, found.State = 0, event.StateCloseWait
	found.Spans = lifecycle.PathOf(lifecycle.Span{Start: 1000 * ms, State: event.StateCloseWait, Known: lifecycle.AtLeast})
	w.Transition(found, &event.Event{Kind: event.KindSnapshot, Time: 91_000 * ms, Old: event.StateCloseWait, New: event.StateCloseWait})
	w.StillOpen(found, 92_000*ms)
	w.Lost(&event.Event{Kind: event.KindLost, Time: 5000 * ms, Count: 17})
	givenUp := conns()[0]
	givenUp.State, givenUp.End, givenUp.LastEvent, givenUp.Lingers = event.StateFinWait2, 0, 9000*ms, event.StateNone
	givenUp.Outcome, givenUp.Why = lifecycle.OutcomeUnknown, lifecycle.WhyTableFull
	w.Finished(givenUp)
}

func TestGolden(t *testing.T) {
	for name, o := range map[string]Options{
		"text": {}, "wide": {Format: FormatWide}, "json": {Format: FormatJSON}, "color": {Color: true}, "rfc": {Names: event.NamingRFC},
		"known.json": {Format: FormatJSON, Processes: knowAll}, "known.wide": {Format: FormatWide, Processes: knowAll},
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, name, render(o, every))
		})
	}
}

// TestECS: whatever is shown, its documents are those of its records.
func TestECS(t *testing.T) {
	for name, show := range map[string]func(*Writer){
		"connections": every,
		"leaks":       func(w *Writer) { w.Leaks(leaksOf(leak.ByProcess, false)) },
		"sockets":     func(w *Writer) { w.Sockets(stuckSockets(), leaksOf(leak.ByProcess, false).Processes) },
		"comparison":  func(w *Writer) { w.Comparison(comparison()) },
	} {
		var want strings.Builder
		var c ecs.Converter
		for line := range strings.Lines(render(Options{Format: FormatJSON}, show)) {
			doc, err := c.Append(nil, []byte(line))
			if err != nil {
				t.Fatal(err)
			}
			want.Write(append(doc, '\n'))
		}
		if got := render(Options{Format: FormatECS}, show); got != want.String() || got == "" {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want.String())
		}
	}
}

// TestTextFits: what is too long for a line goes on in the next, whole.
func TestTextFits(t *testing.T) {
	long := conns()[3]
	for i := range 6 {
		long.Spans.Add(lifecycle.Span{Start: int64(3399+i) * ms, State: event.StateCloseWait})
	}
	path := render(Options{Format: FormatWide}, func(w *Writer) { w.Finished(long) })
	_, path, _ = strings.Cut(path, "SYN_SENT")
	path, _, _ = strings.Cut(path, "   ")
	for width, columns := range map[int]int{0: Width, 80: 80, 500: Width} {
		text := render(Options{Width: width}, func(w *Writer) {
			for _, c := range append(conns(), long) {
				w.Finished(c)
			}
		})
		if joined := strings.Join(strings.Fields(text), " "); !strings.Contains(joined, path) {
			t.Errorf("no %q in\n%s", path, text)
		}
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > columns {
				t.Errorf("%d columns of %d: %s", n, columns, line)
			}
		}
	}
}

func TestJSONIsFlatLines(t *testing.T) {
	seen := make(map[string]bool)
	for line := range strings.Lines(render(Options{Format: FormatJSON}, every)) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		uid := record["log.record.uid"].(string)
		if seen[uid] {
			t.Errorf("%s twice", uid)
		}
		seen[uid] = true
		if _, err := time.Parse("2006-01-02T15:04:05.000000000Z", record["timestamp"].(string)); err != nil {
			t.Error(err)
		}
		for k, v := range record {
			if v == nil {
				t.Errorf("%s is null", k)
			}
			if _, ok := v.(map[string]any); ok {
				t.Errorf("%s is nested", k)
			}
		}
	}
}

type broken struct{ n int }

func (b *broken) Write([]byte) (int, error) { b.n++; return 0, errors.New("gone") }

func TestFirstErrorStays(t *testing.T) {
	b := &broken{}
	w := New(b, Options{})
	for range 10000 {
		w.Finished(conns()[0])
	}
	if err := w.Flush(); err == nil || b.n != 1 {
		t.Errorf("%v after %d writes", err, b.n)
	}
}

func harmless(t *testing.T, text []byte) {
	if !utf8.Valid(text) {
		t.Errorf("not UTF-8: %q", text)
	}
	for _, r := range string(text) {
		if !unicode.IsPrint(r) {
			t.Errorf("%U gets through: %q", r, text)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add([]byte("\x1b]0;title\x07\n\xff\u202e"))
	f.Fuzz(func(t *testing.T, s []byte) {
		harmless(t, EscapeText(nil, s))
		if got := Unescape(EscapeText(nil, s)); !bytes.Equal(got, s) {
			t.Errorf("%q became %q", s, got)
		}
		quoted := appendString(nil, s)
		if !json.Valid(quoted) || bytes.ContainsRune(quoted, '\n') {
			t.Errorf("%q is no JSON string", quoted)
		}
	})
}

func benchmark(b *testing.B, o Options, f func(*Writer, *lifecycle.Conn, *event.Event)) {
	o.Host = host
	w := New(discard{}, o)
	c := conns()[0]
	e := event.Event{Kind: event.KindState, Time: c.End, Old: event.StateFinWait2, New: event.StateClose}
	b.ReportAllocs()
	for b.Loop() {
		f(w, c, &e)
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func BenchmarkTransitionJSON(b *testing.B) {
	benchmark(b, Options{Format: FormatJSON}, func(w *Writer, c *lifecycle.Conn, e *event.Event) { w.Transition(c, e) })
}

func BenchmarkFinishedJSON(b *testing.B) {
	benchmark(b, Options{Format: FormatJSON}, func(w *Writer, c *lifecycle.Conn, e *event.Event) { w.Finished(c) })
}

func BenchmarkFinishedText(b *testing.B) {
	benchmark(b, Options{}, func(w *Writer, c *lifecycle.Conn, e *event.Event) { w.Finished(c) })
}

func TestOrphanReset(t *testing.T) {
	c := &lifecycle.Conn{Outcome: lifecycle.OutcomeResetProtocol, Reset: event.ResetAbortOnMemory}
	if got := string(appendOutcome(nil, c)); got != "reset by us: too many orphans, or no memory" {
		t.Error(got)
	}
}

// TestCloser: who closed is named where the owner did not.
func TestCloser(t *testing.T) {
	postmaster, backend := event.Task{PID: 12452, Comm: event.MakeComm("postgres")}, event.Task{PID: 12571, Comm: event.MakeComm("postgres")}
	for _, tt := range []struct {
		outcome   lifecycle.Outcome
		initiator lifecycle.Initiator
		closer    *event.Task
		want      string
	}{
		{lifecycle.OutcomeClosed, lifecycle.InitiatorLocal, &backend, "closed by postgres[12571]"},
		{lifecycle.OutcomeClosed, lifecycle.InitiatorLocal, &postmaster, "closed by us"},
		{lifecycle.OutcomeClosed, lifecycle.InitiatorLocal, nil, "closed by us"},
		{lifecycle.OutcomeClosed, lifecycle.InitiatorPeer, &backend, "closed by peer"},
		{lifecycle.OutcomeResetUnreadData, lifecycle.InitiatorLocal, &backend, "reset by postgres[12571]: unread data"},
		{lifecycle.OutcomeResetLinger, lifecycle.InitiatorLocal, &postmaster, "reset by us: linger 0 or disconnect"},
		{lifecycle.OutcomeConnectCancelled, lifecycle.InitiatorLocal, &backend, "connect cancelled by postgres[12571]"},
		{lifecycle.OutcomeResetKeepalive, lifecycle.InitiatorLocal, &backend, "reset by us: keep-alive unanswered"},
		{lifecycle.OutcomeKilled, lifecycle.InitiatorLocal, &backend, "killed by postgres[12571]"},
	} {
		c := &lifecycle.Conn{Shared: &lifecycle.Shared{}, Outcome: tt.outcome, Initiator: tt.initiator, Closer: tt.closer}
		c.Owner = lifecycle.Owner{Task: postmaster, Source: event.OwnerAccept}
		if got := string(appendOutcome(nil, c)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.outcome, got, tt.want)
		}
		if got := render(Options{Format: FormatJSON}, func(w *Writer) { w.Finished(c) }); !strings.Contains(got, tt.want) {
			t.Error(got)
		}
	}
}

// TestSummary: each connection counts once, and what is a part is told as one.
func TestSummary(t *testing.T) {
	s := Totals{Stats: lifecycle.Stats{Events: 53, Open: 6, Held: 1, Lingering: 3}, Listening: 4}
	s.Outcomes[lifecycle.OutcomeTimedOut], s.Outcomes[lifecycle.OutcomeClosed], s.Outcomes[lifecycle.OutcomeOpen] = 1, 4, 9
	for filtered, want := range map[bool]string{
		false: "53 events; 0 lost by the kernel\nconnections: 2 still open, beside 4 in LISTEN; ended: 4 closed, 1 timed out; not gone yet: 1 ended but not closed by their process, 3 in TIME_WAIT or FIN_WAIT2 without a process\n",
		true:  "53 events, those that the filter hides included; 0 lost by the kernel\nconnections: 2 still open, beside 4 in LISTEN; ended: 4 closed, 1 timed out; not gone yet: 1 ended but not closed by their process, 3 in TIME_WAIT or FIN_WAIT2 without a process\n",
	} {
		var b strings.Builder
		s.Filtered = filtered
		Summary(&b, s, &Slow{})
		if got := b.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
