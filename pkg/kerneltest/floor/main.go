// SPDX-License-Identifier: Apache-2.0

// Command floor is the least that can stand at the tracepoint: a program that
// does nothing, or with -record hands over so many bytes that are not filled.
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
	flag.Parse()
	if err := run(*record); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

func run(record int) error {
	ring, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 8 << 20})
	if err != nil {
		return fmt.Errorf("make the ring buffer: %w", err)
	}
	defer ring.Close()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "floor", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "inet_sock_set_state",
		Instructions: program(ring, record), License: "GPL",
	})
	if err != nil {
		return fmt.Errorf("load the program: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return fmt.Errorf("attach to inet_sock_set_state: %w", err)
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
