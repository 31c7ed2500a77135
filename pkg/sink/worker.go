// SPDX-License-Identifier: Apache-2.0

package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/stated-tcp/stated/pkg/spool"
)

// WorkerOptions say how a Worker delivers. Zero values are the defaults.
type WorkerOptions struct {
	BatchRecords int           // at most in a batch; 0: 1,000
	BatchBytes   int           // begin no further record in a batch of that size; 0: 1 MiB
	Timeout      time.Duration // for one Send; 0: 30 s
	MinBackoff   time.Duration // after the first failure, twice as much after each; 0: 500 ms
	MaxBackoff   time.Duration // 0: 30 s; also the most that a collector's Retry-After counts for twice over

	// Want says whether a record goes to this sink, and may replace its Line;
	// nil: all do.
	Want func(*Record) bool
	// Gap makes the record that tells of missing ones; nil: they are only counted.
	Gap func(spool.Entry) []byte
	// DeadLetter gets what the sink will never take; nil: it is only counted.
	DeadLetter Sink
	// Acked is told of each batch that was acknowledged, in the worker's
	// goroutine; may be nil.
	Acked func([]Record)
	// Failed is told why a Send, or a read of the spool, did not succeed and is
	// repeated, Recovered that one did again, and Refused why records were
	// rejected or cannot be kept as dead letters; in the worker's goroutine; may
	// be nil. The reason may quote the collector.
	Failed, Refused func(error)
	Recovered       func()
}

// WorkerStats counts what a Worker did.
type WorkerStats struct {
	Acked      uint64 // records
	Batches    uint64 // Sends that were acknowledged
	Retries    uint64 // Sends that failed and were repeated
	Repeated   uint64 // records in them: they may be at the collector twice
	Rejected   uint64 // records that the sink will never take
	DeadLetter uint64 // of these, records that went to the dead letters
	Unwanted   uint64 // records that were not for this sink
	Missing    uint64 // records that were gone from the spool before they were sent
	Backlog    uint64 // records not done with
	Oldest     int64  // time of the oldest record that is being sent; 0: none
	Failing    int64  // since when no Send succeeded, Unix nanoseconds; 0: the last one did
	LastError  string // of the last Send that failed; stays
}

// Worker delivers what a reader of the spool gives to a sink, in order, until
// each record is acknowledged, rejected, or not wanted.
type Worker struct {
	sink   Sink
	reader *spool.Reader
	opts   WorkerOptions

	arena []byte // the lines of batch
	batch []Record
	ends  []uint64 // cursor behind each record of batch
	end   uint64   // cursor behind all that was read

	mu    sync.Mutex // guards stats
	stats WorkerStats
}

// NewWorker makes a Worker. The sink and the reader stay the caller's to close,
// after Run.
func NewWorker(s Sink, r *spool.Reader, o WorkerOptions) *Worker {
	o.BatchRecords = or(o.BatchRecords, 1000)
	o.BatchBytes = or(o.BatchBytes, 1<<20)
	o.Timeout = or(o.Timeout, 30*time.Second)
	o.MinBackoff = or(o.MinBackoff, 500*time.Millisecond)
	o.MaxBackoff = or(o.MaxBackoff, 30*time.Second)
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	if o.Refused == nil {
		o.Refused = func(error) {}
	}
	if o.Recovered == nil {
		o.Recovered = func() {}
	}
	return &Worker{sink: s, reader: r, opts: o, end: r.Acked()}
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// Stats returns the counts so far. It may be called from any goroutine.
func (w *Worker) Stats() WorkerStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stats
	s.Backlog = w.reader.Backlog()
	return s
}

func (w *Worker) count(f func(*WorkerStats)) {
	w.mu.Lock()
	f(&w.stats)
	w.mu.Unlock()
}

// Run delivers until ctx is done, then what is in the spool by then, and
// returns when that is done or hard is. What is not acknowledged stays in the
// spool. Where the spool cannot be read it is tried again.
func (w *Worker) Run(ctx, hard context.Context) {
	for failures := 0; hard.Err() == nil; {
		last := ctx.Err() != nil // before the spool is read: what is there by then is delivered
		err := w.fill()
		if len(w.batch) > 0 {
			w.deliver(hard, w.batch, w.ends)
		}
		if hard.Err() == nil {
			w.reader.Commit(w.end)
		}
		switch {
		case errors.Is(err, io.EOF):
			if last {
				return
			}
			w.reader.Wait(ctx)
		case err != nil:
			failures++
			w.failed(fmt.Errorf("read the spool: %w", err), 0)
			pause(hard, w.backoff(failures, 0))
			continue
		}
		failures = 0
	}
}

// failed notes that something did not succeed and is repeated.
func (w *Worker) failed(err error, records int) {
	w.count(func(s *WorkerStats) {
		s.Retries++
		s.Repeated += uint64(records)
		s.LastError = err.Error()
		if s.Failing == 0 {
			s.Failing = time.Now().UnixNano()
		}
	})
	w.opts.Failed(err)
}

// works notes that something succeeded.
func (w *Worker) works() {
	was := false
	w.count(func(s *WorkerStats) { was, s.Failing = s.Failing != 0, 0 })
	if was {
		w.opts.Recovered()
	}
}

// fill reads the next batch; io.EOF says that there is no more for now.
func (w *Worker) fill() error {
	w.arena, w.batch, w.ends = w.arena[:0], w.batch[:0], w.ends[:0]
	var starts []int
	unwanted := uint64(0)
	defer func() {
		for i, from := range starts { // arena does not move any more
			to := len(w.arena)
			if i+1 < len(starts) {
				to = starts[i+1]
			}
			w.batch[i].Line = w.arena[from:to:to]
		}
		oldest := int64(0)
		if len(w.batch) > 0 {
			oldest = w.batch[0].Time
		}
		w.count(func(s *WorkerStats) { s.Unwanted += unwanted; s.Oldest = oldest })
	}()
	for read := 0; len(w.batch) < w.opts.BatchRecords && len(w.arena) < w.opts.BatchBytes && read < 100*w.opts.BatchRecords; read++ {
		e, err := w.reader.Next()
		if err != nil {
			return err
		}
		w.end = e.End()
		line := e.Line
		if e.Missing > 0 {
			w.count(func(s *WorkerStats) { s.Missing += e.Missing })
			if w.opts.Gap == nil {
				continue
			}
			line = w.opts.Gap(e)
		}
		r, want := w.take(line)
		if !want {
			unwanted++
			continue
		}
		starts = append(starts, len(w.arena))
		w.arena = append(w.arena, r.Line...)
		w.batch = append(w.batch, r)
		w.ends = append(w.ends, w.end)
	}
	return nil
}

// take makes a record of a line, and says whether it goes to the sink. One that
// makes the program panic goes to the dead letters: it would come again after each
// restart.
func (w *Worker) take(line []byte) (r Record, want bool) {
	defer func() {
		if p := recover(); p != nil {
			w.reject(context.Background(), []Record{{Line: line}}, &Rejected{Indexes: []int{0}, Err: fmt.Errorf("a record made the program panic: %v", p)})
			want = false
		}
	}()
	r, err := Parse(line)
	return r, err != nil || w.opts.Want == nil || w.opts.Want(&r)
}

// deliver sends batch, and again until it is done with or ctx is done. ends has
// the cursor behind each record.
func (w *Worker) deliver(ctx context.Context, batch []Record, ends []uint64) {
	for failures := 0; ctx.Err() == nil; {
		err := w.send(ctx, batch)
		var retry *Retry
		var rejected *Rejected
		var tooLarge *TooLarge
		switch {
		case err == nil:
			w.acknowledged(batch)
			w.reader.Commit(ends[len(ends)-1])
			return
		case errors.As(err, &rejected):
			w.reject(ctx, batch, rejected)
			w.reader.Commit(ends[len(ends)-1])
			return
		case errors.As(err, &tooLarge):
			if len(batch) == 1 {
				w.reject(ctx, batch, &Rejected{Indexes: []int{0}, Err: err})
				w.reader.Commit(ends[0])
				return
			}
			half := len(batch) / 2
			w.deliver(ctx, batch[:half], ends[:half])
			batch, ends = batch[half:], ends[half:]
			continue
		}
		failures++
		after := time.Duration(0)
		if errors.As(err, &retry) {
			after = retry.After
		}
		if ctx.Err() != nil { // it was stopped, which is no failure
			w.count(func(s *WorkerStats) { s.Retries++; s.Repeated += uint64(len(batch)) })
			return
		}
		w.failed(err, len(batch))
		pause(ctx, w.backoff(failures, after))
	}
}

// send calls the sink, and keeps a sink that panics from taking the others
// with it.
func (w *Worker) send(ctx context.Context, batch []Record) (err error) {
	ctx, cancel := context.WithTimeout(ctx, w.opts.Timeout)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the sink panicked: %v", r)
		}
	}()
	return w.sink.Send(ctx, batch)
}

func (w *Worker) acknowledged(batch []Record) {
	if len(batch) == 0 {
		return
	}
	if w.opts.Acked != nil {
		w.opts.Acked(batch)
	}
	w.count(func(s *WorkerStats) {
		s.Acked += uint64(len(batch))
		s.Batches++
	})
	w.works()
}

// reject sorts out what the sink will never take.
func (w *Worker) reject(ctx context.Context, batch []Record, why *Rejected) {
	bad := make([]bool, len(batch))
	for _, i := range why.Indexes {
		if i >= 0 && i < len(batch) { // a hostile collector may have chosen it
			bad[i] = true
		}
	}
	var good, dead []Record
	for i, r := range batch {
		if bad[i] {
			dead = append(dead, r)
		} else {
			good = append(good, r)
		}
	}
	unnamed := min(max(why.Unnamed, 0), len(good))
	w.acknowledged(good[unnamed:]) // which ones they are, nobody knows
	w.count(func(s *WorkerStats) {
		s.Rejected += uint64(len(dead) + unnamed)
		s.LastError = why.Error()
	})
	w.works()
	w.opts.Refused(why)
	if w.opts.DeadLetter == nil || len(dead) == 0 {
		return
	}
	if err := w.opts.DeadLetter.Send(ctx, dead); err != nil {
		w.count(func(s *WorkerStats) { s.LastError = fmt.Sprintf("%v; keep what was rejected: %v", why, err) })
		w.opts.Refused(fmt.Errorf("keep %d rejected records: %w", len(dead), err))
		return
	}
	w.count(func(s *WorkerStats) { s.DeadLetter += uint64(len(dead)) })
}

// backoff is half of a doubling time and a random half, or what the collector
// asked for, within reason: it may be hostile.
func (w *Worker) backoff(failures int, asked time.Duration) time.Duration {
	if asked > 0 {
		return min(asked, 2*w.opts.MaxBackoff)
	}
	d := w.opts.MaxBackoff
	if failures < 16 {
		d = min(d, w.opts.MinBackoff<<(failures-1))
	}
	return d/2 + rand.N(d/2+1)
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
