// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/stated-tcp/stated/pkg/event"
)

// HaltKind is why a process does nothing at all.
type HaltKind uint8

const (
	Runs      HaltKind = iota // or sleeps, or it is not known
	Stopped                   // by SIGSTOP, SIGTSTP and the like
	Traced                    // by a debugger, Halt.Tracer
	Frozen                    // with its cgroup v2
	EndedMain                 // its main thread has ended: a zombie, as a rule
)

func (k HaltKind) String() string {
	return [...]string{"", "stopped", "traced", "frozen", "ended_main"}[k]
}

// Halt says whether a process does nothing, at this moment.
type Halt struct {
	Kind   HaltKind
	Tracer uint32
}

// Halt looks whether the process t is stopped. It is read each time.
func (r *Resolver) Halt(t event.Task) (Halt, error) {
	d, err := r.procDir(t.PID)
	if err != nil {
		return Halt{}, fmt.Errorf("look whether process %d is stopped: %w", t.PID, err)
	}
	defer d.close()
	status, _, err := d.file("status", maxFile)
	if err != nil {
		return Halt{}, fmt.Errorf("look whether process %d is stopped: %w", t.PID, err)
	}
	h := parseHalt(string(status))
	if h.Kind == Runs {
		if found, err := r.Lookup(t); err == nil && r.tree.frozen(found.Cgroup.Path) {
			h.Kind = Frozen
		}
	}
	return h, nil
}

// parseHalt reads State and TracerPid of /proc/PID/status: the letters are of
// task_state_array in fs/proc/array.c.
func parseHalt(status string) (h Halt) {
	for line := range strings.Lines(status) {
		name, rest, _ := strings.Cut(line, ":")
		rest = strings.TrimSpace(rest)
		switch {
		case name == "TracerPid":
			h.Tracer = parseID(rest)
		case name != "State" || rest == "":
		case rest[0] == 'T':
			h.Kind = Stopped
		case rest[0] == 't':
			h.Kind = Traced
		case rest[0] == 'Z' || rest[0] == 'X':
			h.Kind = EndedMain
		}
	}
	if h.Kind != Traced {
		h.Tracer = 0
	}
	return h
}

// frozen reports whether a cgroup is, by itself or with one above it.
func (t *cgroupTree) frozen(path string) bool {
	mount := t.mount()
	if mount == "" || path == "" || strings.Contains(path, "..") {
		return false
	}
	events, err := os.ReadFile(mount + path + "/cgroup.events")
	return err == nil && bytes.Contains(events, []byte("frozen 1\n"))
}
