// SPDX-License-Identifier: Apache-2.0

package sink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/spool"
)

// collector keeps what it acknowledges, and fails as it is told.
type collector struct {
	mu    sync.Mutex
	uids  []string
	fail  func(batch []Record) error // before anything is kept
	after func(batch []Record) error // when all is kept
}

func (c *collector) Send(ctx context.Context, batch []Record) error {
	if c.fail != nil {
		err := c.fail(batch)
		var rejected *Rejected
		if err != nil && !errors.As(err, &rejected) {
			return err
		}
		if rejected != nil {
			for i, r := range batch {
				if !slices.Contains(rejected.Indexes, i) {
					c.keep(r)
				}
			}
			return err
		}
	}
	for _, r := range batch {
		c.keep(r)
	}
	if c.after != nil {
		return c.after(batch)
	}
	return nil
}

func (c *collector) keep(r Record) {
	c.mu.Lock()
	c.uids = append(c.uids, r.UID)
	c.mu.Unlock()
}

func (c *collector) Close() error { return nil }

func line(n int) string {
	return fmt.Sprintf(`{"schema":"stated/1","timestamp":"2026-11-23T16:00:00.%09dZ","event.name":"tcp.connection","severity_text":"INFO","log.record.uid":"run-%d","x":"}"}`, n, n)
}

func spooled(t *testing.T, n int) (*spool.Spool, *spool.Reader) {
	t.Helper()
	s, err := spool.Open(t.TempDir(), spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r, err := s.Reader("r")
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, s, 0, n)
	return s, r
}

func appendTo(t *testing.T, s *spool.Spool, from, n int) {
	t.Helper()
	for i := from; i < from+n; i += 10 {
		var lines strings.Builder
		for j := i; j < min(i+10, from+n); j++ {
			lines.WriteString(line(j) + "\n")
		}
		if err := s.Append([]byte(lines.String()), min(10, from+n-i)); err != nil {
			t.Fatal(err)
		}
	}
}

var fast = WorkerOptions{BatchRecords: 7, MinBackoff: time.Microsecond, MaxBackoff: time.Microsecond}

// deliverAll runs a worker until the spool is empty.
func deliverAll(t *testing.T, c *collector, r *spool.Reader, o WorkerOptions) *Worker {
	t.Helper()
	w := NewWorker(c, r, o)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	w.Run(done, t.Context())
	if r.Backlog() != 0 {
		t.Errorf("backlog %d", r.Backlog())
	}
	return w
}

func wantUIDs(t *testing.T, got []string, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d records, want %d", len(got), n)
	}
	for i, uid := range got {
		if uid != fmt.Sprintf("run-%d", i) {
			t.Fatalf("record %d is %s", i, uid)
		}
	}
}

func TestDeliver(t *testing.T) {
	_, r := spooled(t, 100)
	c := new(collector)
	w := deliverAll(t, c, r, fast)
	wantUIDs(t, c.uids, 100)
	if s := w.Stats(); s.Acked != 100 || s.Batches != 15 || s.Retries != 0 {
		t.Errorf("%+v", s)
	}
}

// Every error in any order: nothing is lost, the order stays, and what came
// twice was counted.
func TestEveryError(t *testing.T) {
	_, r := spooled(t, 500)
	rng := rand.New(rand.NewPCG(1, 2))
	c := new(collector)
	c.fail = func(batch []Record) error {
		switch rng.IntN(6) {
		case 0:
			return &Retry{After: time.Microsecond, Err: errors.New("busy")}
		case 1:
			return errors.New("connection reset")
		case 2:
			if len(batch) > 1 {
				return &TooLarge{Err: errors.New("413")}
			}
		case 3:
			if rng.IntN(5) == 0 {
				panic("a bug in the sink")
			}
		}
		return nil
	}
	c.after = func(batch []Record) error {
		if rng.IntN(10) == 0 {
			return errors.New("the answer was lost")
		}
		return nil
	}
	w := deliverAll(t, c, r, fast)
	seen := make(map[string]bool)
	twice := uint64(0)
	var order []string
	for _, uid := range c.uids {
		if seen[uid] {
			twice++
			continue
		}
		seen[uid] = true
		order = append(order, uid)
	}
	wantUIDs(t, order, 500)
	if s := w.Stats(); twice == 0 || twice > s.Repeated || s.Acked != 500 {
		t.Errorf("%d twice, %+v", twice, s)
	}
}

func TestRejectedGoToTheDeadLetters(t *testing.T) {
	_, r := spooled(t, 50)
	c := new(collector)
	c.fail = func(batch []Record) error {
		bad := []int{-1, 1000} // nonsense of a hostile collector
		for i, r := range batch {
			if strings.HasSuffix(r.UID, "3") {
				bad = append(bad, i)
			}
		}
		return &Rejected{Indexes: bad, Err: errors.New("400")}
	}
	dead := new(collector)
	o := fast
	o.DeadLetter = dead
	w := deliverAll(t, c, r, o)
	if want := []string{"run-3", "run-13", "run-23", "run-33", "run-43"}; !slices.Equal(dead.uids, want) {
		t.Errorf("dead letters %v", dead.uids)
	}
	if s := w.Stats(); s.Acked != 45 || s.Rejected != 5 || s.DeadLetter != 5 || len(c.uids) != 45 {
		t.Errorf("%+v", s)
	}
}

// One record that is too large alone is rejected; the others arrive.
func TestTooLargeAlone(t *testing.T) {
	_, r := spooled(t, 20)
	c := new(collector)
	c.fail = func(batch []Record) error {
		if slices.ContainsFunc(batch, func(r Record) bool { return r.UID == "run-11" }) {
			return &TooLarge{Err: errors.New("413")}
		}
		return nil
	}
	w := deliverAll(t, c, r, fast)
	if s := w.Stats(); s.Acked != 19 || s.Rejected != 1 {
		t.Errorf("%+v", s)
	}
}

// A dead collector keeps everything in the spool, and the drain ends in time.
func TestDeadCollector(t *testing.T) {
	_, r := spooled(t, 30)
	c := new(collector)
	hard, cancel := context.WithCancel(t.Context())
	failures := 0
	c.fail = func([]Record) error {
		if failures++; failures == 20 {
			cancel()
		}
		return errors.New("connection refused")
	}
	w := NewWorker(c, r, fast)
	w.Run(t.Context(), hard)
	if s := w.Stats(); s.Backlog != 30 || s.Failing == 0 || s.LastError != "connection refused" {
		t.Errorf("%+v", s)
	}
	c.fail = nil
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// Records that come while the worker waits are delivered; records that were
// dropped become a record of their own.
func TestFollowAndGap(t *testing.T) {
	s, r := spooled(t, 10)
	c := new(collector)
	o := fast
	o.Gap = func(e spool.Entry) []byte {
		return fmt.Appendf(nil, `{"event.name":"stated.gap","log.record.uid":"gap-%d-%d"}`, e.Seq, e.Missing)
	}
	o.Want = func(r *Record) bool { return r.UID != "run-15" }
	all := make(chan struct{})
	o.Acked = func(batch []Record) {
		if slices.ContainsFunc(batch, func(r Record) bool { return r.UID == "run-29" }) {
			close(all)
		}
	}
	w := NewWorker(c, r, o)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { w.Run(ctx, t.Context()); close(ended) }()
	appendTo(t, s, 10, 10)
	s.Drop(5)
	appendTo(t, s, 20, 10)
	<-all
	cancel()
	<-ended
	if s := w.Stats(); s.Missing != 5 || s.Unwanted != 1 || s.Acked != 30 {
		t.Errorf("%+v", s)
	}
	if !slices.Contains(c.uids, "gap-20-5") || slices.Contains(c.uids, "run-15") {
		t.Errorf("%v", c.uids)
	}
}

// What comes while the last batch is on its way is delivered, too, when the
// worker is stopped just then.
func TestDrainTakesTheLast(t *testing.T) {
	s, r := spooled(t, 5)
	c := new(collector)
	ctx, cancel := context.WithCancel(t.Context())
	c.after = func([]Record) error {
		if ctx.Err() == nil {
			appendTo(t, s, 5, 3)
			cancel()
		}
		return nil
	}
	NewWorker(c, r, fast).Run(ctx, t.Context())
	wantUIDs(t, c.uids, 8)
}

func TestBackoff(t *testing.T) {
	w := NewWorker(nil, must(spool.Open(t.TempDir(), spool.Options{})).reader(t), WorkerOptions{})
	for failures := 1; failures < 100; failures++ {
		if d := w.backoff(failures, 0); d < w.opts.MinBackoff/2 || d > w.opts.MaxBackoff {
			t.Errorf("after %d failures: %v", failures, d)
		}
	}
	if d := w.backoff(1, 1000*time.Hour); d > time.Minute {
		t.Errorf("a collector can stop us for %v", d)
	}
}

type opened struct{ *spool.Spool }

func must(s *spool.Spool, err error) opened {
	if err != nil {
		panic(err)
	}
	return opened{s}
}

func (o opened) reader(t *testing.T) *spool.Reader {
	t.Cleanup(func() { o.Close() })
	r, err := o.Reader("r")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParse(t *testing.T) {
	r, err := Parse([]byte(line(42)))
	if err != nil || r.Event != "tcp.connection" || r.Severity != 9 || r.UID != "run-42" || r.Time%1e9 != 42 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Parse([]byte(`{"event.name":`)); err == nil {
		t.Error("no error of half a record")
	}
}

// flaky is a file system that opens nothing while it fails.
type flaky struct {
	spool.OS
	fails int
}

func (f *flaky) Open(name string, create bool) (spool.File, error) {
	if strings.HasSuffix(name, ".seg") && f.fails > 0 {
		f.fails--
		return nil, errors.New("too many open files")
	}
	return f.OS.Open(name, create)
}

// A spool that cannot be read for a while delays records, and why is told.
func TestUnreadableSpool(t *testing.T) {
	disk := new(flaky)
	s, err := spool.Open(t.TempDir(), spool.Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Reader("r")
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, s, 0, 20)
	disk.fails = 3
	c := new(collector)
	o := fast
	var told []string
	o.Failed = func(err error) { told = append(told, err.Error()) }
	o.Recovered = func() { told = append(told, "again") }
	w := deliverAll(t, c, r, o)
	wantUIDs(t, c.uids, 20)
	if len(told) != 4 || !strings.Contains(told[0], "too many open files") || told[3] != "again" {
		t.Errorf("told %q", told)
	}
	if s := w.Stats(); s.Failing != 0 || s.Retries != 3 {
		t.Errorf("%+v", s)
	}
}

// A record that makes the program panic is a dead letter, and the others go on.
func TestPanickingRecord(t *testing.T) {
	_, r := spooled(t, 20)
	c, dead := new(collector), new(collector)
	o := fast
	o.DeadLetter = dead
	o.Want = func(r *Record) bool {
		if r.UID == "run-7" {
			panic("a bug")
		}
		return true
	}
	w := deliverAll(t, c, r, o)
	if s := w.Stats(); s.Acked != 19 || s.Rejected != 1 || s.DeadLetter != 1 || len(c.uids) != 19 {
		t.Errorf("%+v", s)
	}
}
