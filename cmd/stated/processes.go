// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"math"

	"github.com/stated-tcp/stated/pkg/agent"
	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/render"
)

// processes looks up what is shown of a process beside its name.
type processes struct {
	*agent.Processes
	counted map[event.Task]render.Process // of one report
	waiters map[uint32]waiters            // of one report, by pid
	placed  map[uint32][]uint32           // pids by network namespace, of one census
}

// waiters is what a look at the threads of a process gave.
type waiters struct {
	*proc.Waiters
	err error
}

// newProcesses asks names for those of containers; nil: nobody.
func newProcesses(o proc.Options, names *proc.Names) *processes {
	p := &processes{Processes: agent.NewProcesses(proc.New(o), names)}
	p.forget()
	return p
}

func (p *processes) of(t event.Task) render.Process {
	if known := p.Of(t); known != nil {
		return *known
	}
	return render.Process{} // gone: what the kernel told is all
}

// forget makes the next report count descriptors anew.
func (p *processes) forget() {
	p.counted, p.waiters = make(map[event.Task]render.Process), make(map[uint32]waiters)
}

// withDescriptors also counts descriptors, once for each report: a process that
// leaks has many. It looks whether the process is stopped, too.
func (p *processes) withDescriptors(t event.Task) render.Process {
	out, ok := p.counted[t]
	if !ok {
		out = p.of(t)
		if open, limit, err := p.Resolver.FDs(t.PID); err == nil && limit < math.MaxInt32 {
			out.FDs, out.FDLimit = open, int(limit)
		}
		if halt, err := p.Resolver.Halt(t); err == nil {
			out.Halted, out.Tracer = haltKinds[halt.Kind], halt.Tracer
		}
		p.counted[t] = out
	}
	return out
}

// container is the container that a process is in, "" for none.
func (p *processes) container(t event.Task) string {
	found, err := p.Resolver.Lookup(t)
	if err != nil {
		return ""
	}
	return found.Cgroup.Container.ID
}

// maxWaiters is of how many holders of one socket the threads are looked at.
const maxWaiters = 8

// waitKinds are the words of what is known, the weakest first.
var waitKinds = [...]string{proc.WaitNone: render.WaitNone, proc.WaitWatched: render.WaitWatched, proc.WaitPoll: render.WaitPoll, proc.WaitCall: render.WaitCall}

// haltKinds are the words of why a process does nothing.
var haltKinds = [...]string{proc.Runs: "", proc.Stopped: render.HaltStopped, proc.Traced: render.HaltTraced, proc.Frozen: render.HaltFrozen, proc.EndedMain: render.HaltEnded}

// waits says who waits on a socket: of all its holders, the one that waits most
// plainly. Threads are looked at once for each process of a report.
func (p *processes) waits(s *census.Socket) render.Wait {
	best, unknown := proc.Wait{}, ""
	for i := range s.Holders[:min(len(s.Holders), maxWaiters)] {
		h := &s.Holders[i]
		of, ok := p.waiters[h.PID]
		if !ok {
			of.Waiters, of.err = p.Resolver.Waiters(h.PID)
			p.waiters[h.PID] = of
		}
		w, err := proc.Wait{}, of.err
		if err == nil {
			w, err = of.On(int(h.FDs[0]))
		}
		switch {
		case err != nil:
			unknown = err.Error()
		case w.Kind == proc.WaitUnknown:
			unknown = w.Detail
		case w.Kind > best.Kind:
			best = w
		}
	}
	if best.Kind <= proc.WaitNone && (unknown != "" || len(s.Holders) > maxWaiters) {
		return render.Wait{Why: cmp.Or(unknown, "too many processes hold it")}
	}
	return render.Wait{Kind: waitKinds[best.Kind], TID: best.TID, Call: best.Call}
}
