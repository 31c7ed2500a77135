// SPDX-License-Identifier: Apache-2.0

package render

import (
	"time"

	"github.com/stated-tcp/stated/pkg/event"
)

// Process is what is shown of a process beside its name. What is not known is
// empty or zero. All text is hostile.
type Process struct {
	Executable    string
	CommandLine   string
	UserID        uint32 // effective
	User          string // its name on this host
	Parent        uint32
	Inner         uint32 // pid in its own pid namespace
	Start         int64  // nanoseconds since boot
	Cgroup        string // path
	Unit          string // of systemd
	Container     string // id
	ContainerName string
	Image         string // of the container
	Pod           string // uid
	PodName       string
	Namespace     string // of the pod
	FDs           int    // open descriptors
	FDLimit       int    // how many it may have
	Halted        string // why it does nothing at this moment: one of the words of halt.go
	Tracer        uint32 // of what is traced: the debugger
}

// label is what people call the container, "" for none.
func (p *Process) label() string {
	if p.ContainerName != "" {
		return p.ContainerName
	}
	return p.Container
}

// maxFragments bounds the processes whose part of a record is kept.
const maxFragments = 4096

// processOf is Options.Processes, asked once for each process of a record: who
// owned a connection mostly closed it, too.
func (r *Writer) processOf(t *event.Task) *Process {
	if r.opts.Processes == nil || t.IsZero() {
		return nil
	}
	if r.asked.seq != r.seq || r.asked.task != *t {
		r.asked.seq, r.asked.task, r.asked.process = r.seq, *t, r.opts.Processes(*t)
	}
	return r.asked.process
}

// program adds what is known of the process t, as rendered before.
func (r *Writer) program(b []byte, t *event.Task) []byte {
	p := r.processOf(t)
	if p == nil {
		return b
	}
	text, ok := r.fragments[p]
	if !ok {
		if len(r.fragments) >= maxFragments || r.fragments == nil {
			r.fragments = make(map[*Process][]byte)
		}
		text = r.jsonProcess(nil, t.PID, p)
		r.fragments[p] = text
	}
	return append(b, text...)
}

// executable adds the path of the program of another process than the owner.
func (r *Writer) executable(b []byte, prefix string, t *event.Task) []byte {
	if p := r.processOf(t); p != nil && p.Executable != "" {
		b = append(append(b, ',', '"'), prefix...)
		b = appendString(append(b, `executable.path":`...), []byte(p.Executable))
	}
	return b
}

func (r *Writer) jsonProcess(b []byte, pid uint32, p *Process) []byte {
	if p.Start != 0 {
		// to the millisecond, as clocks are corrected and an identity must not be
		at := time.Unix(0, p.Start+r.offset).UTC().Round(time.Millisecond)
		b = append(at.AppendFormat(append(key(b, "process.creation.time"), '"'), "2006-01-02T15:04:05.000Z"), '"')
		b = identity(b, "process.user.id", uint64(p.UserID))
	}
	if p.Parent != 0 {
		b = number(b, "process.parent_pid", int64(p.Parent))
	}
	if p.Inner != 0 && p.Inner != pid {
		b = number(b, "process.vpid", int64(p.Inner))
	}
	for _, kv := range [...][2]string{
		{"process.executable.path", p.Executable}, {"process.command_line", p.CommandLine}, {"process.user.name", p.User},
		{"process.linux.cgroup", p.Cgroup}, {"stated.systemd.unit", p.Unit},
		{"container.id", p.Container}, {"container.name", p.ContainerName}, {"container.image.name", p.Image},
		{"k8s.pod.uid", p.Pod}, {"k8s.pod.name", p.PodName}, {"k8s.namespace.name", p.Namespace},
	} {
		if kv[1] != "" {
			b = appendString(key(b, kv[0]), []byte(kv[1]))
		}
	}
	return b
}

// appendProgram adds in words what the wide format says of a process.
func appendProgram(b []byte, p *Process) []byte {
	put := func(name, value string) {
		if value != "" {
			b = EscapeText(append(append(b, ' '), name...), []byte(value))
		}
	}
	put("exe:", p.Executable)
	put("user:", p.User)
	put("unit:", p.Unit)
	put("container:", p.label())
	put("pod:", p.PodName)
	put("cmd:", p.CommandLine)
	return b
}
