// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"os"
	"slices"
	"time"
)

// Stats are counters of the kernel side since Open, over all CPUs.
type Stats struct {
	Attempts      uint64 // events that were to be handed over, lost ones included
	Lost          uint64 // events for which the ring buffer had no room
	Filtered      uint64 // events withheld because the filter asked for it
	StorageFailed uint64 // sockets, or followed processes, for which there was no memory
	Requests      uint64 // SYNs that were queued (half-open connections), where the kernel lets us see them
	Untold        uint64 // of those, without an event of their own: too many came at once
	Skipped       uint64 // runs of our programs that the kernel skipped as they ran on that CPU already, and that are not MadeGood; since 5.12, of tracepoints since 6.1
	MadeGood      uint64 // runs of st_set_state that it skipped, and st_state_again told
	StacksLost    uint64 // stacks for which there was no room
	Pending       int    // bytes that wait in the ring buffer to be read
	RingBytes     int    // its size
	Programs      []ProgramStats
}

// ProgramStats counts the runs of one of our programs, wherever it is attached.
type ProgramStats struct {
	Name    string
	Skipped uint64 // as Stats.Skipped
	// Runs and Time are counted while kernel.bpf_stats_enabled is set, or somebody
	// holds BPF_ENABLE_STATS.
	Runs uint64
	Time time.Duration
}

// Stats reads the counters. None of them ever falls. After Close it returns
// os.ErrClosed.
func (p *Probe) Stats() (s Stats, err error) {
	p.statsMu.Lock()
	defer p.statsMu.Unlock()
	if p.ended {
		return s, os.ErrClosed
	}
	for _, prog := range p.progs {
		// bpf_prog_inc_misses_counter; kernels that do not tell it say 0
		stats, err := prog.Stats()
		if err != nil {
			continue
		}
		at := slices.IndexFunc(s.Programs, func(p ProgramStats) bool { return p.Name == prog.name })
		if at < 0 {
			at = len(s.Programs)
			s.Programs = append(s.Programs, ProgramStats{Name: prog.name})
		}
		sum := &s.Programs[at] // of a program that is attached twice
		sum.Skipped, sum.Runs, sum.Time = sum.Skipped+stats.RecursionMisses, sum.Runs+stats.RunCount, sum.Time+stats.Runtime
	}
	var cpus []bpfCounters // behind the programs: what they were skipped for has been made good by now
	if err := p.maps[bpfMapTotals].Lookup(uint32(0), &cpus); err != nil {
		return s, fmt.Errorf("read the counters of the kernel side: %w", err)
	}
	for _, c := range cpus {
		s.Attempts += c.Seq
		s.Lost += c.Lost
		s.Filtered += c.Filtered
		s.StorageFailed += c.StorageFailed
		s.Requests += c.Requests
		s.Untold += c.Untold
		s.StacksLost += c.StacksLost
		s.MadeGood += c.MadeGood
	}
	p.settle(&s)
	s.Pending, s.RingBytes = p.reader.AvailableBytes(), p.reader.BufferSize()
	return s, nil
}

// settle leaves of the runs that were skipped those of which nothing was told: not by
// the program that does the same behind another, if its own was not skipped, too.
func (p *Probe) settle(s *Stats) {
	again := map[string]string{bpfProgStGraft: bpfProgStGraftAgain, bpfProgStDestroySock: bpfProgStDeadAgain}
	for first, second := range again {
		i := slices.IndexFunc(s.Programs, func(p ProgramStats) bool { return p.Name == first })
		j := slices.IndexFunc(s.Programs, func(p ProgramStats) bool { return p.Name == second })
		if i >= 0 && j >= 0 {
			s.Programs[i].Skipped = min(s.Programs[i].Skipped, s.Programs[j].Skipped)
		}
	}
	for i := range s.Programs {
		prog := &s.Programs[i]
		switch prog.Name {
		case bpfProgStSetState:
			p.missing = max(p.missing, prog.Skipped-min(prog.Skipped, s.MadeGood))
			prog.Skipped = p.missing
		case bpfProgStStateAgain, bpfProgStGraftAgain, bpfProgStDeadAgain:
			prog.Skipped = 0 // matters where the other was skipped, too, and is counted there
		}
		s.Skipped += prog.Skipped
	}
}
