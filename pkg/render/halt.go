// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strconv"

	"github.com/stated-tcp/stated/pkg/event"
)

// Words of Process.Halted.
const (
	HaltStopped = "stopped"    // by SIGSTOP and the like
	HaltTraced  = "traced"     // by a debugger
	HaltFrozen  = "frozen"     // with its cgroup
	HaltEnded   = "ended_main" // its main thread has ended
)

// AppendHalt says that a process does nothing, why, and what makes it go on, without
// a full stop; b unchanged: it is not known to.
func AppendHalt(b []byte, t *event.Task, p *Process) []byte {
	switch p.Halted {
	case HaltStopped:
		b = append(AppendTask(b, t), " is stopped (SIGSTOP or a debugger), and reads, accepts and closes nothing: kill -CONT "...)
		return strconv.AppendUint(b, uint64(t.PID), 10)
	case HaltTraced:
		b = append(AppendTask(b, t), " is stopped by its debugger, process "...)
		b = strconv.AppendUint(b, uint64(p.Tracer), 10)
		return append(b, ", and reads, accepts and closes nothing until that lets it go on"...)
	case HaltFrozen:
		b = append(AppendTask(b, t), " is frozen with its cgroup "...)
		b = EscapeText(b, []byte(p.Cgroup))
		return append(b, ", and reads, accepts and closes nothing until that is thawed (docker unpause, systemctl thaw)"...)
	case HaltEnded:
		return append(AppendTask(b, t), " has ended its main thread: only other threads of it can still read, accept or close"...)
	}
	return b
}

// Halts reports whether a process does nothing, and would when it goes on.
func (p *Process) Halts() bool {
	return p.Halted == HaltStopped || p.Halted == HaltTraced || p.Halted == HaltFrozen
}
