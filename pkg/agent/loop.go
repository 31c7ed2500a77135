// SPDX-License-Identifier: Apache-2.0

// Package agent joins the rooms: it drives events from a source through the
// table of connections to who wants to know. Every command is an end of this
// one loop.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/recording"
)

// Source gives events one by one: a probe, or a recording. Read returns
// event.ErrIdle when nothing happened for a while, io.EOF or os.ErrClosed at
// the end.
type Source interface {
	Read(*event.Event) error
}

// Consumer is told of connections, and of the stream they are made of.
type Consumer interface {
	lifecycle.Observer
	// Event sees each event before it is applied.
	Event(e *event.Event)
	// Idle is called when no event waits, and at the end: flush. An error ends
	// the loop; ErrDone ends it without one.
	Idle() error
}

// ErrDone is returned by a consumer that has seen enough.
var ErrDone = errors.New("done")

// Loop drives events from Source to Consumer.
type Loop struct {
	Source   Source
	Table    *lifecycle.Table
	Consumer Consumer
	Record   *recording.Writer         // gets every event, may be nil
	Now      func() (boot, wall int64) // nil for a recording: its clock events are in it
	// Snapshot has Source tell all sockets that are there; nil for a recording.
	// It runs beside the loop at the start, every SnapshotEvery nanoseconds (0:
	// never again, but seldom enough to take a hundredth of the time at most),
	// and after events were lost.
	Snapshot      func() error
	SnapshotEvery int64
	// Learn is told who a process is, before it is part of an event, and may fill
	// in what the kernel does not know, for the recording; may be nil.
	Learn func(event.Task, *event.Process)
	// Snapshotted is told how long each snapshot took; may be nil.
	Snapshotted func(took time.Duration)

	// Late is told once of a snapshot that has not ended after lateAfter; may be nil.
	Late func()

	scan scan
	told int64 // what the source has told when it is idle: all of before then
	last int64 // when clock was called last, 0: never
}

// scan is the state of the snapshots. Its goroutine owns nothing of it.
type scan struct {
	running bool
	wanted  bool // events were lost, or the last snapshot left a doubt
	late    bool // Loop.Late was told
	begun   int64
	next    int64
	done    chan error
	err     error
}

// rescanAfter is how soon a snapshot may follow another, in nanoseconds.
const rescanAfter = 1e9

// clockEvery is how often time passes when nothing else happens, and how often
// the wall clock is compared.
const clockEvery = 1e9

// Run returns when ctx is done, the source ends, or the consumer has enough.
// What happened until then is read, applied, recorded and flushed.
func (l *Loop) Run(ctx context.Context) error {
	err := l.run(ctx)
	l.Table.Flush()
	if idleErr := l.Consumer.Idle(); err == nil && !errors.Is(idleErr, ErrDone) {
		err = idleErr
	}
	if l.Record != nil {
		if flushErr := l.Record.Flush(); flushErr != nil && !errors.Is(err, flushErr) {
			err = errors.Join(err, flushErr)
		}
	}
	return err
}

func (l *Loop) run(ctx context.Context) error {
	var e event.Event
	var until int64 // when ctx was done
	idle := true
	l.told = l.boot()
	for n := 0; ; n++ {
		err := l.Source.Read(&e)
		began := idle // with this event
		idle = errors.Is(err, event.ErrIdle)
		switch {
		case err == nil:
			if until != 0 && e.Time > until {
				return nil
			}
			if l.Now != nil && l.last == 0 {
				if err := l.clock(e.Time); err != nil {
					return err
				}
			}
			if err := l.feed(&e); err != nil {
				return err
			}
			if began {
				l.told = l.boot()
			}
			if n%1024 != 0 {
				continue
			}
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed):
			return nil
		case !idle:
			return err
		}
		if l.Now != nil {
			l.rescan()
			if err := l.pass(idle); err != nil {
				return err
			}
		}
		if err := l.Consumer.Idle(); err != nil {
			if errors.Is(err, ErrDone) {
				return nil
			}
			return err
		}
		if ctx.Err() != nil {
			if l.Now == nil || idle {
				return nil
			}
			if until == 0 {
				until, _ = l.Now()
			}
		}
	}
}

func (l *Loop) boot() (now int64) {
	if l.Now != nil {
		now, _ = l.Now()
	}
	return now
}

// pass lets time pass as far as the source has told all: what happened later may be in
// it as yet, and a table that is told a later time takes a RST that comes behind for
// one that was not sent.
func (l *Loop) pass(idle bool) error {
	then, boot := l.Table.Now(), l.boot()
	if idle {
		then, l.told = l.told, boot
	}
	if idle && l.Table.Pending() || boot-l.last > clockEvery {
		return l.clock(then)
	}
	return nil
}

// clock lets time pass until then, and compares the wall clock.
func (l *Loop) clock(then int64) error {
	boot, wall := l.Now()
	l.last = boot
	return l.feed(&event.Event{Kind: event.KindClock, Time: then, Wall: wall - (boot - then)})
}

func (l *Loop) feed(e *event.Event) error {
	if e.Kind == event.KindProcess && l.Learn != nil {
		l.Learn(e.Task, e.Process)
	}
	if l.Record != nil {
		if err := l.Record.Append(e); err != nil {
			return fmt.Errorf("%w (stated stops, so that nothing goes unrecorded)", err)
		}
	}
	if e.Kind == event.KindProcess {
		return nil // nothing happened
	}
	l.Consumer.Event(e)
	l.Table.Apply(e)
	switch e.Kind {
	case event.KindLost:
		l.scan.wanted = true
	case event.KindSnapshotEnd:
		l.scan.wanted = l.scan.wanted || l.Table.Doubtful()
	}
	return nil
}

// rescan begins a snapshot when it is time for one, and notes the end of the
// last.
func (l *Loop) rescan() {
	if l.Snapshot == nil {
		return
	}
	s := &l.scan
	now, _ := l.Now()
	if s.running {
		select {
		case err := <-s.done:
			s.running = false
			if err != nil {
				s.err = err
			}
			if l.Snapshotted != nil {
				l.Snapshotted(time.Duration(now - s.begun))
			}
			s.next = now + max(l.SnapshotEvery, 100*(now-s.begun))
		default:
			if now-s.begun > lateAfter && !s.late && l.Late != nil {
				s.late = true
				l.Late()
			}
		}
		return
	}
	due := s.begun == 0 || l.SnapshotEvery > 0 && now >= s.next || s.wanted && now >= s.begun+rescanAfter
	if !due {
		return
	}
	s.running, s.late, s.wanted, s.begun, s.done = true, false, false, now, make(chan error, 1)
	go func(done chan<- error) { done <- l.Snapshot() }(s.done)
}

// SnapshotErr returns why the last snapshot that failed did not show all
// sockets. Call it after Run.
func (l *Loop) SnapshotErr() error { return l.scan.err }
