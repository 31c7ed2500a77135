// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

// The memory budget: what a connection may take of the heap, all included.
const (
	maxOpen      = 300 // bytes, in the table
	maxLingering = 150 // bytes, left behind in TIME_WAIT
)

// TestMemory holds the table to its budget: with the connections of 50
// processes, half of them clients, a quarter IPv6. A map of Go has most room to
// spare right after it grew, as it has with 120,000.
func TestMemory(t *testing.T) {
	for _, n := range []int{100_000, 120_000} {
		open, lingering := heap(n, established), heap(n, closed)
		t.Logf("%d connections: open %d B, in TIME_WAIT %d B each", n, open, lingering)
		if open > maxOpen || lingering > maxLingering {
			t.Errorf("%d connections: open %d B, at most %d; in TIME_WAIT %d B, at most %d", n, open, maxOpen, lingering, maxLingering)
		}
	}
}

// BenchmarkMemory tells what TestMemory holds to its budget.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(float64(heap(100_000, established)), "B/open")
		b.ReportMetric(float64(heap(100_000, closed)), "B/lingering")
	}
}

// heap returns how many bytes a connection takes of which these events are told.
func heap(n int, events func(i int, time int64) []event.Event) int {
	live := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what the first one only found to be garbage
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := live()
	table := New(nobody{}, Options{SeesTimeWait: true})
	for i := range n {
		for _, e := range events(i, 1e12+int64(i)*100_000) {
			table.Apply(&e)
		}
	}
	after := live()
	if s := table.Stats(); s.Open+s.Lingering < n {
		panic("not all are in the table")
	}
	return (after - before) / n
}

// established are the events of connection i until it is open, in the order and
// with the facts that the kernel side tells: of a client, or of a server's side.
func established(i int, time int64) []event.Event {
	task := event.Task{PID: uint32(1000 + i%50), Start: int64(1+i%50) * 1e9, Comm: event.MakeComm("server")}
	e := event.Event{
		Kind: event.KindState, Time: time, Socket: event.SocketID(i + 1), Netns: 4026531840, Protocol: event.ProtoTCP, Family: 2,
		Local: netip.AddrPortFrom(address(1, i), 8080), Peer: netip.AddrPortFrom(address(i, i), uint16(32768+i%28000)),
		UID: uint32(1000 + i%5), Cgroup: uint64(5000 + i%50), SRTT: 11_800, BytesSent: 512, BytesReceived: 34_000,
		Task: task, Owner: task, OwnerSource: event.OwnerListener,
	}
	if e.Local.Addr().Is6() {
		e.Family = 10
	}
	events := make([]event.Event, 0, 8)
	add := func(change func(*event.Event)) {
		next := e
		next.Time += int64(len(events)) * 1000
		change(&next)
		events = append(events, next)
	}
	step := func(from, to event.State) { add(func(e *event.Event) { e.Old, e.New = from, to }) }
	if i%2 == 0 {
		e.Local, e.Peer, e.OwnerSource, e.Flags = e.Peer, e.Local, event.OwnerConnect, event.FlagTask
		step(event.StateClose, event.StateSynSent)
		e.Flags = 0
		step(event.StateSynSent, event.StateEstablished)
		return events
	}
	add(func(e *event.Event) { e.Kind, e.Flags, e.Task = event.KindRequest, event.FlagMini, event.Task{} })
	step(event.StateListen, event.StateSynRecv)
	step(event.StateSynRecv, event.StateEstablished)
	add(func(e *event.Event) { e.Kind, e.Flags, e.FD = event.KindAccept, event.FlagTask, 7 })
	return events
}

// closed are the events of connection i until it is left behind in TIME_WAIT.
func closed(i int, time int64) []event.Event {
	events := established(i, time)
	e := events[len(events)-1]
	e.Kind, e.Flags = event.KindState, event.FlagTask
	for _, s := range []event.State{event.StateFinWait1, event.StateFinWait2} {
		e.Old, e.New, e.Time = event.StateEstablished, s, e.Time+1000
		if s == event.StateFinWait2 {
			e.Old, e.Flags = event.StateFinWait1, 0
		}
		events = append(events, e)
	}
	e.Time += 1000
	e.Kind, e.Old, e.New = event.KindTimeWait, event.StateNone, event.StateTimeWait
	events = append(events, e)
	e.Kind, e.Old, e.New, e.Flags = event.KindState, event.StateFinWait2, event.StateClose, event.FlagDead|event.FlagDone
	return append(events, e)
}

// address is an address of this host or of peer i; each fourth is IPv6.
func address(host, i int) netip.Addr {
	if i%8 < 2 {
		a := [16]byte{0x20, 1, 0xd, 0xb8}
		binary.BigEndian.PutUint32(a[12:], uint32(host))
		return netip.AddrFrom16(a)
	}
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24|uint32(host))
	return netip.AddrFrom4(a)
}

// TestFull: which of its two tables was full is counted apart, and what is left
// behind in one does not push connections out of the other.
func TestFull(t *testing.T) {
	table := New(nobody{}, Options{MaxConns: 2, SeesTimeWait: true})
	for i := range 5 {
		events := closed(i, int64(1+i)*1e9)
		for j := range events {
			table.Apply(&events[j])
		}
	}
	if s := table.Stats(); s.Lingering != 2 || s.Unfollowed != 3 || s.Evicted != 0 {
		t.Errorf("%d in TIME_WAIT, %d not followed, %d given up; want 2, 3, 0", s.Lingering, s.Unfollowed, s.Evicted)
	}
}

// TestTwins: lingers are found and forgotten by their addresses, also where
// these were chosen so that all have the same hash.
func TestTwins(t *testing.T) {
	var x index
	var all []*linger
	for i := range 4 {
		l := &linger{Shared: &unknown, local: EndpointOf(netip.AddrPortFrom(address(1, 2), uint16(i))), peer: Endpoint{known: true}}
		binary.LittleEndian.PutUint64(l.peer.addr[8:], saltB) // makes the last product 0
		all = append(all, l)
		x.put(l)
	}
	if len(x.hashes) != 1 {
		t.Fatalf("%d hashes: these are no twins", len(x.hashes))
	}
	for i, l := range all { // the one with the hash first
		for j, other := range all {
			if got := x.get(other.key()); j < i && got != nil || j >= i && got != other {
				t.Errorf("%d forgotten: %d is %+v", i, j, got)
			}
		}
		x.delete(l)
	}
	if len(x.hashes)+len(x.twins) != 0 {
		t.Errorf("%d and %d left", len(x.hashes), len(x.twins))
	}
}

// BenchmarkApply applies all events of connections that come and go, one by one.
func BenchmarkApply(b *testing.B) {
	const connections = 20_000
	scripts := make([][]event.Event, connections)
	events := 0
	for i := range scripts {
		scripts[i] = closed(i, 0)
		events += len(scripts[i])
	}
	table := New(nobody{}, Options{SeesTimeWait: true})
	now := int64(1e12)
	var e event.Event
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		for j := range scripts[i%connections] {
			e = scripts[i%connections][j]
			now += 10_000
			e.Time = now
			table.Apply(&e)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(float64(events)/connections), "ns/event")
}
