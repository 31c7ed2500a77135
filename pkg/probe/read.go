// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"math"
	"os"
	"time"
	"unsafe"

	"github.com/stated-tcp/stated/pkg/diag"
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
	if p.next(e) {
		return nil
	}
	if p.take(); len(p.taken) > 0 {
		p.reader.SetDeadline(time.Now())
	}
	err := p.reader.ReadInto(&p.record)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.reader.SetDeadline(time.Now().Add(latency))
		if p.tell(math.MaxInt64); p.next(e) {
			return nil
		}
		return p.whenIdle(e)
	case errors.Is(err, os.ErrClosed):
		return os.ErrClosed
	case err != nil:
		return fmt.Errorf("read the ring buffer: %w", err)
	}
	if len(p.record.RawSample) == int(unsafe.Sizeof(bpfProcess{})) {
		decodeProcess((*bpfProcess)(unsafe.Pointer(unsafe.SliceData(p.record.RawSample))), e)
		return nil
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
			p.queued = append(p.queued, event.Event{Kind: event.KindLost, Time: e.Time, CPU: e.CPU, Count: uint64(n)})
		}
	}
	if p.names != nil {
		p.tell(e.Time)
		p.names.event(e)
	}
	// What is later than the end of a snapshot stands behind all of it.
	if done := p.snapshotDone.Load(); done != 0 && e.Time > done {
		p.snapshotDone.Store(0)
		p.queued = append(p.queued, event.Event{Kind: event.KindSnapshotEnd, Time: done})
	}
	if len(p.queued) > 0 {
		p.queued = append(p.queued, *e)
		p.next(e)
	}
	return nil
}

// next takes what is queued.
func (p *Probe) next(e *event.Event) bool {
	if len(p.queued) == 0 {
		return false
	}
	*e = p.queued[p.head]
	if p.head++; p.head == len(p.queued) {
		p.queued, p.head = p.queued[:0], 0
	}
	return true
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
	if p.next(e) {
		return nil
	}
	return event.ErrIdle
}

// Now returns the time since boot, suspension included, and the wall clock, in
// nanoseconds.
func Now() (boot, wall int64) {
	return diag.Now(), time.Now().UnixNano()
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
		Time: int64(w.TimeNs), Began: int64(w.BeganNs), Seq: w.Seq, CPU: w.Cpu, Socket: event.SocketID(w.Socket), MPTCP: event.SocketID(w.Mptcp),
		Netns: w.Netns, Protocol: w.Protocol, Family: w.Family,
		Local: diag.AddrPort(w.Family, &w.Laddr, w.Lport), Peer: diag.AddrPort(w.Family, &w.Raddr, w.Rport),
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

func decodeProcess(w *bpfProcess, e *event.Event) {
	*e = event.Event{
		Kind: event.KindProcess, Time: int64(w.TimeNs), Task: event.Task{PID: w.Pid, Start: int64(w.StartNs), Comm: w.Comm},
		Process: &event.Process{
			Image: w.Image, PPID: w.Ppid, InnerPID: w.InnerPid, PIDNS: w.Pidns, UID: w.Uid, Cgroup: w.Cgroup,
			Group: ending(w.Group[:], w.GroupAt), Exe: ending(w.Exe[:], w.ExeAt), ExeDeleted: w.ExeDeleted != 0,
		},
	}
}

// ending is a path that was built from its end, "" if it is not known.
func ending(b []uint8, at uint16) string {
	if int(at) > len(b) {
		return ""
	}
	return string(b[at:])
}
