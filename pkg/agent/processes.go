// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"strings"
	"sync"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/render"
)

// Processes says of processes what records have beside their names, also of
// those that are gone. Safe for use by several goroutines.
type Processes struct {
	Resolver *proc.Resolver
	names    *proc.Names
	ask      chan proc.Container

	mu     sync.Mutex
	known  map[event.Task]described
	misses uint64
}

type described struct {
	from *proc.Process
	name proc.Name
	out  *render.Process
}

// maxDescribed bounds what is remembered as rendered; the resolver remembers by itself.
const maxDescribed = 8192

// NewProcesses asks resolver and, of containers, names; nil: their names stay unknown.
func NewProcesses(resolver *proc.Resolver, names *proc.Names) *Processes {
	return &Processes{Resolver: resolver, names: names, ask: make(chan proc.Container, 256), known: make(map[event.Task]described)}
}

// Learn is Loop.Learn.
func (p *Processes) Learn(t event.Task, k *event.Process) { p.Resolver.Learn(t, k) }

// Name asks for the names of the containers that Of met, until ctx is done: an
// engine may take its time, and Of must not.
func (p *Processes) Name(ctx context.Context) {
	for p.names != nil {
		select {
		case c := <-p.ask:
			p.names.Lookup(ctx, c) // what goes wrong is counted, and tried again when it is met again
		case <-ctx.Done():
			return
		}
	}
}

// Of describes a process, nil where nothing is known of it. The same process has
// the same answer until more is known.
func (p *Processes) Of(t event.Task) *render.Process {
	if t.IsZero() {
		return nil
	}
	from, err := p.Resolver.Lookup(t)
	if err != nil {
		p.mu.Lock()
		p.misses++
		p.mu.Unlock()
		return nil
	}
	name := p.nameOf(from.Cgroup.Container)
	p.mu.Lock()
	defer p.mu.Unlock()
	if d, ok := p.known[t]; ok && d.from == from && d.name == name {
		return d.out
	}
	if len(p.known) >= maxDescribed {
		clear(p.known)
	}
	out := describe(from, name)
	p.known[t] = described{from, name, out}
	return out
}

func (p *Processes) nameOf(c proc.Container) proc.Name {
	if p.names == nil || c.ID == "" && c.PodUID == "" {
		return proc.Name{Container: c.Name}
	}
	name, whole := p.names.Known(c)
	if !whole {
		select {
		case p.ask <- c:
		default: // it will be met again
		}
	}
	return name
}

func describe(p *proc.Process, name proc.Name) *render.Process {
	return &render.Process{
		Executable: p.Exe, CommandLine: strings.Join(p.Cmdline, " "), UserID: p.UID, User: p.User,
		Parent: p.PPID, Inner: p.NSPID, Start: p.Start, Cgroup: p.Cgroup.Path,
		Unit:      cmp.Or(p.Cgroup.UserUnit, p.Cgroup.Unit),
		Container: p.Cgroup.Container.ID, ContainerName: name.Container, Image: name.Image,
		Pod: p.Cgroup.PodUID, PodName: name.Pod, Namespace: name.Namespace,
	}
}

// Misses counts of what nothing was known when it was asked for: processes that
// had exited, containers without a name.
func (p *Processes) Misses() (processes, containers uint64) {
	if p.names != nil {
		s := p.names.Stats()
		containers = s.Absent + s.Failed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.misses, containers
}
