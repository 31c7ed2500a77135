// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"io"
	"sync/atomic"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

// choice is what Stream makes records of. It is replaced as a whole.
type choice struct {
	filter  *filter.Filter
	changes bool // some sink wants tcp.state_change
	conns   bool // some sink wants tcp.connection
	leaks   bool // some sink wants tcp.leak
}

// Stream is the Consumer that makes a record of each change of state and of
// each connection that ends, and writes them as JSON lines.
type Stream struct {
	// Also is told of all connections, whatever the filter says; may be nil.
	Also lifecycle.Observer
	// OnIdle is called between events, in the loop's goroutine; may be nil.
	OnIdle func()

	findings *findings // may be nil
	lost     *burst    // may be nil

	out     *render.Writer
	choice  atomic.Pointer[choice]
	changes Trace
	conns   Trace
	beat    atomic.Int64 // when the loop last was idle, Unix nanoseconds
}

func newStream(w io.Writer, host render.Host, c *choice, processes func(event.Task) *render.Process) *Stream {
	out := render.New(w, render.Options{Format: render.FormatJSON, Host: host, Processes: processes})
	s := &Stream{out: out, changes: Trace{Out: out, Events: true}, conns: Trace{Out: out}}
	s.choice.Store(c)
	s.apply()
	return s
}

// apply takes over the choice between two events.
func (s *Stream) apply() *choice {
	c := s.choice.Load()
	s.changes.Filter, s.conns.Filter, s.changes.Existing = c.filter, c.filter, c.changes
	if !c.changes {
		s.changes.held = nil // nobody will tell when they end
	}
	if s.findings != nil {
		s.findings.leaks.Filter = c.filter
	}
	return c
}

// Event implements Consumer.
func (s *Stream) Event(e *event.Event) {
	if e.Kind == event.KindLost {
		s.lost.add(e.Count, "")
	}
	s.conns.Event(e)
}

// Transition implements lifecycle.Observer.
func (s *Stream) Transition(c *lifecycle.Conn, e *event.Event) {
	if s.Also != nil {
		s.Also.Transition(c, e)
	}
	if s.choice.Load().changes {
		s.changes.Transition(c, e)
	}
}

// Finished implements lifecycle.Observer.
func (s *Stream) Finished(c *lifecycle.Conn) {
	if s.Also != nil {
		s.Also.Finished(c)
	}
	choice := s.choice.Load()
	if choice.changes {
		s.changes.Finished(c) // forgets what it held back
	}
	if choice.conns {
		s.conns.Finished(c)
	}
}

// Idle implements Consumer.
func (s *Stream) Idle() error {
	choice := s.apply()
	s.beat.Store(time.Now().UnixNano())
	if s.OnIdle != nil {
		s.OnIdle()
	}
	if choice.leaks && s.findings != nil {
		if err := s.findings.leaks.Idle(); err != nil {
			return err
		}
	}
	return s.out.Flush()
}
