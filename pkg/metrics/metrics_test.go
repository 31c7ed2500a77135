// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/spool"
)

var update = flag.Bool("update", false, "rewrite the golden page")

// both feeds what the table says to the metrics, which are made after it.
type both struct{ *Metrics }

func (b *both) Transition(c *lifecycle.Conn, e *event.Event) { b.Metrics.Transition(c, e) }
func (b *both) Finished(c *lifecycle.Conn)                   { b.Metrics.Finished(c) }

const ms = 1_000_000

// story has a connection that ended well, one that was refused, and one that is
// stuck in CLOSE_WAIT, of a process with a hostile name.
func story(t *lifecycle.Table) {
	at := int64(1000 * ms)
	step := func(socket event.SocketID, old, now event.State, after int64, change func(*event.Event)) {
		at += after
		e := event.Event{Kind: event.KindState, Time: at, Socket: socket, Old: old, New: now, Family: 2, Protocol: event.ProtoTCP,
			Local: netip.MustParseAddrPort("10.0.0.1:40000"), Peer: netip.MustParseAddrPort("10.0.0.2:443"),
			Owner: event.Task{PID: 7, Start: 1, Comm: event.MakeComm("a\x1b\"b\xff")}, OwnerSource: event.OwnerConnect}
		if now == event.StateClose {
			e.Flags = event.FlagDead | event.FlagDone
		}
		if change != nil {
			change(&e)
		}
		t.Apply(&e)
	}
	step(1, event.StateClose, event.StateSynSent, 0, nil)
	step(1, event.StateSynSent, event.StateEstablished, 20*ms, nil)
	step(1, event.StateEstablished, event.StateFinWait1, 2000*ms, nil)
	step(1, event.StateFinWait1, event.StateFinWait2, 1*ms, nil)
	step(1, event.StateFinWait2, event.StateClose, 1*ms, nil)
	step(2, event.StateClose, event.StateSynSent, 0, nil)
	t.Apply(&event.Event{Kind: event.KindResetReceived, Time: at, Socket: 2})
	step(2, event.StateSynSent, event.StateClose, 3*ms, func(e *event.Event) { e.Err = 111 })
	step(3, event.StateClose, event.StateSynSent, 0, nil)
	step(3, event.StateSynSent, event.StateEstablished, 5*ms, nil)
	step(3, event.StateEstablished, event.StateCloseWait, 5*ms, nil)
	t.Apply(&event.Event{Kind: event.KindClock, Time: at + 90_000*ms})
}

// page serves the metrics on a unix socket and returns what a client gets.
func page(t *testing.T, views *Views, m *Metrics, path string) (int, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "m")
	stop, err := Serve(socket, m, func() error { return nil }, func() error { return errors.New("not now") })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	type answer struct {
		code int
		text string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		r, err := client.Get("http://stated" + path)
		if err != nil {
			got <- answer{err: err}
			return
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		got <- answer{r.StatusCode, string(text), err}
	}()
	for {
		select {
		case a := <-got:
			if a.err != nil {
				t.Fatal(a.err)
			}
			return a.code, a.text
		default:
			views.Idle() // the loop
		}
	}
}

// report has what two processes of a program leak, and a socket of nobody's.
func report() *render.Leaks {
	l := &render.Leaks{Growth: map[string]float64{"a": 0.5, "b": 1}}
	l.Processes = func(t event.Task) render.Process { return render.Process{FDs: 10 * int(t.PID), FDLimit: 100} }
	for i, key := range []string{"a", "b", "c"} {
		s := &census.Socket{}
		s.New = event.StateCloseWait
		if key != "c" {
			s.Holders = []census.Holder{{Task: event.Task{PID: uint32(i + 1), Comm: event.MakeComm("shop")}, FDs: []int32{3}}}
		}
		g := leak.Group{Key: key, Findings: []leak.Finding{{Socket: s, Verdict: leak.EOFUnread}, {Socket: s}}}
		g.Verdicts[leak.EOFUnread], g.States[event.StateCloseWait], g.States[event.StateClose] = 2, 1, 1
		l.Groups = append(l.Groups, g)
	}
	return l
}

func example() (*Views, *Metrics) {
	observer := new(both)
	table := lifecycle.New(observer, lifecycle.Options{})
	views := NewViews(table)
	m := New(Sources{
		Version: "v1", Views: views, TableLimit: 1000,
		Kernel: func() (probe.Stats, error) {
			return probe.Stats{Attempts: 100, Lost: 3, Filtered: 5, Pending: 416, RingBytes: 1 << 20, Programs: []probe.ProgramStats{
				{Name: "st_set_state", Skipped: 1, Runs: 100, Time: 20 * time.Microsecond}, {Name: "st_accept"},
			}}, nil
		},
		Spool:       func() spool.Stats { return spool.Stats{Bytes: 4096, Records: 17, TornRecords: 2} },
		SpoolOldest: func() (int64, bool) { return 1 << 62, true }, SpoolLimit: 1 << 30,
		SpoolLost: func() uint64 { return 4 }, Misses: func() (uint64, uint64) { return 8, 9 },
		Sinks: func() map[string]sink.WorkerStats {
			return map[string]sink.WorkerStats{"a": {Acked: 10, Retries: 2, Repeated: 20, Rejected: 1, Missing: 6, Backlog: 7, Failing: 1}, "b": {}}
		},
	})
	observer.Metrics = m
	story(table)
	m.Acked("a", []sink.Record{{Time: 1 << 62}}) // from the future: the clock was set back
	m.Synced(200 * time.Microsecond)
	m.Snapshotted(50 * time.Millisecond)
	m.Leaks(report())
	return views, m
}

var foreign = regexp.MustCompile(`(?m)^(# (HELP|TYPE) )?(go|process|promhttp)_.*\n`)

func TestGoldenPage(t *testing.T) {
	views, m := example()
	code, text := page(t, views, m, "/metrics")
	if code != http.StatusOK {
		t.Fatal(code, text)
	}
	text = foreign.ReplaceAllString(text, "")
	text = regexp.MustCompile(`goversion="[^"]*"`).ReplaceAllString(text, `goversion="go"`)
	const golden = "testdata/page.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("the page changed (-update rewrites it):\n%s", text)
	}
}

func TestHealth(t *testing.T) {
	views, m := example()
	if code, _ := page(t, views, m, "/healthz"); code != http.StatusOK {
		t.Error("healthz:", code)
	}
	if code, text := page(t, views, m, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "not now") {
		t.Error("readyz:", code, text)
	}
	if code, _ := page(t, views, m, "/debug/pprof/"); code != http.StatusNotFound {
		t.Error("pprof:", code)
	}
}

// Whatever the number of executables, that of series is bounded, and no socket
// is left out.
func TestManyExecutables(t *testing.T) {
	v := &view{groups: make(map[group]members)}
	for i := range 500 {
		v.groups[group{event.StateCloseWait, fmt.Sprint("p", i)}] = members{sockets: i + 1, oldest: int64(i)}
	}
	v.trim()
	total := 0
	for _, m := range v.groups {
		total += m.sockets
	}
	if len(v.groups) != maxExecutables+1 || total != 500*501/2 || v.groups[group{event.StateCloseWait, "p499"}].sockets != 500 {
		t.Errorf("%d groups, %d sockets", len(v.groups), total)
	}
}

// An executable that is called as the label of the rest is part of it: a series
// that is there twice would cost the whole page.
func TestExecutableOther(t *testing.T) {
	for sockets, want := range map[int]int{1: 1 + 11, 1000: 1000 + 11 + 12} { // it is one of the rest, and of the first
		views, m := example()
		l := &render.Leaks{Processes: func(event.Task) render.Process { return render.Process{} }}
		for i := range 51 + 1 {
			name, n := fmt.Sprint("p", i), 10+i
			if i == 0 {
				name, n = "other", sockets
			}
			s := &census.Socket{Holders: []census.Holder{{Task: event.Task{PID: uint32(i + 1), Comm: event.MakeComm(name)}, FDs: []int32{3}}}}
			g := leak.Group{Key: name, Findings: []leak.Finding{{Socket: s, Verdict: leak.EOFUnread}}}
			g.Verdicts[leak.EOFUnread], g.States[event.StateCloseWait] = n, n
			l.Groups = append(l.Groups, g)
		}
		m.Leaks(l)
		code, text := page(t, views, m, "/metrics")
		if code != http.StatusOK {
			t.Fatal(code, text)
		}
		if line := fmt.Sprintf("stated_leak_sockets{executable=\"other\",state=\"close_wait\"} %d\n", want); !strings.Contains(text, line) {
			t.Errorf("no %s", line)
		}
	}

	v := &view{groups: make(map[group]members)}
	for i := range maxExecutables + 1 {
		v.groups[group{event.StateCloseWait, fmt.Sprint("p", i)}] = members{sockets: 10 + i}
	}
	v.groups[group{event.StateCloseWait, "other"}] = members{sockets: 1000, oldest: 5}
	v.trim()
	if got := v.groups[group{event.StateCloseWait, "other"}]; got != (members{1000 + 10 + 11, 5}) {
		t.Errorf("%+v", got)
	}
}

func TestListenOnlyHere(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":9465", "192.0.2.1:1", "localhost:1", "x"} {
		if _, err := listen(address); err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("%s: %v", address, err)
		}
	}
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path); err == nil {
		t.Error("it listens on a file")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "data" {
		t.Errorf("the file is gone: %v", err)
	}
}

// TestIdleClients: however many connect and ask nothing, only so many are kept,
// and who asks is answered when these are sent away.
func TestIdleClients(t *testing.T) {
	_, m := example()
	socket := filepath.Join(t.TempDir(), "m")
	stop, err := Serve(socket, m, func() error { return nil }, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	dial := func() net.Conn {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	ask := func(c net.Conn) {
		t.Helper()
		c.SetDeadline(time.Now().Add(6 * patience))
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(text), "HTTP/1.0 200 ") {
			t.Errorf("%v: %q", err, text)
		}
	}
	for range maxClients {
		dial()
	}
	started := time.Now()
	ask(dial())
	if waited := time.Since(started); waited < patience/2 {
		t.Errorf("client %d is answered after %v, while the others are there", maxClients+1, waited)
	}
}

func TestSparse(t *testing.T) {
	var out strings.Builder
	s := &sparse{to: &out, every: time.Hour}
	for range 3 {
		if n, err := io.WriteString(s, "line\n"); n != 5 || err != nil {
			t.Fatal(n, err)
		}
	}
	s.last = s.last.Add(-2 * time.Hour)
	io.WriteString(s, "later\n")
	if out.String() != "line\nlater\n" {
		t.Errorf("%q", out.String())
	}
}

// TestHelpSaysOfWhich: the metrics of leaks obey the filter, and those of connections
// do not; who looks at both has to be told.
func TestHelpSaysOfWhich(t *testing.T) {
	text, err := os.ReadFile("testdata/page.golden")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		help, ok := strings.CutPrefix(line, "# HELP ")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(help, " ")
		switch {
		case strings.HasPrefix(name, "stated_leak_"):
			if !strings.Contains(help, ofWanted) {
				t.Errorf("does not say that the filter counts: %s", help)
			}
		case strings.HasPrefix(name, "stated_tcp_state_"), strings.HasPrefix(name, "stated_tcp_connect"):
			if !strings.Contains(help, ofAll) && name != "stated_tcp_connections_with_gap_total" {
				t.Errorf("does not say that the filter does not count: %s", help)
			}
		}
	}
}

// TestInferredCounts: without trampolines the SYN_RECV of almost all connections of a
// server is inferred, and they are counted; what began before stated is not, nor what
// is inferred across a gap.
func TestInferredCounts(t *testing.T) {
	for name, tt := range map[string]struct {
		start     int64
		known     lifecycle.Known
		fromStart bool
		gap       bool
		lasted    uint64 // connections counted
		states    uint64
	}{
		"seen":     {1000 * ms, lifecycle.Seen, true, false, 1, 2},
		"inferred": {1000 * ms, lifecycle.Inferred, true, false, 1, 2},
		"at least": {1000 * ms, lifecycle.AtLeast, false, false, 0, 1},
		"gap":      {1000 * ms, lifecycle.Inferred, true, true, 0, 1},
	} {
		m := New(Sources{})
		c := &lifecycle.Conn{Shared: &lifecycle.Shared{}, Role: lifecycle.RoleServer, FromStart: tt.fromStart, Gap: tt.gap, FirstEvent: tt.start, End: 3000 * ms, State: event.StateClose,
			Spans: lifecycle.PathOf(lifecycle.Span{Start: tt.start, State: event.StateSynRecv, Known: tt.known}, lifecycle.Span{Start: 1001 * ms, State: event.StateEstablished})}
		m.Finished(c)
		if got := observed(t, m.lasted); got != tt.lasted {
			t.Errorf("%s: %d connections, want %d", name, got, tt.lasted)
		}
		if got := observed(t, m.inState); got != tt.states {
			t.Errorf("%s: %d states, want %d", name, got, tt.states)
		}
	}
}

// observed counts what went into a histogram.
func observed(t *testing.T, c prometheus.Collector) (n uint64) {
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			n += m.GetHistogram().GetSampleCount()
		}
	}
	return n
}
