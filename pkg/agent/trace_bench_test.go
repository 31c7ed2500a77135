// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"io"
	"testing"

	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/render"
)

// BenchmarkTrace measures what `stated trace -o json` does behind the kernel,
// reading the ring buffer aside: the CPU time of one loop over the events of
// short connections, both ends of which are on this host.
func BenchmarkTrace(b *testing.B) {
	for _, mode := range []string{"connections", "events"} {
		b.Run(mode, func(b *testing.B) { benchmarkTrace(b, mode == "events") })
	}
}

func benchmarkTrace(b *testing.B, events bool) {
	src := newTraffic(b.N)
	src.spread = 4
	who := NewProcesses(proc.New(proc.Options{}), nil)
	src.introduce(who.Learn)
	host := render.Host{RunID: "0123456789abcdef", BootID: "7c5c3d0e-6a52-4f0b-9c39-1b1f7d0c2a11", Name: "bench", ID: "6f1e", Version: "bench"}
	trace := &Trace{Filter: &filter.Filter{}, Events: events}
	trace.Out = render.New(io.Discard, render.Options{Format: render.FormatJSON, Host: host, Processes: who.Of})
	trace.Table = lifecycle.New(trace, lifecycle.Options{})
	loop := &Loop{Source: src, Table: trace.Table, Consumer: trace, Now: src.now, Learn: who.Learn}
	cpu := cpuTime(b)
	b.ReportAllocs()
	b.ResetTimer()
	if err := loop.Run(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	cpu = cpuTime(b) - cpu
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N), "cpu-ns/event")
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)*float64(len(src.script)), "cpu-ns/connection")
}
