// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"math"
	"net/netip"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

func TestProgress(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after Count
		want          Progress
	}{
		{"none of many", Count{Conns: 100, Leaked: 50}, Count{Conns: 100}, Fixed},
		{"just enough", Count{Conns: 5, Leaked: 5}, Count{Conns: 5}, Fixed}, // 1 of 32
		{"not enough", Count{Conns: 4, Leaked: 4}, Count{Conns: 4}, TooLittle},
		{"seldom, seen shortly", Count{Conns: 1000, Leaked: 10}, Count{Conns: 50}, TooLittle},
		{"seldom, seen for as long", Count{Conns: 1000, Leaked: 10}, Count{Conns: 1000}, Fixed},
		{"leaked before it was watched", Count{Conns: 100, Leaked: 50}, Count{Conns: 100, Old: 1}, Better},
		{"half", Count{Conns: 100, Leaked: 50}, Count{Conns: 100, Leaked: 20}, Better},
		{"alike", Count{Conns: 100, Leaked: 50}, Count{Conns: 200, Leaked: 100}, Same},
		{"more load, not more of it", Count{Conns: 100, Leaked: 10}, Count{Conns: 1000, Leaked: 100}, Same},
		{"more", Count{Conns: 100, Leaked: 10}, Count{Conns: 100, Leaked: 40}, Worse},
		{"new", Count{Conns: 100}, Count{Conns: 100, Leaked: 40}, Worse},
		{"one new", Count{Conns: 100}, Count{Conns: 100, Leaked: 1}, TooLittle},
		{"certain but small", Count{Conns: 1e6, Leaked: 1e5}, Count{Conns: 1e6, Leaked: 105_000}, Same},
		{"only from before", Count{Old: 9}, Count{Conns: 100}, TooLittle},
		{"nothing after", Count{Conns: 100, Leaked: 50}, Count{}, TooLittle},
	} {
		if got := progress(&tt.before, &tt.after); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestBinomial(t *testing.T) {
	for _, tt := range []struct {
		n, k int
		p    float64
		want float64
	}{{5, 0, 0.5, 1.0 / 32}, {5, 5, 0.5, 1}, {5, -1, 0.5, 0}, {3, 1, 0.25, 27.0/64 + 27.0/64}, {0, 0, 0.5, 1}} {
		if got := binomial(tt.n, tt.k, tt.p); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("at most %d of %d at %v: %v, want %v", tt.k, tt.n, tt.p, got, tt.want)
		}
	}
}

// TestTally drives connections of each kind through a table.
func TestTally(t *testing.T) {
	tally := NewTally(30 * second)
	table := lifecycle.New(tally, lifecycle.Options{})
	at := func(time int64, e event.Event) {
		e.Time = time * second
		e.Netns, e.Protocol = 1, event.ProtoTCP
		tally.Event(&e)
		table.Apply(&e)
	}
	local, peer := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:443")
	app := event.Task{PID: 9, Start: 1, Comm: event.MakeComm("app")}
	state := func(time int64, id event.SocketID, from, to event.State, flags event.Flags) {
		at(time, event.Event{Kind: event.KindState, Socket: id, Old: from, New: to, Flags: flags, Local: local, Peer: peer,
			Owner: app, OwnerSource: event.OwnerConnect})
	}
	open := func(time int64, id event.SocketID) {
		state(time, id, event.StateClose, event.StateSynSent, event.FlagTask)
		state(time, id, event.StateSynSent, event.StateEstablished, 0)
	}
	at(100, event.Event{Kind: event.KindClock, Wall: 1})
	at(100, event.Event{Kind: event.KindSnapshot, Socket: 1, Old: event.StateCloseWait, New: event.StateCloseWait, Local: local, Peer: peer,
		Owner: app, OwnerSource: event.OwnerHolder}) // from before, stays: of an unknown side
	for id := event.SocketID(2); id <= 7; id++ {
		open(101, id)
	}
	for id := event.SocketID(2); id <= 4; id++ {
		state(102, id, event.StateEstablished, event.StateCloseWait, event.FlagDone)
	}
	// 11 is disconnected, its descriptor kept.
	open(102, 11)
	state(103, 11, event.StateEstablished, event.StateClose, event.FlagTask)
	at(103, event.Event{Kind: event.KindResetSent, Socket: 11, Old: event.StateClose, New: event.StateClose, Reset: event.ResetState})
	// 2 stays. 3 is closed late, 4 in time.
	state(103, 4, event.StateCloseWait, event.StateLastAck, event.FlagTask|event.FlagDead)
	state(103, 4, event.StateLastAck, event.StateClose, event.FlagDead)
	state(140, 3, event.StateCloseWait, event.StateLastAck, event.FlagTask|event.FlagDead)
	state(140, 3, event.StateLastAck, event.StateClose, event.FlagDead)
	// 5 is reset and never closed, 6 is reset and closed, 7 stays open.
	state(104, 5, event.StateEstablished, event.StateClose, 0)
	state(104, 6, event.StateEstablished, event.StateClose, 0)
	at(105, event.Event{Kind: event.KindDestroy, Socket: 6})
	// 8 is refused: never a connection.
	state(106, 8, event.StateClose, event.StateSynSent, event.FlagTask)
	state(106, 8, event.StateSynSent, event.StateClose, event.FlagDead)
	// 9 entered CLOSE_WAIT too late to tell, 10 ended as late.
	open(141, 10)
	state(141, 10, event.StateEstablished, event.StateCloseWait, event.FlagDone)
	state(141, 10, event.StateCloseWait, event.StateLastAck, event.FlagTask|event.FlagDead)
	state(141, 10, event.StateLastAck, event.StateClose, event.FlagDead)
	open(141, 9)
	state(142, 9, event.StateEstablished, event.StateCloseWait, event.FlagDone)
	at(150, event.Event{Kind: event.KindClock, Wall: 2})
	table.Flush()
	tally.End(table)
	if tally.Span() != 50*second || len(tally.Lines) != 1 {
		t.Fatalf("%d lines in %d ns: %v", len(tally.Lines), tally.Span(), tally.Lines)
	}
	got := tally.Lines[Line{app.Comm, lifecycle.RoleClient, peer}]
	if want := (Count{Conns: 6, Leaked: 3, Old: 1, Left: 3}); got == nil || *got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if changes, clean := Compare(tally, NewTally(1)); len(changes) != 1 || clean != 0 || changes[0].Progress != TooLittle {
		t.Errorf("%+v, %d clean", changes, clean)
	}
}
