// SPDX-License-Identifier: Apache-2.0

// Command floor is the least that can stand at the tracepoint: a program that
// does nothing, or with -record hands over so many bytes that are not filled.
// With -accept one that does nothing stands at the end of accept() instead: then the
// kernel takes a longer way through each system call of each process, whether it is
// accept() or not (SYSCALL_WORK_SYSCALL_TRACEPOINT in include/linux/thread_info.h).
// .ci/bench measures what it costs, beside the tracers that tell something.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

func main() {
	record := flag.Int("record", 0, "hand over `bytes` at each change of state")
	accept := flag.Bool("accept", false, "stand at the end of accept() instead")
	flag.Parse()
	if err := run(*record, *accept); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

func run(record int, accept bool) error {
	ring, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 8 << 20})
	if err != nil {
		return fmt.Errorf("make the ring buffer: %w", err)
	}
	defer ring.Close()
	l, err := attach(ring, record, accept)
	if err != nil {
		return err
	}
	defer l.Close()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	if record > 0 {
		r, err := ringbuf.NewReader(ring)
		if err != nil {
			return fmt.Errorf("read the ring buffer: %w", err)
		}
		defer r.Close()
		go drain(r)
	}
	<-interrupted
	return nil
}

// attach puts the program where it is to stand; it stays until the link is closed.
func attach(ring *ebpf.Map, record int, accept bool) (link.Link, error) {
	spec := &ebpf.ProgramSpec{Name: "floor", Type: ebpf.TracePoint, Instructions: program(ring, record), License: "GPL"}
	if !accept {
		spec.Type, spec.AttachType, spec.AttachTo = ebpf.Tracing, ebpf.AttachTraceRawTp, "inet_sock_set_state"
	}
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	defer prog.Close() // the link keeps it
	if accept {
		return link.Tracepoint("syscalls", "sys_exit_accept", prog, nil)
	}
	return link.AttachTracing(link.TracingOptions{Program: prog})
}

// program does nothing, or reserves a record and submits it without waking anybody.
func program(ring *ebpf.Map, record int) asm.Instructions {
	if record == 0 {
		return asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
	}
	const noWakeup = 1 // BPF_RB_NO_WAKEUP
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, ring.FD()),
		asm.Mov.Imm(asm.R2, int32(record)),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "end"),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.Mov.Imm(asm.R2, noWakeup),
		asm.FnRingbufSubmit.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("end"),
		asm.Return(),
	}
}

// drain makes room, as a tracer's reader does.
func drain(r *ringbuf.Reader) {
	var rec ringbuf.Record
	for {
		r.SetDeadline(time.Now().Add(25 * time.Millisecond))
		for {
			err := r.ReadInto(&rec)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return
			}
		}
	}
}
