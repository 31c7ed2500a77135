// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

var (
	here  = netip.MustParseAddrPort("10.0.0.5:8080")
	there = netip.MustParseAddrPort("10.0.0.9:40001")
	any4  = netip.MustParseAddrPort("0.0.0.0:0")
)

const ownNumber = 1 << 63 // as own_id in bpf/sock.h

// told is an event as names has left it.
func told(e *event.Event) string {
	id := fmt.Sprintf("sk:%d", e.Socket)
	if e.Flags.Has(event.FlagOwnID) {
		id = fmt.Sprintf("own:%d", e.Socket&^ownNumber)
	}
	return fmt.Sprintf("%s %s>%s netns %d", id, e.Old, e.New, e.Netns)
}

// step is an event of the classic tracepoint, or with cookie a sighting.
type step struct {
	own, cookie event.SocketID
	at          int64 // milliseconds; of a sighting, when it was read
	begun       int64 // of a sighting, when it was asked for
	old, new    event.State
	local, peer netip.AddrPort
	netns       uint32
	mini        bool
	want        string // "" nothing is told
}

func (s *step) run(n *names) []event.Event {
	e := event.Event{Kind: event.KindState, Old: s.old, New: s.new, Time: s.at * 1e6, Protocol: event.ProtoTCP, Local: s.local, Peer: s.peer, Netns: s.netns}
	if s.cookie == 0 {
		e.Socket, e.Flags = s.own|ownNumber, event.FlagOwnID|event.FlagPartial
		n.event(&e)
		return []event.Event{e}
	}
	e.Kind, e.Old, e.Socket = event.KindSnapshot, s.new, s.cookie
	if s.mini {
		e.Flags = event.FlagMini
	}
	return n.sighting(&event.Sighting{Event: e}, s.begun*1e6, s.begun*1e6)
}

const (
	ended   = event.StateClose
	listen  = event.StateListen
	synSent = event.StateSynSent
	synRecv = event.StateSynRecv
	estab   = event.StateEstablished
	finWait = event.StateFinWait1
	closeW  = event.StateCloseWait
	timeW   = event.StateTimeWait
)

// Steps of several stories.
var (
	birth   = step{own: 1, at: 100, old: listen, new: synRecv, local: here, want: "own:1 LISTEN>SYN_RECV netns 0"}
	made    = step{own: 1, at: 101, old: synRecv, new: estab, local: here, peer: there, want: "own:1 SYN_RECV>ESTABLISHED netns 0"}
	listens = step{own: 8, at: 90, old: ended, new: listen, local: here, peer: any4, want: "own:8 CLOSE>LISTEN netns 0"}
)

var namesStories = []struct {
	name  string
	steps []step
}{
	{"there before", []step{
		{cookie: 7, at: 1010, begun: 1000, new: estab, local: here, peer: there, netns: 5, want: "sk:7 ESTABLISHED>ESTABLISHED netns 5"},
		{own: 1, at: 2000, old: estab, new: closeW, local: here, peer: there, want: "sk:7 ESTABLISHED>CLOSE_WAIT netns 5"},
		{own: 1, at: 2001, old: closeW, new: ended, local: here, peer: there, want: "sk:7 CLOSE_WAIT>CLOSE netns 5"},
	}},
	{"there before, and an event is missing", []step{
		{cookie: 7, at: 1010, begun: 1000, new: estab, local: here, peer: there, netns: 5, want: "sk:7 ESTABLISHED>ESTABLISHED netns 5"},
		{own: 1, at: 2001, old: closeW, new: ended, local: here, peer: there, want: "sk:7 CLOSE_WAIT>CLOSE netns 5"},
	}},
	{"born before our eyes", []step{
		birth, made,
		{cookie: 7, at: 1010, begun: 1000, new: estab, local: here, peer: there, netns: 5, want: "own:1 ESTABLISHED>ESTABLISHED netns 5"},
		{own: 1, at: 2000, old: estab, new: ended, local: here, peer: there, want: "own:1 ESTABLISHED>CLOSE netns 5"},
	}},
	{"older than the event", []step{
		birth, made,
		{own: 1, at: 1005, old: estab, new: closeW, local: here, peer: there, want: "own:1 ESTABLISHED>CLOSE_WAIT netns 0"},
		{cookie: 7, at: 1010, begun: 1000, new: estab, local: here, peer: there, netns: 5},
		{own: 1, at: 2000, old: closeW, new: ended, local: here, peer: there, want: "own:1 CLOSE_WAIT>CLOSE netns 5"},
	}},
	{"an event is missing", []step{
		birth, made,
		{cookie: 7, at: 1010, begun: 1000, new: closeW, local: here, peer: there, netns: 5, want: "own:1 CLOSE_WAIT>CLOSE_WAIT netns 5"},
	}},
	{"ended meanwhile", []step{
		birth, made,
		{own: 1, at: 1005, old: estab, new: ended, local: here, peer: there, want: "own:1 ESTABLISHED>CLOSE netns 0"},
		{cookie: 7, at: 1010, begun: 1000, new: estab, local: here, peer: there, netns: 5},
	}},
	{"there before and ended meanwhile", []step{
		{own: 1, at: 1005, old: estab, new: ended, local: here, peer: there, want: "own:1 ESTABLISHED>CLOSE netns 0"},
		{cookie: 7, at: 1010, begun: 1000, new: estab, local: here, peer: there, netns: 5},
	}},
	{"ended, and the address is used again", []step{
		birth, made,
		{own: 1, at: 500, old: estab, new: ended, local: here, peer: there, want: "own:1 ESTABLISHED>CLOSE netns 0"},
		{cookie: 7, at: 1010, begun: 1000, new: estab, local: here, peer: there, netns: 5, want: "sk:7 ESTABLISHED>ESTABLISHED netns 5"},
	}},
	{"a client without its port", []step{
		{own: 1, at: 100, old: ended, new: synSent, local: netip.AddrPortFrom(here.Addr(), 0), peer: there, want: "own:1 CLOSE>SYN_SENT netns 0"},
		{cookie: 7, at: 1010, begun: 1000, new: synSent, local: here, peer: there, netns: 5, want: "own:1 SYN_SENT>SYN_SENT netns 5"},
		{own: 1, at: 2000, old: synSent, new: estab, local: here, peer: there, want: "own:1 SYN_SENT>ESTABLISHED netns 5"},
	}},
	{"the same address in two namespaces", []step{
		{cookie: 7, at: 50, begun: 40, new: listen, local: here, peer: any4, netns: 5, want: "sk:7 LISTEN>LISTEN netns 5"},
		listens,
		{cookie: 7, at: 1010, begun: 1000, new: listen, local: here, peer: any4, netns: 5, want: "sk:7 LISTEN>LISTEN netns 5"},
		{cookie: 8, at: 1010, begun: 1000, new: listen, local: here, peer: any4, netns: 6, want: "own:8 LISTEN>LISTEN netns 6"},
		{own: 9, at: 2000, old: listen, new: ended, local: here, peer: any4, want: "sk:7 LISTEN>CLOSE netns 5"},
	}},
	{"which of two", []step{
		listens,
		{own: 9, at: 91, old: ended, new: listen, local: here, peer: any4, want: "own:9 CLOSE>LISTEN netns 0"},
		{cookie: 7, at: 1010, begun: 1000, new: listen, local: here, peer: any4, netns: 5,
			want: "own:9 LISTEN>LISTEN netns 0, own:8 LISTEN>LISTEN netns 0"},
		{own: 8, at: 2000, old: listen, new: ended, local: here, peer: any4, want: "own:8 LISTEN>CLOSE netns 0"},
		{cookie: 7, at: 3010, begun: 3000, new: listen, local: here, peer: any4, netns: 5, want: "own:9 LISTEN>LISTEN netns 5"},
	}},
	{"TIME_WAIT", []step{
		{cookie: 7, at: 1010, begun: 1000, new: timeW, local: here, peer: there, netns: 5, mini: true, want: "sk:7 TIME_WAIT>TIME_WAIT netns 5"},
	}},
	{"TIME_WAIT that a new connection ended", []step{
		{own: 1, at: 1004, old: listen, new: synRecv, local: here, want: "own:1 LISTEN>SYN_RECV netns 0"},
		{own: 1, at: 1005, old: synRecv, new: estab, local: here, peer: there, want: "own:1 SYN_RECV>ESTABLISHED netns 0"},
		{cookie: 7, at: 1010, begun: 1000, new: timeW, local: here, peer: there, netns: 5, mini: true},
	}},
	{"TIME_WAIT of which the end was not told", []step{
		{cookie: 7, at: 10, begun: 1, new: estab, local: here, peer: there, netns: 5, want: "sk:7 ESTABLISHED>ESTABLISHED netns 5"},
		{cookie: 7, at: 1010, begun: 1000, new: timeW, local: here, peer: there, netns: 5, mini: true, want: "sk:7 TIME_WAIT>TIME_WAIT netns 5"},
		{own: 1, at: 2000, old: listen, new: synRecv, local: here, want: "own:1 LISTEN>SYN_RECV netns 0"},
		{own: 1, at: 2001, old: synRecv, new: estab, local: here, peer: there, want: "own:1 SYN_RECV>ESTABLISHED netns 0"},
		{own: 1, at: 2002, old: estab, new: closeW, local: here, peer: there, want: "own:1 ESTABLISHED>CLOSE_WAIT netns 0"},
	}},
	{"half-open", []step{{cookie: 7, at: 1010, begun: 1000, new: synRecv, local: here, peer: there, netns: 5, mini: true}}},
}

func TestNames(t *testing.T) {
	for _, tt := range namesStories {
		n := newNames()
		n.look()
		for i := range tt.steps {
			var got string
			for j, e := range tt.steps[i].run(n) {
				if j > 0 {
					got += ", "
				}
				got += told(&e)
			}
			if got != tt.steps[i].want {
				t.Errorf("%s, step %d: %q, want %q", tt.name, i, got, tt.steps[i].want)
			}
		}
	}
}

// TestNamesForget: what two complete looks did not show is forgotten; nothing is
// left behind.
func TestNamesForget(t *testing.T) {
	n := newNames()
	n.look()
	shown := step{cookie: 7, at: 1010, begun: 1000, new: estab, local: here, peer: there, netns: 5}
	shown.run(n)
	n.looked(1000e6, true)
	for i, want := range []int{1, 1, 0} {
		n.look()
		n.looked(int64(2+i)*1000e6, i != 0)
		if len(n.byCookie) != want || len(n.byTuple) != want {
			t.Errorf("after look %d: %d, %d, want %d", i, len(n.byCookie), len(n.byTuple), want)
		}
	}
}

// TestNamesForgetByNamespace: a look that is not complete, as each may be for ever,
// forgets what is in the namespaces that it did list.
func TestNamesForgetByNamespace(t *testing.T) {
	for _, tt := range []struct {
		name     string
		netns    uint32 // of the socket; 0 it was never shown
		listed   []uint32
		complete bool
		want     int
	}{
		{"listed", 5, []uint32{4, 5}, false, 0},
		{"not listed", 5, []uint32{4}, false, 1},
		{"it has gone", 5, []uint32{4}, true, 0},
		{"never shown", 0, []uint32{4, 5}, false, 1},
		{"never shown, in no namespace", 0, []uint32{4, 5}, true, 0},
	} {
		n := newNames()
		s := step{own: 1, at: 100, old: ended, new: synSent, local: here, peer: there}
		if tt.netns != 0 {
			s = step{cookie: 7, at: 110, begun: 100, new: estab, local: here, peer: there, netns: tt.netns}
		}
		s.run(n)
		for look := int64(1); look <= 3; look++ {
			n.look()
			for _, netns := range tt.listed {
				n.showed(netns, look*1000e6)
			}
			n.looked(look*1000e6, tt.complete)
		}
		if got := len(n.byCookie) + len(n.byOwn); got != tt.want || len(n.byTuple) != tt.want {
			t.Errorf("%s: %d left", tt.name, got)
		}
	}
}

// TestNamesBound: if no end was ever told and no look complete, there is still a
// bound.
func TestNamesBound(t *testing.T) {
	n := newNames()
	n.limit = 100
	n.look()
	last := func(i int64) step {
		return step{own: event.SocketID(i), at: i, old: ended, new: synSent, peer: there, local: netip.AddrPortFrom(here.Addr(), uint16(i))}
	}
	for i := int64(1); i <= 1000; i++ {
		s := last(i)
		s.run(n)
		shown := step{cookie: event.SocketID(i), at: i, begun: i, new: estab, netns: 5, peer: there, local: netip.AddrPortFrom(there.Addr(), uint16(i))}
		shown.run(n)
		gone := step{own: event.SocketID(5000 + i), at: i, old: estab, new: ended, local: here, peer: netip.AddrPortFrom(there.Addr(), uint16(i))}
		gone.run(n)
	}
	if len(n.byOwn) > 100 || len(n.byCookie) > 100 || len(n.byTuple) > 200 || len(n.ended) > 100 {
		t.Errorf("%d, %d, %d, %d", len(n.byOwn), len(n.byCookie), len(n.byTuple), len(n.ended))
	}
	if n.byOwn[1000|ownNumber] == nil || n.byCookie[1000] == nil {
		t.Error("the last are not there")
	}
}

// TestNamesAlike: a thousand clients that connect to one peer, which are alike as
// long as their ports are not told, make no more events than there are of them,
// whatever is shown; and each is known to be there.
func TestNamesAlike(t *testing.T) {
	const clients = 1000
	n := newNames()
	client := func(i int) step {
		return step{own: event.SocketID(i + 1), at: 100, old: ended, new: synSent, local: netip.AddrPortFrom(here.Addr(), 0), peer: there}
	}
	for i := range clients {
		s := client(i)
		s.run(n)
	}
	for look := int64(1); look <= 2; look++ {
		n.look()
		seen, events := make(map[event.SocketID]bool), 0
		for i := range clients {
			s := step{cookie: event.SocketID(100 + i), at: look*1000 + int64(i), begun: look * 1000, new: synSent, netns: 5,
				local: netip.AddrPortFrom(here.Addr(), uint16(1000+i)), peer: there}
			for _, e := range s.run(n) {
				seen[e.Socket] = true
				events++
			}
			if i == clients/2 { // one more, meanwhile
				late := client(clients)
				late.run(n)
				late.at, late.old, late.new = 101, synSent, ended
				late.run(n)
			}
		}
		n.looked(look*1000e6, true)
		if len(seen) < clients || events > clients+1 {
			t.Errorf("look %d: %d events of %d sockets", look, events, len(seen))
		}
	}
	for i := range clients {
		s := client(i)
		s.at, s.old, s.new = 5000, synSent, ended
		s.run(n)
	}
	if len(n.byOwn)+len(n.byCookie)+len(n.byTuple)+len(n.ended) != 0 {
		t.Errorf("left %d, %d, %d, %d", len(n.byOwn), len(n.byCookie), len(n.byTuple), len(n.ended))
	}
}

// realSocket is a socket as it is, and the number under which it is told.
type realSocket struct {
	step
	id event.SocketID
}

// manyReal are some, of which a part was there before.
func manyReal(n *names, r *rand.Rand, now int64) (sockets []*realSocket) {
	for i := range 20 {
		s := &realSocket{step: step{own: event.SocketID(i + 1), cookie: event.SocketID(100 + i), new: estab, netns: 5,
			local: netip.AddrPortFrom(here.Addr(), uint16(1000+i)), peer: there}}
		if r.IntN(2) == 0 {
			e := s.step
			e.cookie, e.at, e.old, e.new = 0, now, ended, synSent
			e.run(n)
			e.old, e.new = synSent, estab
			s.id = e.run(n)[0].Socket
		}
		sockets = append(sockets, s)
	}
	return sockets
}

// TestNamesModel: whatever is lost, shown late or shown twice, each socket is told
// under one number, and in the end nothing is left.
func TestNamesModel(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		n := newNames()
		now := int64(1000)
		sockets := manyReal(n, r, now)
		check := func(s *realSocket, events []event.Event) {
			for _, e := range events {
				if s.id == 0 {
					s.id = e.Socket
				}
				if e.Socket != s.id {
					t.Fatalf("seed %d: %v told as %x and %x", seed, s.local, s.id, e.Socket)
				}
			}
		}
		for range 100 {
			now += 100
			s := sockets[r.IntN(len(sockets))]
			if s.new == ended {
				continue
			}
			if r.IntN(2) == 0 {
				n.look()
				seen := s.step
				seen.at, seen.begun = now, now-10
				check(s, seen.run(n))
				n.looked((now-10)*1e6, false)
				continue
			}
			e := s.step
			e.cookie, e.at, e.old = 0, now, s.new
			e.new = map[event.State]event.State{estab: finWait, finWait: ended}[s.new]
			s.new = e.new
			check(s, e.run(n))
		}
		for _, s := range sockets {
			if s.new != ended {
				e := s.step
				e.cookie, e.at, e.old, e.new = 0, now+1000, s.new, ended
				check(s, e.run(n))
			}
		}
		if len(n.byOwn)+len(n.byCookie)+len(n.byTuple)+len(n.ended) != 0 {
			t.Errorf("seed %d: left %d, %d, %d, %d", seed, len(n.byOwn), len(n.byCookie), len(n.byTuple), len(n.ended))
		}
	}
}
