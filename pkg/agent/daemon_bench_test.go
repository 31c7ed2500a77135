// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/sink/file"
	"github.com/stated-tcp/stated/pkg/sink/otlp"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// BenchmarkDaemon measures the agent's path behind the kernel: b.N events of
// short connections become records, which go through the spool to one sink. An
// event counts when the sink has acknowledged what it led to, and none is lost:
// where the spool is slower than the loop, the loop waits. The bar is
// 100,000 events/s and 100 MB.
//
// The stub of a collector runs in the same process: its CPU time and memory are
// in the figures. The table of connections stays small.
func BenchmarkDaemon(b *testing.B) {
	all := []string{"tcp.state_change", "tcp.connection"}
	conns := all[1:]
	for _, bench := range []struct {
		name    string
		records []string
		sink    func(b *testing.B) SinkConfig
	}{
		{"file/all", all, fileSink},
		{"file/connections", conns, fileSink},
		{"otlp/all", all, otlpSink("gzip")},
		{"otlp/connections", conns, otlpSink("gzip")},
		{"otlp-plain/all", all, otlpSink("none")},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c := bench.sink(b)
			c.Name, c.Records = "bench", bench.records
			benchmarkDaemon(b, c)
		})
	}
}

func fileSink(b *testing.B) SinkConfig {
	return SinkConfig{File: &file.Config{Path: filepath.Join(b.TempDir(), "out.jsonl"), RotateBytes: 64 << 20, Keep: 1}}
}

// otlpSink sends to a collector that reads requests and looks at nothing. An
// empty answer is an ExportLogsServiceResponse without partial_success.
func otlpSink(compression string) func(*testing.B) SinkConfig {
	return func(b *testing.B) SinkConfig {
		stub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				b.Error(err)
			}
			w.Header().Set("Content-Type", "application/x-protobuf")
		}))
		b.Cleanup(stub.Close)
		return SinkConfig{OTLP: &otlp.Config{HTTP: transport.HTTP{URL: stub.URL, Compression: compression}}}
	}
}

func benchmarkDaemon(b *testing.B, c SinkConfig) {
	cfg := DefaultConfig()
	cfg.Spool.Dir, cfg.Spool.OnFull, cfg.Spool.KeepBytes = filepath.Join(b.TempDir(), "spool"), "block", 0
	cfg.Drain = time.Minute
	cfg.Sinks = []SinkConfig{c}
	host := render.Host{RunID: "0123456789abcdef", BootID: "7c5c3d0e-6a52-4f0b-9c39-1b1f7d0c2a11", Name: "bench", ID: "6f1e", Version: "bench"}
	d, err := StartDaemon(cfg, host, &filter.Filter{}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	src := newTraffic(b.N)
	loop := &Loop{Source: src, Table: lifecycle.New(d.Stream, lifecycle.Options{MaxConns: cfg.MaxConnections}), Consumer: d.Stream, Now: src.now}
	src.introduce(d.Processes.Learn)
	forgetPeak(b)
	cpu := cpuTime(b)
	b.ReportAllocs()
	b.ResetTimer()
	if err := d.Run(context.Background(), loop); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	cpu = cpuTime(b) - cpu
	s, w := d.SpoolStats(), d.SinkStats()["bench"]
	if lost := d.SpoolLost(); s.Appended == 0 && b.N >= len(src.script) || w.Acked != s.Appended || lost+w.Missing+w.Rejected+w.Backlog+s.DroppedOld > 0 {
		b.Fatalf("%d records in the spool, %d lost before it; the sink: %+v", s.Appended, lost, w)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(s.Appended)/float64(b.N), "records/event")
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N), "cpu-ns/event")
	b.ReportMetric(peak(b), "MB-peak")
}

// traffic is a source of connections of this host with itself: what both ends
// of each go through, one connection after the other, 100,000 events/s by their
// own clock. Ports come again after 2.5 s, as they do on loopback, where connect()
// takes those in TIME_WAIT: that ends it, which is a change of state, too.
type traffic struct {
	left   int
	time   int64
	n      uint64 // connections begun
	spread uint64 // addresses that they come from, 0 one: more are in TIME_WAIT
	step   int
	script []event.Event
}

func newTraffic(events int) *traffic {
	t := &traffic{left: events, time: 1e12}
	client := [...]event.State{event.StateClose, event.StateSynSent, event.StateEstablished, event.StateFinWait1, event.StateFinWait2, event.StateClose}
	server := [...]event.State{event.StateSynRecv, event.StateEstablished, event.StateCloseWait, event.StateLastAck, event.StateClose}
	end := func(states []event.State, who event.Task, source event.OwnerSource) {
		for i := range len(states) - 1 {
			e := event.Event{Kind: event.KindState, Old: states[i], New: states[i+1], Netns: 4026531840, Protocol: event.ProtoTCP, Family: 2,
				Task: who, TID: who.PID, UID: 1000, Cgroup: 5678, Owner: who, OwnerSource: source}
			if e.Old != event.StateClose && e.Old != event.StateSynSent && e.Old != event.StateSynRecv {
				e.BytesSent, e.BytesAcked, e.BytesReceived, e.SRTT = 512, 513, 34_000, 11_800
			}
			if e.New == event.StateClose {
				e.Flags = event.FlagDead | event.FlagDone
			}
			t.script = append(t.script, e)
		}
	}
	end(client[:], event.Task{PID: 4242, Start: 9e11, Comm: event.MakeComm("curl")}, event.OwnerConnect)
	end(server[:], event.Task{PID: 812, Start: 1e10, Comm: event.MakeComm("nginx")}, event.OwnerAccept)
	return t
}

// introduce tells who the processes are, as the kernel does.
func (t *traffic) introduce(learn func(event.Task, *event.Process)) {
	for _, e := range t.script {
		learn(e.Task, &event.Process{Image: 1, PPID: 1, Exe: "/usr/bin/" + e.Task.Comm.String(), Group: "/system.slice/bench.service", UID: 1000, User: "bench"})
	}
}

func (t *traffic) Read(e *event.Event) error {
	if t.left == 0 {
		return io.EOF
	}
	t.left--
	t.time += 10_000
	*e = t.script[t.step]
	e.Time = t.time
	a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(t.n / 28_000 % max(t.spread, 1)), 5}), 32768+uint16(t.n%28_000))
	z := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 5}), 443)
	if t.step < 5 {
		e.Socket, e.Local, e.Peer = event.SocketID(2*t.n+1), a, z
	} else {
		e.Socket, e.Local, e.Peer = event.SocketID(2*t.n+2), z, a
	}
	if t.step++; t.step == len(t.script) {
		t.step, t.n = 0, t.n+1
	}
	return nil
}

// now is the time of the last event.
func (t *traffic) now() (boot, wall int64) { return t.time, t.time + 1.7e18 }

// forgetPeak begins a new peak of memory (proc(5), clear_refs).
func forgetPeak(b *testing.B) {
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
}

// peak returns the most memory that was resident, in MB.
func peak(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	var kB float64
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		b.Fatal(err)
	}
	return kB * 1024 / 1e6
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
