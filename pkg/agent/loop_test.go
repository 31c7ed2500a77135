// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/recording"
	"github.com/stated-tcp/stated/pkg/render"
)

// script gives events, one a read, and says at which of them the loop is.
type script struct {
	events []event.Event
	at     func(*event.Event)
}

func (s *script) Read(e *event.Event) error {
	if len(s.events) == 0 {
		return io.EOF
	}
	*e, s.events = s.events[0], s.events[1:]
	if e.Kind == event.KindNone {
		if s.at != nil {
			s.at(e)
		}
		return event.ErrIdle
	}
	return nil
}

type nobody struct{}

func (nobody) Transition(*lifecycle.Conn, *event.Event) {}
func (nobody) Finished(*lifecycle.Conn)                 {}
func (nobody) Event(*event.Event)                       {}
func (nobody) Idle() error                              { return nil }

// TestSnapshotsFollowLosses: one at the start, one after a loss but not at
// once, one on the schedule, and the error of the last that failed.
func TestSnapshotsFollowLosses(t *testing.T) {
	now := int64(1e9)
	failed := errors.New("no")
	var starts []int64
	loop := &Loop{Table: lifecycle.New(nobody{}, lifecycle.Options{}), Consumer: nobody{},
		Now:           func() (int64, int64) { return now, now },
		Snapshot:      func() error { return failed },
		SnapshotEvery: 5e9,
	}
	source := &script{at: func(*event.Event) { // the loop waits for us: look what it has begun
		if n := len(starts); loop.scan.begun != 0 && (n == 0 || starts[n-1] != loop.scan.begun) {
			starts = append(starts, loop.scan.begun)
		}
		if !loop.scan.running {
			now += 400e6
			return
		}
		for len(loop.scan.done) == 0 { // takes no time by our clock
			runtime.Gosched()
		}
	}}
	for i := range 40 {
		source.events = append(source.events, event.Event{})
		if i == 2 {
			source.events = append(source.events, event.Event{Kind: event.KindLost, Count: 1})
		}
	}
	loop.Source = source
	if err := loop.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(starts) < 3 {
		t.Fatalf("snapshots at %v", starts)
	}
	if d := starts[1] - starts[0]; d < rescanAfter || d > 3e9 {
		t.Errorf("%v after the first", time.Duration(d))
	}
	if d := starts[2] - starts[1]; d < 5e9 {
		t.Errorf("%v after the second", time.Duration(d))
	}
	if !errors.Is(loop.SnapshotErr(), failed) {
		t.Errorf("error %v", loop.SnapshotErr())
	}
}

// TestOpenAfter: what stays in a state is shown once for each, listeners never.
func TestOpenAfter(t *testing.T) {
	var out bytes.Buffer
	trace := &Trace{Out: render.New(&out, render.Options{Location: time.UTC}), Filter: &filter.Filter{}, OpenAfter: 30e9, Events: true}
	trace.Table = lifecycle.New(trace, lifecycle.Options{})
	addr := netip.MustParseAddrPort("192.0.2.1:80")
	state := func(at int64, socket event.SocketID, from, to event.State) event.Event {
		return event.Event{Kind: event.KindState, Time: at * 1e9, Socket: socket, Old: from, New: to, Local: addr, Peer: addr, Protocol: event.ProtoTCP}
	}
	clock := func(at int64) event.Event { return event.Event{Kind: event.KindClock, Time: at * 1e9, Wall: at * 1e9} }
	source := &script{events: []event.Event{
		state(1, 1, event.StateClose, event.StateListen),
		state(1, 2, event.StateClose, event.StateSynSent),
		state(2, 2, event.StateSynSent, event.StateEstablished),
		clock(20), clock(33), clock(34),
		state(40, 2, event.StateEstablished, event.StateCloseWait),
		clock(60), clock(71), clock(100),
	}}
	if err := (&Loop{Source: source, Table: trace.Table, Consumer: trace}).Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	var still []string
	for line := range strings.Lines(out.String()) {
		if _, what, ok := strings.Cut(line, "still in "); ok {
			still = append(still, strings.TrimSpace(what))
		}
	}
	if got := strings.Join(still, ", "); got != "ESTABLISHED 31.0s, CLOSE_WAIT 31.0s" {
		t.Errorf("still in %s", got)
	}
}

// TestOpenAfterByAge: those that become old in the same moment are shown by age.
func TestOpenAfterByAge(t *testing.T) {
	var out bytes.Buffer
	trace := &Trace{Out: render.New(&out, render.Options{Location: time.UTC}), Filter: &filter.Filter{}, OpenAfter: 30e9}
	trace.Table = lifecycle.New(trace, lifecycle.Options{})
	var events []event.Event
	var want []string
	tell := func(kind event.Kind, i, at int) {
		addr := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(4000+i))
		events = append(events, event.Event{Kind: kind, Time: int64(at) * 1e9, Socket: event.SocketID(100 + i),
			Old: event.StateListen, New: event.StateSynRecv, Local: addr, Peer: addr, Protocol: event.ProtoTCP})
	}
	for i := range 9 {
		tell(event.KindState, i, i+1)
		want = append(want, strconv.Itoa(4000+i))
	}
	for i := range 9 { // the table has what was quiet for longer first
		tell(event.KindAccept, 8-i, 20+i)
	}
	events = append(events, event.Event{Kind: event.KindClock, Time: 100e9, Wall: 100e9})
	if err := (&Loop{Source: &script{events: events}, Table: trace.Table, Consumer: trace}).Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		_, port, _ := strings.Cut(line, "192.0.2.1:")
		port, _, _ = strings.Cut(port, " ")
		got = append(got, port)
	}
	if !slices.Equal(got, want) {
		t.Errorf("shown in the order %v", got)
	}
}

// TestStopReadsWhatHappened: what waits in the buffer when the loop is stopped
// is told; what happens later is not.
func TestStopReadsWhatHappened(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	src := &cancelled{cancel: cancel, before: 3000}
	o := &counter{}
	loop := &Loop{Source: src, Table: lifecycle.New(o, lifecycle.Options{}), Consumer: o,
		Now: func() (int64, int64) { return 1_000_000, 0 }}
	if err := loop.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if o.events != src.before {
		t.Errorf("%d events told, %d happened before the stop", o.events, src.before)
	}
}

// cancelled stops the loop at its first event, with others waiting behind it.
type cancelled struct {
	cancel func()
	n      int
	before int
}

func (c *cancelled) Read(e *event.Event) error {
	c.cancel()
	c.n++
	*e = event.Event{Kind: event.KindState, Time: int64(c.n), Socket: event.SocketID(c.n), Old: event.StateClose, New: event.StateListen}
	if c.n > c.before {
		e.Time = 2_000_000
	}
	return nil
}

type counter struct{ events int }

func (c *counter) Event(e *event.Event) {
	if e.Kind == event.KindState {
		c.events++
	}
}
func (c *counter) Idle() error                              { return nil }
func (c *counter) Transition(*lifecycle.Conn, *event.Event) {}
func (c *counter) Finished(*lifecycle.Conn)                 {}

// full is a disk that has room for a header.
type full struct{ left int }

func (f *full) Write(b []byte) (int, error) {
	if f.left--; f.left < 0 {
		return 0, syscall.ENOSPC
	}
	return len(b), nil
}

// TestFullDiskIsToldOnce: a recording that cannot be written ends the loop, and its
// error is told by whom it met first.
func TestFullDiskIsToldOnce(t *testing.T) {
	rec, err := recording.NewWriter(&full{left: 1}, recording.Header{})
	if err != nil {
		t.Fatal(err)
	}
	loop := &Loop{Record: rec, Table: lifecycle.New(nobody{}, lifecycle.Options{}), Consumer: nobody{}}
	events := make([]event.Event, 5000)
	for i := range events {
		events[i] = event.Event{Kind: event.KindClock, Time: int64(i)}
	}
	loop.Source = &script{events: events}
	err = errors.Join(loop.Run(context.Background()), rec.Close())
	if err == nil || !errors.Is(err, syscall.ENOSPC) || strings.Count(err.Error(), "write the recording") != 1 {
		t.Errorf("not told once: %v", err)
	}
}

// TestClockBehindEvents: however late the events come, a cause that stands behind the
// end in the stream counts: time passes with the stream.
func TestClockBehindEvents(t *testing.T) {
	const late = int64(3600e9)
	now := late
	trace := &Trace{Out: render.New(io.Discard, render.Options{}), Filter: &filter.Filter{}}
	trace.Table = lifecycle.New(trace, lifecycle.Options{})
	addr := netip.MustParseAddrPort("192.0.2.1:80")
	source := &script{}
	at := int64(1e9)
	for i := range event.SocketID(2000) {
		change := func(kind event.Kind, from, to event.State) {
			at += 1000
			source.events = append(source.events, event.Event{Kind: kind, Time: at, Socket: i + 1, Old: from, New: to, Local: addr, Peer: addr, Protocol: event.ProtoTCP, Flags: event.FlagTask})
		}
		change(event.KindState, event.StateClose, event.StateSynSent)
		change(event.KindState, event.StateSynSent, event.StateEstablished)
		change(event.KindState, event.StateEstablished, event.StateClose)
		change(event.KindResetSent, event.StateClose, event.StateClose)
		change(event.KindDestroy, event.StateClose, event.StateClose)
	}
	loop := &Loop{Source: source, Table: trace.Table, Consumer: trace, Now: func() (int64, int64) { now += 1000; return now, now }}
	if err := loop.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s := trace.Totals(); s.Outcomes[lifecycle.OutcomeUnknown] != 0 {
		t.Errorf("%d of 2000 ended unknown", s.Outcomes[lifecycle.OutcomeUnknown])
	}
}

// TestClockBehindIdle: what happened while the source said that there is nothing, and
// before the clock was read, has its causes still to come.
func TestClockBehindIdle(t *testing.T) {
	now := int64(1e9)
	trace := &Trace{Out: render.New(io.Discard, render.Options{}), Filter: &filter.Filter{}}
	trace.Table = lifecycle.New(trace, lifecycle.Options{})
	addr := netip.MustParseAddrPort("192.0.2.1:80")
	change := func(kind event.Kind, at int64, from, to event.State) event.Event {
		return event.Event{Kind: kind, Time: at, Socket: 1, Old: from, New: to, Local: addr, Peer: addr, Protocol: event.ProtoTCP, Flags: event.FlagTask}
	}
	source := &script{events: []event.Event{
		change(event.KindState, 1e9+1e6, event.StateClose, event.StateSynSent),
		change(event.KindState, 1e9+2e6, event.StateSynSent, event.StateEstablished),
		change(event.KindState, 1e9+3e6, event.StateEstablished, event.StateClose),
		{}, // the other CPU made the next one 17 ms ago
		change(event.KindResetSent, 1e9+4e6, event.StateClose, event.StateClose),
		{}, {}, {},
	}}
	loop := &Loop{Source: source, Table: trace.Table, Consumer: trace, Now: func() (int64, int64) { return now, now }}
	finished := 0
	source.at = func(*event.Event) {
		now += 20e6
		if s := trace.Totals(); s.Outcomes[lifecycle.OutcomeUnknown] > 0 {
			t.Error("it ended unknown")
		}
		finished = int(trace.Table.Stats().Outcomes[lifecycle.OutcomeResetLinger])
	}
	if err := loop.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s := trace.Totals(); s.Outcomes[lifecycle.OutcomeUnknown] != 0 || finished == 0 {
		t.Errorf("%v, told while idle: %d", s.Outcomes, finished)
	}
}
