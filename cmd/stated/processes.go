// SPDX-License-Identifier: Apache-2.0

package main

import (
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

func newProcesses() *processes { return &processes{resolver: proc.New("/", 4096)} }

func (p *processes) of(t event.Task) (out render.Process) {
	found, err := p.resolver.Lookup(t.PID, t.Start)
	if err != nil {
		return out // gone: what the kernel told is all
	}
	out.Executable = found.Exe
	out.CommandLine = strings.Join(found.Cmdline, " ")
	out.User, out.Unit = found.User, found.Unit
	out.Container, out.Pod = found.Container.ID, found.Container.PodUID
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
		out.FDs, out.FDLimit = p.resolver.Descriptors(t.PID)
		p.counted[t] = out
	}
	return out
}
