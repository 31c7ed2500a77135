// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// latency bounds how long an event may wait in the ring buffer: the kernel side
// wakes us only when much is waiting.
const latency = 25 * time.Millisecond

// lossCheck is after how many idle rounds the counters of the kernel are asked
// for losses that no later event has told.
const lossCheck = 10

// Read stores the next event in e. It returns event.ErrIdle when there was none
// for a short while, and os.ErrClosed after Close.
func (p *Probe) Read(e *event.Event) error {
	if n := len(p.queued); n > 0 {
		*e = p.queued[0]
		p.queued = p.queued[:copy(p.queued, p.queued[1:])]
		return nil
	}
	err := p.reader.ReadInto(&p.record)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.reader.SetDeadline(time.Now().Add(latency))
		return p.whenIdle(e)
	case errors.Is(err, os.ErrClosed):
		return os.ErrClosed
	case err != nil:
		return fmt.Errorf("read the ring buffer: %w", err)
	}
	raw, err := wire(p.record.RawSample)
	if err != nil {
		return err
	}
	decode(raw, e)
	if cpu := int(raw.Cpu); cpu < len(p.lost) && raw.Lost != p.lost[cpu] {
		// Later than what we know, unless a softirq came in between.
		if n := raw.Lost - p.lost[cpu]; n < 1<<31 {
			p.lost[cpu] = raw.Lost
			p.queued = append(p.queued, *e)
			*e = event.Event{Kind: event.KindLost, Time: e.Time, CPU: e.CPU, Count: uint64(n)}
			return nil
		}
	}
	// What is later than the end of a snapshot stands behind all of it.
	if done := p.snapshotDone.Load(); done != 0 && e.Time > done {
		p.snapshotDone.Store(0)
		p.queued = append(p.queued, *e)
		*e = event.Event{Kind: event.KindSnapshotEnd, Time: done}
	}
	return nil
}

// whenIdle finds losses at the end of a burst, which no record behind them
// tells, and the end of a snapshot.
func (p *Probe) whenIdle(e *event.Event) error {
	// only if the ring buffer was empty after that
	if done := p.snapshotDone.Load(); done != p.snapshotSeen {
		p.snapshotSeen = done
	} else if done != 0 {
		p.snapshotDone.Store(0)
		p.snapshotSeen = 0
		*e = event.Event{Kind: event.KindSnapshotEnd, Time: done}
		return nil
	}
	if p.idle++; p.idle%lossCheck != 0 {
		return event.ErrIdle
	}
	var cpus []bpfCounters
	if err := p.maps[bpfMapTotals].Lookup(uint32(0), &cpus); err != nil {
		return fmt.Errorf("read the counters of the kernel side: %w", err)
	}
	boot, _ := Now()
	var untold uint64
	for cpu, c := range cpus {
		untold += c.Untold
		if n := uint32(c.Lost) - p.lost[cpu]; n > 0 && n < 1<<31 {
			p.lost[cpu] = uint32(c.Lost)
			p.queued = append(p.queued, event.Event{Kind: event.KindLost, Time: boot, CPU: uint16(cpu), Count: uint64(n)})
		}
	}
	if untold > p.untold {
		p.queued = append(p.queued, event.Event{Kind: event.KindUntold, Time: boot, Count: untold - p.untold})
		p.untold = untold
	}
	if len(p.queued) > 0 {
		return p.Read(e)
	}
	return event.ErrIdle
}

// Now returns the time since boot, suspension included, and the wall clock, in
// nanoseconds.
func Now() (boot, wall int64) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("clock_gettime(CLOCK_BOOTTIME): %v", err)) // since 2.6.39
	}
	return ts.Nano(), time.Now().UnixNano()
}

// wire checks the size of a record and gives it its type. The object is built
// for the byte order of the host, so no field is converted.
func wire(sample []byte) (*bpfEvent, error) {
	if len(sample) < int(unsafe.Sizeof(bpfEvent{})) {
		return nil, fmt.Errorf("record of %d bytes in the ring buffer, expected %d", len(sample), unsafe.Sizeof(bpfEvent{}))
	}
	return (*bpfEvent)(unsafe.Pointer(unsafe.SliceData(sample))), nil
}

func decode(w *bpfEvent, e *event.Event) {
	*e = event.Event{
		Kind: event.Kind(w.Kind), Old: event.State(w.OldState), New: event.State(w.NewState), Flags: event.Flags(w.Flags),
		Time: int64(w.TimeNs), Seq: w.Seq, CPU: w.Cpu, Socket: event.SocketID(w.Socket),
		Netns: w.Netns, Protocol: w.Protocol, Family: w.Family,
		Local: addrPort(w.Family, &w.Laddr, w.Lport), Peer: addrPort(w.Family, &w.Raddr, w.Rport),
		Task: event.Task{PID: w.Pid, Start: int64(w.TaskStartNs), Comm: w.Comm}, TID: w.Tid, UID: w.Uid, Cgroup: w.Cgroup,
		Owner:       event.Task{PID: w.OwnerPid, Start: int64(w.OwnerStartNs), Comm: w.OwnerComm},
		OwnerSource: event.OwnerSource(w.OwnerSource),
		BytesSent:   w.BytesSent, BytesResent: w.BytesResent, BytesAcked: w.BytesAcked, BytesReceived: w.BytesReceived,
		SRTT: w.SrttUs, Retransmits: w.Retransmits, Unread: w.Unread, Unsent: w.Unsent,
		Err: w.Err, Shutdown: w.Shutdown, Reset: event.ResetReason(w.Reset), FD: w.Fd,
	}
	switch e.Kind {
	case event.KindRequestEnd, event.KindTimeWaitEnd:
		e.Reset, e.Cause = event.ResetUnknown, event.EndCause(w.Reset)
	case event.KindOverflow:
		e.BytesSent, e.Count = 0, w.BytesSent
	}
}

func addrPort(family uint16, addr *[16]uint8, port uint16) netip.AddrPort {
	switch family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr[:4])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(*addr).Unmap(), port)
	}
	return netip.AddrPort{}
}
