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

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
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

func example() (*Views, *Metrics) {
	observer := new(both)
	table := lifecycle.New(observer, lifecycle.Options{})
	views := NewViews(table)
	m := New(Sources{
		Version: "v1", Views: views, TableLimit: 1000,
		Kernel:    func() (probe.Stats, error) { return probe.Stats{Attempts: 100, Lost: 3, Filtered: 5}, nil },
		Spool:     func() spool.Stats { return spool.Stats{Bytes: 4096, Records: 17, TornRecords: 2} },
		SpoolLost: func() uint64 { return 4 },
		Sinks: func() map[string]sink.WorkerStats {
			return map[string]sink.WorkerStats{"a": {Acked: 10, Retries: 2, Repeated: 20, Rejected: 1, Missing: 6, Backlog: 7, Failing: 1}, "b": {}}
		},
	})
	observer.Metrics = m
	story(table)
	m.Acked("a", []sink.Record{{Time: 1 << 62}}) // from the future: the clock was set back
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
