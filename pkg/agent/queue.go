// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stated-tcp/stated/pkg/block"
	"github.com/stated-tcp/stated/pkg/spool"
)

// queue takes rendered lines from the loop and appends them to the spool in a
// goroutine of its own: a slow disk must not hold up the kernel's ring buffer.
// What it holds is bounded; beyond that lines are dropped and counted, or, when
// asked to, the loop waits.
type queue struct {
	spool   *spool.Spool
	log     *slog.Logger
	block   bool          // when full, wait
	newest  bool          // when the spool is full, drop what comes
	every   time.Duration // between syncs; 0 always, negative never
	chunks  chan chunk
	dropped uint64 // by Write since the last chunk
	lost    atomic.Uint64
	beat    atomic.Int64 // when the goroutine last was alive, Unix nanoseconds
	waits   atomic.Int64 // when Write last was seen to wait for room, Unix nanoseconds
	failing atomic.Pointer[failure]
	hurry   chan struct{} // closed: wait for room no more
	stop    chan struct{} // closed: give up what cannot be appended
	done    chan struct{}

	// hold keeps Append and Maintain away while readers change.
	hold sync.Mutex
}

// failure is what the spool does not do.
type failure struct{ operation, text string }

type chunk struct {
	dropped uint64 // records missing before lines
	lines   []byte
	count   int
}

const (
	chunkBytes  = 256 << 10
	chunkRecord = 1000
	queueChunks = 64 // of 64 KiB each, as the renderer's buffer is: 4 MiB
)

func newQueue(s *spool.Spool, log *slog.Logger, every time.Duration, onFull string) *queue {
	q := &queue{spool: s, log: log, every: every, block: onFull == "block", newest: onFull == "drop_newest",
		chunks: make(chan chunk, queueChunks), hurry: make(chan struct{}), stop: make(chan struct{}), done: make(chan struct{})}
	q.beat.Store(time.Now().UnixNano())
	go q.run()
	return q
}

// Write takes whole lines. It does not fail.
func (q *queue) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part := rest
		if len(part) > chunkBytes {
			end := bytes.LastIndexByte(part[:chunkBytes], '\n') + 1
			if end == 0 {
				end = bytes.IndexByte(part, '\n') + 1
			}
			part = part[:end]
		}
		rest = rest[len(part):]
		q.put(chunk{lines: bytes.Clone(part), count: bytes.Count(part, []byte{'\n'})})
	}
	return len(p), nil
}

func (q *queue) put(c chunk) {
	c.dropped = q.dropped
	select {
	case q.chunks <- c:
		q.dropped = 0
		return
	default:
	}
	if !q.block || !q.wait(c) {
		q.drop(c.count)
	}
}

// wait puts c where there is room, and reports false when that is not to be
// waited for any more. The loop stands still meanwhile, as it is meant to.
func (q *queue) wait(c chunk) bool {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		q.waits.Store(time.Now().UnixNano())
		select {
		case q.chunks <- c:
			q.dropped = 0
			return true
		case <-q.hurry:
			return false
		case <-q.stop:
			return false
		case <-tick.C:
		}
	}
}

func (q *queue) drop(n int) {
	q.dropped += uint64(n)
	q.lost.Add(uint64(n))
}

// close has all that was written appended, or given up when stop is closed.
// Nobody writes any more.
func (q *queue) close() {
	if q.dropped > 0 {
		select {
		case q.chunks <- chunk{dropped: q.dropped}:
			q.dropped = 0
		case <-q.stop:
		}
	}
	close(q.chunks)
	<-q.done
	q.spool.Drop(q.dropped)
}

func (q *queue) run() {
	defer close(q.done)
	period := time.Second
	if q.every > 0 {
		period = min(period, q.every)
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case c, ok := <-q.chunks:
			if !ok {
				q.upkeep()
				return
			}
			q.append(c)
		case <-tick.C:
			q.upkeep()
		}
		q.beat.Store(time.Now().UnixNano())
	}
}

func (q *queue) upkeep() {
	q.hold.Lock()
	defer q.hold.Unlock()
	var err error
	if q.every > 0 {
		err = q.spool.Sync()
	}
	q.note("upkeep", errors.Join(err, q.spool.Maintain()))
}

// append insists until the chunk is in the spool, or may be dropped.
func (q *queue) append(c chunk) {
	if c.dropped > 0 {
		q.spool.Drop(c.dropped)
	}
	if c.count == 0 {
		return
	}
	if len(c.lines) > block.MaxLines { // one line: no record of ours is that long
		q.give(c)
		return
	}
	for {
		q.hold.Lock()
		err := q.spool.Append(c.lines, c.count)
		q.hold.Unlock()
		q.note("append", err)
		if err == nil {
			return
		}
		if q.newest && errors.Is(err, spool.ErrFull) {
			q.give(c)
			return
		}
		q.beat.Store(time.Now().UnixNano())
		select {
		case <-q.stop:
			q.give(c)
			return
		case <-time.After(100 * time.Millisecond):
			q.upkeep()
		}
	}
}

func (q *queue) give(c chunk) {
	q.spool.Drop(uint64(c.count))
	q.lost.Add(uint64(c.count))
}

// note logs when the spool begins to fail, and when what failed works again.
func (q *queue) note(operation string, err error) {
	was := q.failing.Load()
	switch {
	case err == nil && was != nil && was.operation == operation:
		q.failing.Store(nil)
		q.log.Info("the spool works again")
	case err != nil && was == nil:
		q.failing.Store(&failure{operation, err.Error()})
		then := "and are dropped and counted when that is full"
		if q.block {
			then = "and then in the kernel's buffer, which counts what it cannot take"
		}
		q.log.Error("the spool takes no records: they wait in memory, "+then, "error", err)
	}
}
