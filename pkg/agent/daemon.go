// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/file"
	"github.com/stated-tcp/stated/pkg/spool"
)

// Daemon is the agent that runs for months: the loop's records go through the
// spool to the sinks, each at its own pace. Stream is the loop's Consumer.
//
// It stops in order: the loop first, so that nothing new comes; then the queue,
// so that all is in the spool; then the sinks, which have until the drain
// deadline; then the spool, with what they did not get.
type Daemon struct {
	Stream *Stream
	Log    *slog.Logger
	// Processes says in records who processes are; the loop has to let it learn.
	Processes *Processes
	meter     atomic.Pointer[Meter]
	host      render.Host
	spool     *spool.Spool
	queue     *queue

	mu    sync.Mutex // guards what follows
	cfg   *Config
	sinks map[string]*delivery
}

// delivery is a sink at work.
type delivery struct {
	cfg    SinkConfig
	sink   sink.Sink
	dead   *file.Sink
	reader *spool.Reader
	worker *sink.Worker
	drain  context.CancelFunc // deliver what is there, then end
	kill   context.CancelFunc // end now
	done   chan struct{}
	says   complaints
	gaps   *burst
}

// StartDaemon opens the spool and the sinks and begins to deliver what an
// earlier run left in it.
func StartDaemon(cfg *Config, host render.Host, want *filter.Filter, log *slog.Logger) (_ *Daemon, err error) {
	d := &Daemon{Log: log, host: host, cfg: cfg, sinks: make(map[string]*delivery)}
	every, err := cfg.Spool.syncEvery()
	if err != nil {
		return nil, err
	}
	d.spool, err = spool.Open(cfg.Spool.Dir, spool.Options{
		SegmentBytes: cfg.Spool.SegmentBytes, MaxBytes: cfg.Spool.MaxBytes, KeepBytes: cfg.Spool.KeepBytes,
		DropOldest: cfg.Spool.OnFull == "drop_oldest", SyncAlways: every == 0, Synced: d.synced,
	})
	if err != nil {
		return nil, err
	}
	if s := d.spool.Stats(); s.TornBytes > 0 {
		log.Warn("the spool ended in the middle of a block: it was cut off", "bytes", s.TornBytes, "records", s.TornRecords)
	}
	defer func() {
		if err != nil {
			for _, s := range d.sinks {
				s.kill()
				<-s.done
			}
			d.spool.Close()
		}
	}()
	for i := range cfg.Sinks {
		if err := d.start(&cfg.Sinks[i], nil); err != nil {
			return nil, err
		}
	}
	d.queue = newQueue(d.spool, log, every, cfg.Spool.OnFull)
	d.Processes = cfg.Enrich.processes()
	d.Stream = newStream(d.queue, host, cfg.choice(want), d.Processes.Of)
	d.Stream.lost = newBurst(lostEvents(log, cfg.Spool.OnFull))
	return d, nil
}

// choice is what any sink wants.
func (c *Config) choice(want *filter.Filter) *choice {
	out := &choice{filter: want}
	for i := range c.Sinks {
		records := newSelector(&c.Sinks[i]).records
		out.changes = out.changes || slices.Contains(records, "tcp.state_change")
		out.conns = out.conns || slices.Contains(records, "tcp.connection")
		out.leaks = out.leaks || slices.Contains(records, "tcp.leak")
	}
	return out
}

// start begins to deliver to a sink, which is made if it is nil.
func (d *Daemon) start(c *SinkConfig, made sink.Sink) error {
	s := &delivery{cfg: *c, done: make(chan struct{}), sink: made,
		says: complaints{log: d.Log.With("sink", c.Name), last: make(map[string]complaint)}}
	s.gaps = newBurst(func(n uint64, why string, in time.Duration) {
		d.Log.Warn("records are missing in the spool", "sink", c.Name, "records", n, "in", in, "why", why)
	})
	var err error
	if s.sink == nil {
		s.sink, err = newSink(c)
	}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0 {
		err = fmt.Errorf("%w (the agent has given up CAP_DAC_OVERRIDE: let it belong to root)", err)
	}
	if err != nil {
		return fmt.Errorf("sink %s: %w", c.Name, err)
	}
	s.dead, err = file.New(file.Config{Path: filepath.Join(d.cfg.Spool.Dir, c.Name+".rejected.jsonl"), RotateBytes: 16 << 20, Keep: 1})
	if err != nil {
		return errors.Join(fmt.Errorf("sink %s: %w", c.Name, err), s.sink.Close())
	}
	if s.reader, err = d.spool.Reader(c.Name); err != nil {
		return errors.Join(fmt.Errorf("sink %s: %w", c.Name, err), s.sink.Close(), s.dead.Close())
	}
	d.work(s)
	d.sinks[c.Name] = s
	return nil
}

func (d *Daemon) work(s *delivery) {
	s.worker = sink.NewWorker(s.sink, s.reader, sink.WorkerOptions{
		BatchRecords: s.cfg.BatchRecords, BatchBytes: s.cfg.BatchBytes, Timeout: s.cfg.Timeout,
		Want: newSelector(&s.cfg).want, DeadLetter: s.dead,
		Acked: func(batch []sink.Record) {
			if m := d.meter.Load(); m != nil {
				(*m).Acked(s.cfg.Name, batch)
			}
		},
		Failed: func(err error) { s.says.say("a sink takes no records: they wait in the spool", err) },
		Refused: func(err error) {
			s.says.say("a sink refused records for good: see its .rejected.jsonl in the spool", err)
		},
		Recovered: func() { clear(s.says.last); d.Log.Info("the sink takes records again", "sink", s.cfg.Name) },
		Gap: func(e spool.Entry) []byte {
			s.gaps.add(e.Missing, whyMissing(e, d.spool.Stats()))
			return render.GapRecord(d.host, render.Gap{UID: fmt.Sprintf("%s-gap-%s-%d", d.host.RunID, s.cfg.Name, e.End()),
				Wall: time.Now().UnixNano(), Stage: "spool", Sink: s.cfg.Name, Records: e.Missing, Damaged: e.Damaged})
		},
	})
	drain, cancelDrain := context.WithCancel(context.Background())
	hard, cancelHard := context.WithCancel(context.Background())
	s.drain, s.kill = cancelDrain, func() { cancelDrain(); cancelHard() }
	go func() {
		defer close(s.done)
		s.worker.Run(drain, hard)
	}()
}

// Run drives the loop until ctx is done, and then stops everything within the
// drain deadline. What the sinks did not get stays in the spool.
func (d *Daemon) Run(ctx context.Context, loop *Loop) error {
	go d.Processes.Name(ctx)
	defer context.AfterFunc(ctx, func() { close(d.queue.hurry) })() // a loop that waits for room does not see ctx
	return errors.Join(loop.Run(ctx), d.Close())
}

// Close stops everything but the loop.
func (d *Daemon) Close() (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Stream.lost.end()
	deadline := time.AfterFunc(d.cfg.Drain, func() { close(d.queue.stop) })
	d.queue.close()
	deadline.Stop()
	for _, s := range d.sinks {
		s.drain()
	}
	over := time.After(d.cfg.Drain)
	for name, s := range d.sinks {
		select {
		case <-s.done:
		case <-over:
			over = closed
			s.kill()
		}
		if stopErr := s.close(); stopErr != nil {
			d.Log.Warn("a sink did not stop cleanly", "sink", name, "error", stopErr)
			err = errors.Join(err, stopErr)
		}
	}
	if n := d.SpoolLost(); n > 0 {
		d.Log.Warn("records did not reach the spool: each sink is told of them", "records", n)
	}
	if n := d.backlog(); n > 0 {
		d.Log.Info("records stay in the spool for the next start", "records", n)
	}
	return errors.Join(err, d.spool.Close())
}

// closed is a deadline that is over.
var closed = func() <-chan time.Time { c := make(chan time.Time); close(c); return c }()

func (d *Daemon) backlog() (n uint64) {
	for _, s := range d.sinks {
		n = max(n, s.reader.Backlog())
	}
	return n
}

// stopTime is how long a sink may take to notice that it was stopped.
const stopTime = 5 * time.Second

// wait has the worker end.
func (s *delivery) wait() error {
	s.kill()
	select {
	case <-s.done:
		return nil
	case <-time.After(stopTime):
		return fmt.Errorf("sink %s does not return from what it is doing", s.cfg.Name)
	}
}

// close ends the worker and closes its sink. The reader stays.
func (s *delivery) close() error {
	if err := s.wait(); err != nil {
		return err // and leave it all to the end of the process
	}
	s.gaps.end()
	return errors.Join(s.sink.Close(), s.dead.Close())
}

// Reload applies the filter and the sinks of a new configuration, and has file
// sinks open their files anew. Sinks that are the same go on undisturbed; those
// that changed go on where they were. What else changed needs a restart, and is
// returned by name.
func (d *Daemon) Reload(cfg *Config, want *filter.Filter) (restart []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, fresh := reflect.ValueOf(*d.cfg), reflect.ValueOf(*cfg)
	for i := range old.NumField() {
		key := old.Type().Field(i).Tag.Get("yaml")
		if key != "sinks" && key != "filter" && !reflect.DeepEqual(old.Field(i).Interface(), fresh.Field(i).Interface()) {
			restart = append(restart, key)
		}
	}
	var errs []error
	keep, made := make(map[string]bool), make(map[string]sink.Sink)
	for i := range cfg.Sinks {
		c := &cfg.Sinks[i]
		s := d.sinks[c.Name]
		if s != nil && reflect.DeepEqual(&s.cfg, c) {
			keep[c.Name] = true
			if f, ok := s.sink.(*file.Sink); ok {
				f.Reopen()
			}
			continue
		}
		if c.File != nil {
			continue // two cannot have one file open: it is made when the old one is closed
		}
		fresh, err := newSink(c)
		if err != nil {
			errs = append(errs, fmt.Errorf("sink %s: %w", c.Name, err))
			keep[c.Name] = s != nil // it goes on as it was
			continue
		}
		made[c.Name] = fresh
	}
	for name, s := range d.sinks {
		if !keep[name] {
			if err := s.close(); err != nil {
				errs = append(errs, err)
				keep[name] = true // it cannot be replaced
			}
		}
	}
	errs = append(errs, d.swap(cfg, keep, made)...)
	d.cfg.Sinks, d.cfg.Filter = cfg.Sinks, cfg.Filter
	d.Stream.choice.Store(cfg.choice(want))
	return restart, errors.Join(errs...)
}

// swap replaces the sinks that are stopped, by those that were made or by new
// ones. Meanwhile the spool may not drop what a reader has not read because it is
// not there.
func (d *Daemon) swap(cfg *Config, keep map[string]bool, made map[string]sink.Sink) (errs []error) {
	d.queue.hold.Lock()
	defer d.queue.hold.Unlock()
	old := make(map[string]SinkConfig)
	for name, s := range d.sinks {
		if !keep[name] {
			old[name] = s.cfg
			errs = append(errs, s.reader.Close())
			delete(d.sinks, name)
		}
	}
	for i := range cfg.Sinks {
		c := &cfg.Sinks[i]
		fresh := made[c.Name]
		if d.sinks[c.Name] != nil || fresh == nil && c.File == nil {
			if fresh != nil {
				errs = append(errs, fresh.Close())
			}
			continue
		}
		err := d.start(c, fresh)
		if err == nil {
			continue
		}
		errs = append(errs, err)
		if before, ok := old[c.Name]; ok { // it goes on as it was, so that its records are kept
			errs = append(errs, d.start(&before, nil))
		}
	}
	return errs
}

// Meter is told what a Daemon does, each in a goroutine of its own.
type Meter interface {
	Acked(sink string, batch []sink.Record) // a sink has them
	Synced(took time.Duration)              // the spool made durable what it has
	Leaks(l *render.Leaks)                  // all that leaks now; valid during the call
}

// Measure has m told from now on.
func (d *Daemon) Measure(m Meter) { d.meter.Store(&m) }

func (d *Daemon) synced(took time.Duration) {
	if m := d.meter.Load(); m != nil {
		(*m).Synced(took)
	}
}

// SinkStats returns the counts of each sink.
func (d *Daemon) SinkStats() map[string]sink.WorkerStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[string]sink.WorkerStats, len(d.sinks))
	for name, s := range d.sinks {
		out[name] = s.worker.Stats()
	}
	return out
}

// SpoolStats returns the counts of the spool.
func (d *Daemon) SpoolStats() spool.Stats { return d.spool.Stats() }

// SpoolOldest returns when the oldest record that the spool keeps was made, in
// nanoseconds since 1970: how far back it tells. False where it has none.
func (d *Daemon) SpoolOldest() (int64, bool) {
	line, err := d.spool.Oldest()
	if err != nil {
		return 0, false // or it was removed meanwhile
	}
	r, err := sink.Parse(line)
	return r.Time, err == nil && r.Time != 0
}

// SpoolLost returns how many records never reached the spool.
func (d *Daemon) SpoolLost() uint64 { return d.queue.lost.Load() }

// Watch tells systemd that the service is ready, and that it is alive for as
// long as the loop is; until ctx is done. A disk that does not answer is no
// reason for a restart, which would not make it.
func (d *Daemon) Watch(ctx context.Context) {
	if err := Notify("READY=1"); err != nil {
		d.Log.Warn("no systemd", "error", err)
	}
	defer Notify("STOPPING=1") // nobody to tell when it fails
	every := watchdogEvery()
	if every == 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := d.Alive(2 * every); err != nil {
				d.Log.Error("the watchdog is not told", "error", err)
			} else if err := Notify("WATCHDOG=1"); err != nil {
				d.Log.Warn("no systemd", "error", err)
			}
		}
	}
}

// Alive returns an error when the loop did not move for that long.
func (d *Daemon) Alive(within time.Duration) error {
	if max(d.Stream.beat.Load(), d.queue.waits.Load()) < time.Now().Add(-within).UnixNano() {
		return errors.New("the loop over the kernel's events stands still")
	}
	return nil
}

// Ready returns an error when records are not made, or cannot be kept.
func (d *Daemon) Ready() error {
	if f := d.queue.failing.Load(); f != nil {
		return errors.New(f.text)
	}
	if d.queue.beat.Load() < time.Now().Add(-readyTime).UnixNano() {
		return errors.New("the spool stands still: its disk does not answer")
	}
	return d.Alive(readyTime)
}

// readyTime is how long the loop or the spool may take over one step.
const readyTime = 10 * time.Second
