// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/symbol"
)

// StackSource knows where in the code a socket was opened: a probe.Probe.
type StackSource interface {
	Stack(socket event.SocketID) (s event.Stack, ok bool, err error)
}

// maxStacks bounds the different stacks that are remembered with their names.
const maxStacks = 4096

// Stacks names the stacks of leaked sockets, while the processes live, and
// remembers the names. For one goroutine.
type Stacks struct {
	Source  StackSource
	Symbols *symbol.Symbolizer

	named map[string]*leak.Stack
	// of one call of Name
	processes map[uint32]*symbol.Process // nil: could not be opened
	failed    map[uint32]string          // why
}

// Name sets the Stack of each finding that has one. The error is the first of
// those that kept a stack from being read.
func (s *Stacks) Name(findings []leak.Finding) (err error) {
	if s.named == nil || len(s.named) > maxStacks {
		s.named = make(map[string]*leak.Stack)
	}
	s.processes, s.failed = make(map[uint32]*symbol.Process), make(map[uint32]string)
	for i := range findings {
		f := &findings[i]
		taken, ok, e := s.Source.Stack(f.Sighting.Socket)
		if e != nil && err == nil {
			err = e
		}
		if ok {
			f.Stack = s.name(&taken)
		}
	}
	for _, p := range s.processes {
		if p != nil {
			p.Close()
		}
	}
	s.processes, s.failed = nil, nil
	return err
}

func (s *Stacks) name(taken *event.Stack) *leak.Stack {
	p, why := s.open(taken)
	if p == nil {
		frames := make([]symbol.Frame, len(taken.Addresses))
		for i, addr := range taken.Addresses {
			frames[i].Address = addr
		}
		named := leak.NewStack(frames, taken.Deeper)
		named.Cut = "no names: " + why
		return named
	}
	addresses := p.Restore(taken.Addresses, taken.Top)
	key := identity(taken, addresses)
	named := s.named[key]
	if named == nil {
		named = leak.NewStack(p.Frames(addresses), taken.Deeper)
		s.named[key] = named
	}
	return named
}

// open returns the process, if it runs the program that the stack is of, or why
// not. Its layout is of one moment, and shared by all stacks of a report.
func (s *Stacks) open(taken *event.Stack) (*symbol.Process, string) {
	pid := taken.Task.PID
	p, known := s.processes[pid]
	if !known {
		var err error
		if p, err = s.Symbols.Open(pid); err != nil {
			s.failed[pid] = err.Error()
		}
		s.processes[pid] = p
	}
	if p == nil {
		return nil, s.failed[pid]
	}
	image, err := p.Image()
	switch {
	case err != nil:
		return nil, err.Error()
	case image != taken.Image:
		return nil, "the process has executed another program since, or is gone"
	}
	return p, ""
}

// identity is the same for equal stacks of the same program of a process.
func identity(s *event.Stack, addresses []uint64) string {
	b := binary.NativeEndian.AppendUint64(nil, uint64(s.Task.PID))
	b = binary.NativeEndian.AppendUint64(b, uint64(s.Task.Start))
	for _, list := range [][]uint64{s.Image[:], addresses} {
		for _, v := range list {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
	}
	return string(b)
}
