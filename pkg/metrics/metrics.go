// SPDX-License-Identifier: Apache-2.0

// Package metrics counts for Prometheus. It is the only package that knows
// Prometheus: the others have plain Stats.
//
// No label can grow without bound: no address, port, process or container is
// one, and of executables the fifty with the most sockets are.
package metrics

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/spool"
)

// Sources are what is counted elsewhere, asked at each scrape.
type Sources struct {
	Version    string
	Views      *Views
	TableLimit int
	Kernel     func() (probe.Stats, error)
	Spool      func() spool.Stats
	// SpoolOldest is when the oldest record of the spool was made, Unix nanoseconds.
	SpoolOldest func() (int64, bool)
	SpoolLimit  int64
	// Misses counts processes and containers of which nothing was known when a
	// record was made.
	Misses    func() (processes, containers uint64)
	SpoolLost func() uint64 // records that never reached the spool
	Sinks     func() map[string]sink.WorkerStats
}

// Metrics is a collector, and the lifecycle.Observer that feeds its histograms.
// Transition and Finished belong to the loop's goroutine.
type Metrics struct {
	src      Sources
	inState  *prometheus.HistogramVec
	lasted   *prometheus.HistogramVec
	connect  *prometheus.HistogramVec
	latency  *prometheus.HistogramVec
	sync     prometheus.Histogram
	snapshot prometheus.Histogram
	closed   *prometheus.CounterVec
	failures *prometheus.CounterVec
	states   [event.NumStates]prometheus.Observer // of inState
	roles    map[lifecycle.Role]prometheus.Observer
	leaks    atomic.Pointer[leaks] // nil before the first look
}

// spans are from 10 µs, a state on loopback, to a day.
var spans = []float64{1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 60, 600, 3600, 86400}

func options(name, help string, buckets []float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	}
}

func histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(options(name, help, buckets), labels)
}

// New makes the metrics.
func New(src Sources) *Metrics {
	m := &Metrics{src: src, roles: make(map[lifecycle.Role]prometheus.Observer),
		inState: histogram("stated_tcp_state_duration_seconds", "Time that connections which have ended were in a state; without states that began before stated, and what is inferred of connections with a gap."+ofAll, spans, "state"),
		lasted:  histogram("stated_tcp_connection_duration_seconds", "Time from the first state to the end of connections; without those that began before stated, and those with a gap."+ofAll, spans, "role"),
		connect: histogram("stated_tcp_connect_duration_seconds", "Time in SYN_SENT of connections that were opened here."+ofAll, spans, "result"),
		latency: histogram("stated_event_latency_seconds", "Time from the kernel's event to the acknowledgement of its record by the sink.", []float64{0.01, 0.1, 1, 10, 60, 600, 3600, 86400}, "sink"),
		sync: prometheus.NewHistogram(options("stated_spool_sync_seconds", "Time that the disk took to make what is in the spool durable.",
			[]float64{1e-4, 1e-3, 1e-2, 0.1, 1, 10})),
		snapshot: prometheus.NewHistogram(options("stated_reconcile_duration_seconds", "Time that a snapshot of all sockets took, which the table is compared with.",
			[]float64{1e-3, 1e-2, 0.1, 1, 10, 60})),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stated_tcp_connections_closed_total",
			Help: "Connections that ended." + ofAll}, []string{"role", "reason", "initiator"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stated_tcp_connect_failures_total",
			Help: "Connections opened here that were never established." + ofAll}, []string{"reason"}),
	}
	return m
}

// Transition implements lifecycle.Observer.
func (m *Metrics) Transition(*lifecycle.Conn, *event.Event) {}

// Finished implements lifecycle.Observer.
func (m *Metrics) Finished(c *lifecycle.Conn) {
	m.closed.WithLabelValues(c.Role.String(), c.Outcome.String(), c.Initiator.String()).Inc()
	if c.End == 0 {
		return // given up, and still open
	}
	for i, s := range c.Spans.All() {
		if !known(c, s.Known) || s.Start == 0 {
			continue
		}
		o := m.states[s.State]
		if o == nil {
			o = m.inState.WithLabelValues(s.State.Name(event.NamingOTel))
			m.states[s.State] = o
		}
		o.Observe(seconds(c.SpanEnd(i, c.End) - s.Start))
	}
	if start, how := c.Start(); known(c, how) && c.FromStart && !c.Gap {
		o := m.roles[c.Role]
		if o == nil {
			o = m.lasted.WithLabelValues(c.Role.String())
			m.roles[c.Role] = o
		}
		o.Observe(seconds(c.End - start))
	}
	m.connected(c)
}

// known reports whether a time is good enough to count with. Without trampolines the
// beginning of SYN_RECV is inferred from the round trip, and some microseconds off;
// across a gap it is anywhere in it.
func known(c *lifecycle.Conn, how lifecycle.Known) bool {
	return how == lifecycle.Seen || how == lifecycle.Inferred && !c.Gap
}

// connected counts a connect() and how it went.
func (m *Metrics) connected(c *lifecycle.Conn) {
	if c.Role != lifecycle.RoleClient || c.Spans.At(0).State != event.StateSynSent || !c.FromStart || c.Gap {
		return
	}
	result := "established"
	if c.Spans.Len() == 1 {
		result = c.Outcome.String()
		m.failures.WithLabelValues(result).Inc()
	}
	m.connect.WithLabelValues(result).Observe(seconds(c.SpanEnd(0, c.End) - c.Spans.At(0).Start))
}

func seconds(ns int64) float64 { return float64(ns) / 1e9 }

// Acked is told of the records that a sink has acknowledged. It may be called
// from any goroutine.
func (m *Metrics) Acked(name string, batch []sink.Record) {
	o := m.latency.WithLabelValues(name)
	now := time.Now().UnixNano()
	for i := range batch {
		o.Observe(seconds(max(0, now-batch[i].Time)))
	}
}

// Synced is told of each sync of the spool. It may be called from any goroutine.
func (m *Metrics) Synced(took time.Duration) { m.sync.Observe(took.Seconds()) }

// Snapshotted is told of each snapshot. It may be called from any goroutine.
func (m *Metrics) Snapshotted(took time.Duration) { m.snapshot.Observe(took.Seconds()) }

// Leaks is told what leaks, at each look. It may be called from any goroutine.
func (m *Metrics) Leaks(l *render.Leaks) { m.leaks.Store(findLeaks(l)) }

// desc is a metric that is asked for at each scrape.
type desc struct {
	*prometheus.Desc
	kind prometheus.ValueType
}

func gauge(name, help string, labels ...string) desc {
	return desc{prometheus.NewDesc("stated_"+name, help, labels, nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) desc {
	return desc{prometheus.NewDesc("stated_"+name, help, labels, nil), prometheus.CounterValue}
}

var (
	buildInfo    = gauge("build_info", "What is running; always 1.", "version", "goversion")
	connections  = gauge("tcp_connections", "Connections that have not ended."+ofAll, "state", "family", "role")
	transitions  = counter("tcp_state_transitions_total", "Changes of state."+ofAll, "from", "to")
	oldestAge    = gauge("tcp_state_oldest_age_seconds", "Age of the oldest socket in a state, at least."+ofAll, "state", "executable")
	stateSockets = gauge("tcp_state_sockets", "Sockets in a state."+ofAll, "state", "executable")
	tracked      = gauge("tracked_sockets", "Sockets in the table: open, ended with a descriptor that is still open, or lingering.")
	trackedLimit = gauge("tracked_sockets_limit", "Sockets that the table has room for.")
	evicted      = counter("tracked_sockets_evicted_total", "Connections given up because the table was full.")
	crowded      = counter("tcp_time_wait_full_total", "Connections that ended without TIME_WAIT, or maybe without: the kernel had as many as net.ipv4.tcp_max_tw_buckets allows.")
	unfollowed   = counter("tcp_lingering_unfollowed_total", "Ended connections whose TIME_WAIT or FIN_WAIT2 was not followed because the table of these was full.")
	lingering    = gauge("tcp_lingering_sockets", "Connections that ended and whose TIME_WAIT or FIN_WAIT2 goes on without a process.")
	overflows    = counter("tcp_accept_overflows_total", "SYNs dropped because an accept queue was full, where the kernel tells.")
	repaired     = counter("reconcile_corrections_total", "What a snapshot put right in the table: sockets found in another state (moved) or gone, TIME_WAIT and its like found gone (linger_gone).", "kind")
	requests     = counter("tcp_half_open_total", "SYNs that were answered, where the kernel tells.")
	untold       = counter("tcp_half_open_untold_total", "Of those, counted only: too many came at once.")
	leakFindings = gauge("leak_findings", "Groups of leaked sockets that the last look found, by process and service."+ofWanted)
	leakVerdicts = gauge("leak_verdict_sockets", "Leaked sockets, by why they are stuck."+ofWanted, "verdict")
	leakSockets  = gauge("leak_sockets", "Leaked sockets."+ofWanted, "state", "executable")
	leakGrowth   = gauge("leak_growth_per_second", "Leaked sockets that come each second, over the last hour."+ofWanted, "executable")
	leakEnd      = gauge("leak_fd_exhaustion_seconds", "Time until the first process of the executable has no descriptors left, if it goes on leaking like this."+ofWanted, "executable")
	gaps         = counter("tcp_connections_with_gap_total", "Connections of which an event was missing.")
	events       = counter("events_total", "Events that the kernel side made.")
	lost         = counter("events_lost_total", "Events lost by the ring buffer, and records lost before or in the spool.", "stage")
	filtered     = counter("events_filtered_total", "Events that the kernel side was asked to withhold.")
	pending      = gauge("ringbuf_pending_bytes", "Events that wait in the ring buffer to be read.")
	ringSize     = gauge("ringbuf_size_bytes", "Size of the ring buffer.")
	progMissed   = counter("bpf_program_missed_total", "Runs that the kernel skipped, as a BPF program ran on that CPU already.", "program")
	progRuns     = counter("bpf_program_runs_total", "Runs of a BPF program; counted while the sysctl kernel.bpf_stats_enabled is 1.", "program")
	progTime     = counter("bpf_program_run_seconds_total", "Time in a BPF program; measured while the sysctl kernel.bpf_stats_enabled is 1.", "program")
	enrichMisses = counter("enrichment_misses_total", "Questions without an answer: who a process was that had exited, and what a container is called.", "kind")
	spoolBytes   = gauge("spool_bytes", "Size of the spool on disk.")
	spoolLimit   = gauge("spool_limit_bytes", "Size that the spool may have.")
	spoolOldest  = gauge("spool_oldest_age_seconds", "Age of the oldest record in the spool, delivered or not: how far back it tells.")
	spoolRecords = gauge("spool_records", "Records in the spool, delivered ones included.")
	spoolErrors  = counter("spool_errors_total", "Operations of the spool that failed.", "op")
	sinkUp       = gauge("sink_up", "1 while the last delivery succeeded.", "sink")
	sinkBacklog  = gauge("sink_backlog_records", "Records that the sink has not acknowledged.", "sink")
	sinkOldest   = gauge("sink_oldest_age_seconds", "Age of the oldest record that is being delivered; 0 when none is.", "sink")
	sinkAcked    = counter("sink_acked_total", "Records that the sink acknowledged.", "sink")
	sinkRetries  = counter("sink_retries_total", "Deliveries that failed and were repeated.", "sink")
	sinkRejected = counter("sink_rejected_total", "Records that the sink will never take.", "sink")
	sinkMissing  = counter("sink_missing_total", "Records that were gone from the spool before the sink got them.", "sink")
	sinkDouble   = counter("sink_duplicates_possible_total", "Records sent again without knowing whether they had arrived.", "sink")
)

// What the key filter of the configuration does to a metric, where a reader of the
// one kind beside the other could be misled.
const (
	ofAll    = " Of all connections, whatever 'filter' says."
	ofWanted = " Of sockets that 'filter' wants."
)

// Describe implements prometheus.Collector: the metrics depend on the sinks, so
// they are not described.
func (m *Metrics) Describe(chan<- *prometheus.Desc) {}

// scrapeTime is how long a scrape waits for the loop.
const scrapeTime = 3 * time.Second

// Collect implements prometheus.Collector. What cannot be asked is absent.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	send := func(d desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d.Desc, d.kind, v, labels...)
	}
	send(buildInfo, 1, m.src.Version, runtime.Version())
	if k, err := m.src.Kernel(); err == nil {
		send(events, float64(k.Attempts))
		send(lost, float64(k.Lost), "ringbuf")
		collectKernel(send, &k)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	if v := m.src.Views.get(ctx); v != nil {
		v.collect(send)
	}
	send(trackedLimit, float64(m.src.TableLimit))
	processes, containers := m.src.Misses()
	send(enrichMisses, float64(processes), "process")
	send(enrichMisses, float64(containers), "container")
	s := m.src.Spool()
	send(spoolBytes, float64(s.Bytes))
	send(spoolLimit, float64(m.src.SpoolLimit))
	send(spoolRecords, float64(s.Records))
	if at, ok := m.src.SpoolOldest(); ok {
		send(spoolOldest, max(0, time.Since(time.Unix(0, at)).Seconds()))
	}
	send(lost, float64(m.src.SpoolLost()), "spool")
	send(lost, float64(s.TornRecords), "spool_torn")
	for _, op := range []string{"write", "sync", "create", "remove", "cursor"} {
		send(spoolErrors, float64(s.Errors[op]), op)
	}
	for name, w := range m.src.Sinks() {
		collectSink(send, name, &w)
	}
	if l := m.leaks.Load(); l != nil {
		l.collect(send)
	}
	// Last, so that each record that is counted as acknowledged is in them.
	for _, c := range []prometheus.Collector{m.inState, m.lasted, m.connect, m.latency, m.sync, m.snapshot, m.closed, m.failures} {
		c.Collect(out)
	}
}

func collectKernel(send func(desc, float64, ...string), k *probe.Stats) {
	send(filtered, float64(k.Filtered))
	send(pending, float64(k.Pending))
	send(ringSize, float64(k.RingBytes))
	for _, p := range k.Programs {
		send(progMissed, float64(p.Skipped), p.Name)
		if p.Runs > 0 {
			send(progRuns, float64(p.Runs), p.Name)
			send(progTime, p.Time.Seconds(), p.Name)
		}
	}
}

func (v *view) collect(send func(desc, float64, ...string)) {
	for p, n := range v.conns {
		send(connections, float64(n), p.state.Name(event.NamingOTel), p.family, p.role.String())
	}
	for g, s := range v.groups {
		send(stateSockets, float64(s.sockets), g.state.Name(event.NamingOTel), g.executable)
		send(oldestAge, seconds(s.oldest), g.state.Name(event.NamingOTel), g.executable)
	}
	for from, row := range v.stats.Transitions {
		for to, n := range row {
			if n > 0 && from != to { // the same state twice is close() after shutdown()
				send(transitions, float64(n), event.State(from).Name(event.NamingOTel), event.State(to).Name(event.NamingOTel))
			}
		}
	}
	send(tracked, float64(v.stats.Open+v.stats.Held+v.stats.Lingering))
	send(lingering, float64(v.stats.Lingering))
	send(overflows, float64(v.stats.Overflows))
	send(repaired, float64(v.stats.Repaired.Moved), "moved")
	send(repaired, float64(v.stats.Repaired.Gone), "gone")
	send(repaired, float64(v.stats.Repaired.Linger), "linger_gone")
	send(requests, float64(v.stats.Requests))
	send(untold, float64(v.stats.Untold))
	send(evicted, float64(v.stats.Evicted))
	send(crowded, float64(v.stats.Crowded))
	send(unfollowed, float64(v.stats.Unfollowed))
	send(gaps, float64(v.stats.Gaps))
}

func collectSink(send func(desc, float64, ...string), name string, w *sink.WorkerStats) {
	up, age := 1.0, 0.0
	if w.Failing != 0 {
		up = 0
	}
	if w.Oldest != 0 {
		age = max(0, time.Since(time.Unix(0, w.Oldest)).Seconds())
	}
	send(sinkUp, up, name)
	send(sinkBacklog, float64(w.Backlog), name)
	send(sinkOldest, age, name)
	send(sinkAcked, float64(w.Acked), name)
	send(sinkRetries, float64(w.Retries), name)
	send(sinkRejected, float64(w.Rejected), name)
	send(sinkMissing, float64(w.Missing), name)
	send(sinkDouble, float64(w.Repeated), name)
}
