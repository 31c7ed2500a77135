// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/stated-tcp/stated/pkg/event"
)

// setStacks switches the stacks on, or makes nothing of them.
func setStacks(spec *ebpf.CollectionSpec, on bool) error {
	if !on {
		spec.Maps[bpfMapStacks].MaxEntries = 1 // nobody fills it
		return nil
	}
	if err := spec.Variables[bpfVarCfgStacks].Set(uint32(1)); err != nil {
		return fmt.Errorf("set %s: %w", bpfVarCfgStacks, err)
	}
	return nil
}

// Stack returns where in the code a socket was opened, as long as it lives. It
// is not known, nor an error, for sockets that were opened before Open, by a
// kernel thread or through io_uring, for those of MPTCP, where
// Options.Stacks was not set, and where there was no room: 65536 sockets at a
// time have a stack (Stats.StacksLost). Safe for use by several goroutines.
func (p *Probe) Stack(socket event.SocketID) (s event.Stack, ok bool, err error) {
	if !p.opts.Stacks || p.partial {
		return s, false, nil
	}
	var w bpfStack
	if err := p.maps[bpfMapStacks].Lookup(uint64(socket), &w); errors.Is(err, ebpf.ErrKeyNotExist) {
		return s, false, nil
	} else if err != nil {
		return s, false, fmt.Errorf("read the stack of a socket: %w", err)
	}
	n := min(int(w.Frames), len(w.Addresses))
	s = event.Stack{
		Task:      event.Task{PID: w.Pid, Start: int64(w.TaskStartNs), Comm: w.Comm},
		Image:     [2]uint64{w.StartCode, w.StartStack},
		Addresses: append([]uint64(nil), w.Addresses[:n]...),
		Deeper:    n == len(w.Addresses),
	}
	if w.Top != ([len(w.Top)]uint64{}) {
		s.Top = append([]uint64(nil), w.Top[:]...)
	}
	return s, true, nil
}
