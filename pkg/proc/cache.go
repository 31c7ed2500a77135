// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"container/list"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
)

// tick is the unit of start times in /proc (USER_HZ is 100 wherever we run).
const tick = int64(10 * time.Millisecond)

type entry struct {
	p     *Process
	read  time.Time // when /proc was read; zero: never
	whole bool      // the kernel told, and will when it changes: /proc has no more to say
}

// cache holds the most recently used processes; of each id the last one.
type cache struct {
	size  int
	byPID map[uint32]*list.Element // of *entry
	lru   *list.List               // front: used last
}

func newCache(size int) cache {
	return cache{size: size, byPID: make(map[uint32]*list.Element), lru: list.New()}
}

// get returns the process t, or nil if there is none or another of its id.
func (c *cache) get(t event.Task) *entry {
	el := c.byPID[t.PID]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if t.Start != 0 && t.Start/tick != e.p.Start/tick {
		return nil
	}
	c.lru.MoveToFront(el)
	return e
}

// put remembers a process and returns how many were forgotten for it.
func (c *cache) put(e entry) (evicted uint64) {
	if el := c.byPID[e.p.PID]; el != nil {
		*el.Value.(*entry) = e
		c.lru.MoveToFront(el)
		return 0
	}
	c.byPID[e.p.PID] = c.lru.PushFront(&e)
	for len(c.byPID) > c.size {
		last := c.lru.Back()
		delete(c.byPID, last.Value.(*entry).p.PID)
		c.lru.Remove(last)
		evicted++
	}
	return evicted
}
