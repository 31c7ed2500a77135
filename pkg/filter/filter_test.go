// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestJSON: what a recording keeps of the filter is all of it.
func TestJSON(t *testing.T) {
	if text, err := json.Marshal(&Filter{}); err != nil || string(text) != "{}" {
		t.Errorf("all: %s, %v", text, err)
	}
	full := Filter{
		Filter: event.Filter{Family: 4, Netns: 1, Cgroup: 2, Ports: []uint16{3}, Local: []uint16{4}, Remote: []uint16{5},
			Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, PIDs: []uint32{6}, Tree: true, Comms: []string{"nginx"}},
		States: event.SetOf(event.StateCloseWait, event.StateTimeWait), MinDuration: time.Second,
		Roles: []lifecycle.Role{lifecycle.RoleClient, lifecycle.RoleUnknown},
	}
	for v, i := reflect.ValueOf(full.Filter), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not tested", v.Type().Field(i).Name)
		}
	}
	text, err := json.Marshal(&full)
	if err != nil {
		t.Fatal(err)
	}
	var again Filter
	if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(again, full) {
		t.Errorf("%s: %+v, %v", text, again, err)
	}
}

// TestAlso: both must want it.
func TestAlso(t *testing.T) {
	c := &lifecycle.Conn{Shared: &lifecycle.Shared{Owner: lifecycle.Owner{Task: event.Task{PID: 7}, Source: event.OwnerConnect}},
		Role: lifecycle.RoleClient, State: event.StateClose, End: 9e9,
		Spans: lifecycle.PathOf(lifecycle.Span{Start: 1e9, State: event.StateSynSent})}
	pid := func(pid uint32) Filter { return Filter{Filter: event.Filter{PIDs: []uint32{pid}}} }
	for _, test := range []struct {
		one, other Filter
		want       bool
	}{
		{Filter{}, pid(7), true},
		{pid(7), Filter{Roles: []lifecycle.Role{lifecycle.RoleClient}}, true},
		{pid(7), pid(8), false},
		{Filter{}, Filter{Roles: []lifecycle.Role{lifecycle.RoleServer}}, false},
		{Filter{}, Filter{States: event.SetOf(event.StateCloseWait)}, false},
		{Filter{}, Filter{MinDuration: 9 * time.Second}, false},
		{pid(7), Filter{MinDuration: 8 * time.Second, States: event.SetOf(event.StateSynSent)}, true},
	} {
		for range 2 {
			f := test.one
			f.Also = &test.other
			if got := f.Finished(c); got != test.want {
				t.Errorf("%+v and %+v: %v", test.one, test.other, got)
			}
			test.one, test.other = test.other, test.one
		}
	}
}

// TestHolders: of a socket that was there before, of which nobody saw who got it, each
// process that has it is one that was asked for.
func TestHolders(t *testing.T) {
	table := lifecycle.New(nobody{}, lifecycle.Options{})
	at := netip.MustParseAddrPort
	hold := event.Event{Kind: event.KindHolder, Time: 1e9, Socket: 77, Old: event.StateEstablished, New: event.StateEstablished, Protocol: event.ProtoTCP,
		Family: 2, Netns: 1, Local: at("192.0.2.1:80"), Peer: at("192.0.2.2:4000")}
	for _, pid := range []uint32{10, 11, 12} {
		hold.Task = event.Task{PID: pid, Start: int64(pid), Comm: event.MakeComm("worker")}
		table.Apply(&hold)
	}
	c := table.Get(77)
	for pid, want := range map[uint32]Verdict{10: Yes, 11: Yes, 12: Yes, 13: Open} {
		f := Filter{Filter: event.Filter{PIDs: []uint32{pid}, Comms: []string{"worker"}}}
		if got := f.Conn(c); got != want {
			t.Errorf("of process %d: %v, want %v", pid, got, want)
		}
	}
	accept := hold
	accept.Kind, accept.Time, accept.Task = event.KindAccept, 2e9, event.Task{PID: 13, Start: 13}
	table.Apply(&accept)
	for pid, want := range map[uint32]Verdict{11: No, 13: Yes} {
		f := Filter{Filter: event.Filter{PIDs: []uint32{pid}}}
		if got := f.Conn(c); got != want {
			t.Errorf("of process %d, now that one is known to have accepted it: %v, want %v", pid, got, want)
		}
	}
}

type nobody struct{}

func (nobody) Transition(*lifecycle.Conn, *event.Event) {}
func (nobody) Finished(*lifecycle.Conn)                 {}
