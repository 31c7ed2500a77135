// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/stated-tcp/stated/pkg/spool"
)

// burst tells of losses that come many a second: of the first one at once, and while
// more follow once a minute, with the total since then.
type burst struct {
	// say logs that n are lost, in that time; 0: just now.
	say   func(n uint64, why string, in time.Duration)
	every time.Duration // complainAgain

	mu    sync.Mutex // guards what follows
	again *time.Timer
	began time.Time
	total uint64
	told  uint64
	why   string
}

func newBurst(say func(n uint64, why string, in time.Duration)) *burst {
	return &burst{say: say, every: complainAgain}
}

// add counts n more; of several reasons the last is told. It may be called from any
// goroutine. A nil burst tells nobody.
func (b *burst) add(n uint64, why string) {
	if b == nil || n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total += n
	b.why = why
	if b.again != nil {
		return
	}
	b.began = time.Now()
	b.tell(0)
	b.again = time.AfterFunc(b.every, b.tick)
}

func (b *burst) tell(in time.Duration) {
	b.told = b.total
	b.say(b.total, b.why, in.Round(time.Second))
}

// tick tells what came since it was told, or ends the burst.
func (b *burst) tick() {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.again == nil: // ended meanwhile
	case b.total == b.told:
		b.again, b.total = nil, 0
	default:
		b.tell(time.Since(b.began))
		b.again.Reset(b.every)
	}
}

// end tells what was not told yet.
func (b *burst) end() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.again == nil {
		return
	}
	b.again.Stop()
	if b.total != b.told {
		b.tell(time.Since(b.began))
	}
	b.again, b.total = nil, 0
}

// lostEvents tells of events that the kernel's buffer could not take.
func lostEvents(log *slog.Logger, onFull string) func(uint64, string, time.Duration) {
	advice := "more than this machine takes; narrow `filter`, or enlarge `ring_bytes`"
	if onFull == "block" {
		advice += "; with `on_full: block` also because the spool was waited for"
	}
	return func(n uint64, _ string, in time.Duration) {
		log.Warn(fmt.Sprintf("%d events lost: %s", n, advice), "in", in)
	}
}

// whyMissing says why a reader of the spool did not get records. What of several
// reasons it was is not kept.
func whyMissing(e spool.Entry, s spool.Stats) string {
	var why []string
	if e.Damaged {
		return "what is on disk is damaged"
	}
	if s.DroppedOld > 0 {
		why = append(why, "the spool reached `spool.max_bytes`: the sink takes less than comes, or does not answer")
	}
	if s.Dropped > 0 {
		why = append(why, "they did not reach the spool: its disk was full, or more came than it takes; narrow `filter`")
	}
	if why == nil {
		return "an earlier run lost them"
	}
	return strings.Join(why, ", or ")
}
