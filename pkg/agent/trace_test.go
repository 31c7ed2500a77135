// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

// found are sockets that were there before: the peer's port tells them apart.
func found() (out []event.Event) {
	for i, source := range []event.OwnerSource{event.OwnerUnknown, event.OwnerListener, event.OwnerHolder, event.OwnerHolder} {
		e := oldSocket(event.KindSnapshot, 2, i)
		if source != event.OwnerUnknown {
			e.Owner, e.OwnerSource = event.Task{PID: 7, Comm: event.MakeComm("other")}, source
		}
		if i == 3 {
			e.Owner.PID = 8
		}
		out = append(out, e)
	}
	return out
}

func oldSocket(kind event.Kind, at int64, i int) event.Event {
	return event.Event{Kind: kind, Time: at * 1e9, Socket: event.SocketID(i + 1), Old: event.StateEstablished, New: event.StateEstablished, Protocol: event.ProtoTCP,
		Family: 2, Local: netip.MustParseAddrPort("192.0.2.1:80"), Peer: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(4000+i))}
}

// run returns what trace shows: of each line the peer's port and what is said.
func (t *Trace) run(events ...event.Event) (shown []string, err error) {
	var out bytes.Buffer
	t.Out = render.New(&out, render.Options{Location: time.UTC})
	t.Table = lifecycle.New(t, lifecycle.Options{})
	err = (&Loop{Source: &script{events: events}, Table: t.Table, Consumer: t}).Run(context.Background())
	for line := range strings.Lines(out.String()) {
		if _, what, ok := strings.Cut(line, "192.0.2.2:"); ok {
			shown = append(shown, strings.Join(strings.Fields(what), " "))
		}
	}
	return shown, err
}

// TestFoundAndFiltered: of the sockets that were there before those are shown that
// match as far as is known, and later those that come to match.
func TestFoundAndFiltered(t *testing.T) {
	clock := event.Event{Kind: event.KindClock, Time: 9e9, Wall: 9e9}
	accept := oldSocket(event.KindAccept, 3, 0)
	accept.Task = event.Task{PID: 8, Comm: event.MakeComm("other")}
	fin := oldSocket(event.KindState, 4, 0)
	fin.New, fin.Owner, fin.OwnerSource = event.StateCloseWait, accept.Task, event.OwnerAccept
	later := []event.Event{accept, fin}

	existing := Trace{Existing: true}
	events := Trace{Existing: true, Events: true}
	open := Trace{OpenAfter: 1e9}
	for _, test := range []struct {
		name   string
		trace  Trace
		filter filter.Filter
		later  []event.Event
		want   string
	}{
		{"all", existing, filter.Filter{}, nil, "4000 4001 4002 4003"},
		{"existing, no such process", existing, filter.Filter{Filter: event.Filter{PIDs: []uint32{9}}}, later, ""},
		{"existing, no such name", existing, filter.Filter{Filter: event.Filter{Comms: []string{"none"}}}, later, ""},
		{"existing, client", existing, filter.Filter{Roles: []lifecycle.Role{lifecycle.RoleClient}}, later, ""},
		{"existing, unknown role", existing, filter.Filter{Roles: []lifecycle.Role{lifecycle.RoleUnknown}}, nil, "4000 4001 4002 4003"},
		{"existing, inferred", existing, filter.Filter{Filter: event.Filter{PIDs: []uint32{7}}}, nil, "4001 4002"},
		{"existing, holder", existing, filter.Filter{Filter: event.Filter{PIDs: []uint32{8}}}, nil, "4003"},
		{"existing, in another state", existing, filter.Filter{States: event.SetOf(event.StateCloseWait)}, nil, ""},
		{"existing, in that state", existing, filter.Filter{States: event.SetOf(event.StateEstablished)}, nil, "4000 4001 4002 4003"},
		{"existing, not for so long", existing, filter.Filter{MinDuration: time.Hour}, nil, ""},
		{"events, no such process", events, filter.Filter{Filter: event.Filter{PIDs: []uint32{9}}}, later, ""},
		{"events, client", events, filter.Filter{Roles: []lifecycle.Role{lifecycle.RoleClient}}, later, ""},
		{"events, accepted later", events, filter.Filter{Filter: event.Filter{PIDs: []uint32{8}}}, later, "4003 4000 4000"},
		{"open, no such process", open, filter.Filter{Filter: event.Filter{PIDs: []uint32{9}}}, later, ""},
		{"open, client", open, filter.Filter{Roles: []lifecycle.Role{lifecycle.RoleClient}}, nil, ""},
		{"open, accepted later", open, filter.Filter{Filter: event.Filter{PIDs: []uint32{8}}}, []event.Event{accept}, "4000 4003"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.trace.Filter = &test.filter
			shown, err := test.trace.run(append(append(found(), test.later...), clock)...)
			if err != nil {
				t.Fatal(err)
			}
			var ports []string
			for _, line := range shown {
				port, _, _ := strings.Cut(line, " ")
				ports = append(ports, port)
			}
			if !test.trace.Events {
				slices.Sort(ports)
			}
			if got := strings.Join(ports, " "); got != test.want {
				t.Errorf("%s, want %s; of:\n%s", got, test.want, strings.Join(shown, "\n"))
			}
		})
	}
}

// TestCountsWhatIsWanted: of connections those that the filter wants, open, ended or
// left behind, in their states and after their time.
func TestCountsWhatIsWanted(t *testing.T) {
	state := func(at int64, i int, from, to event.State, flags event.Flags) event.Event {
		e := oldSocket(event.KindState, at, i)
		e.Old, e.New, e.Flags = from, to, flags
		e.Owner, e.OwnerSource = event.Task{PID: uint32(7 + i), Comm: event.MakeComm("other")}, event.OwnerConnect
		return e
	}
	var events []event.Event
	for i := range 3 { // 7 stays open, 8 is left in TIME_WAIT, 9 has ended but not closed, 10 listens
		events = append(events, state(1, i, event.StateClose, event.StateSynSent, 0), state(2, i, event.StateSynSent, event.StateEstablished, 0))
	}
	events = append(events,
		state(3, 1, event.StateEstablished, event.StateFinWait1, 0),
		state(4, 1, event.StateFinWait1, event.StateFinWait2, 0),
		state(5, 1, event.StateFinWait2, event.StateClose, event.FlagDead|event.FlagDone),
		state(6, 2, event.StateEstablished, event.StateClose, 0),
		state(7, 3, event.StateClose, event.StateListen, 0),
		event.Event{Kind: event.KindClock, Time: 9e9, Wall: 9e9})
	pid := func(pid uint32) filter.Filter { return filter.Filter{Filter: event.Filter{PIDs: []uint32{pid}}} }
	for _, test := range []struct {
		name                                string
		filter                              filter.Filter
		open, listen, held, lingering, done int
		hides                               bool
	}{
		{"all", filter.Filter{}, 2, 1, 1, 1, 2, false},
		{"open", pid(7), 1, 0, 0, 0, 0, true},
		{"left behind", pid(8), 0, 0, 0, 1, 1, true},
		{"held", pid(9), 0, 0, 1, 0, 1, true},
		{"listens", pid(10), 1, 1, 0, 0, 0, true},
		{"nobody", pid(11), 0, 0, 0, 0, 0, true},
		{"state", filter.Filter{States: event.SetOf(event.StateFinWait1)}, 0, 0, 0, 0, 1, true},
		{"ended", filter.Filter{States: event.SetOf(event.StateClose)}, 0, 0, 1, 0, 2, true},
		{"lasting", filter.Filter{MinDuration: 6 * time.Second}, 1, 0, 0, 0, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			trace := &Trace{Filter: &test.filter}
			if _, err := trace.run(events...); err != nil {
				t.Fatal(err)
			}
			s := trace.Totals()
			done := 0
			for _, n := range s.Outcomes {
				done += int(n)
			}
			if s.Open != test.open || s.Listening != test.listen || s.Held != test.held || s.Lingering != test.lingering || done != test.done || s.Filtered != test.hides {
				t.Errorf("%d open of which %d listen, %d held, %d left behind, %d ended, hides %v", s.Open, s.Listening, s.Held, s.Lingering, done, s.Filtered)
			}
			if all := trace.Table.Stats(); !s.Filtered && s.Stats != all {
				t.Errorf("without a filter %+v, not %+v", s, all)
			}
		})
	}
}
