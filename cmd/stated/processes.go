// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"math"
	"strings"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/render"
)

// processes looks up what is shown of a process beside its name.
type processes struct {
	resolver *proc.Resolver
	counted  map[event.Task]render.Process // of one report
}

func newProcesses() *processes {
	return &processes{resolver: proc.New(proc.Options{Cmdline: true})}
}

func (p *processes) of(t event.Task) (out render.Process) {
	found, err := p.resolver.Lookup(t)
	if err != nil {
		return out // gone: what the kernel told is all
	}
	out.Executable = found.Exe
	out.CommandLine = strings.Join(found.Cmdline, " ")
	out.User, out.Unit = found.User, cmp.Or(found.Cgroup.UserUnit, found.Cgroup.Unit)
	out.Container, out.Pod = found.Cgroup.Container.ID, found.Cgroup.PodUID
	return out
}

// forget makes the next report count descriptors anew.
func (p *processes) forget() { p.counted = make(map[event.Task]render.Process) }

// withDescriptors also counts descriptors, once for each report: a process that
// leaks has many.
func (p *processes) withDescriptors(t event.Task) render.Process {
	out, ok := p.counted[t]
	if !ok {
		out = p.of(t)
		if open, limit, err := p.resolver.FDs(t.PID); err == nil && limit < math.MaxInt32 {
			out.FDs, out.FDLimit = open, int(limit)
		}
		p.counted[t] = out
	}
	return out
}
