// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"syscall"

	"github.com/stated-tcp/stated/pkg/event"
)

// Observer is told what happens to connections, in order. A Conn is the
// table's: it is valid during the call only.
type Observer interface {
	// Transition follows each change of state, and each first sight of a
	// socket. c already is in e.New; the state before is the last span but one,
	// if there is one. Also called for close() after shutdown (e.Old == e.New).
	Transition(c *Conn, e *event.Event)
	// Finished is called once for each connection that ended or was given up.
	Finished(c *Conn)
}

// Stats counts what a Table did.
type Stats struct {
	Events      uint64 // applied
	Lost        uint64 // events that the kernel could not hand over
	Gaps        uint64 // connections in which an event was seen to be missing
	Evicted     uint64 // connections given up because the table was full
	Crowded     uint64 // ended without TIME_WAIT, or maybe without: the kernel had as many as it may
	Unfollowed  uint64 // ended connections whose TIME_WAIT is not told of: the table of these was full
	Ignored     uint64 // events of sockets that are in no connection, or without an identity
	Open        int    // connections in the table that have not ended, listening sockets among them
	Held        int    // ended, but a descriptor is still open
	Lingering   int    // left behind in TIME_WAIT or FIN_WAIT2 without a process
	Repaired    Repairs
	Requests    uint64 // SYNs that were queued, where they are seen
	Untold      uint64 // of those, counted only: too many came at once
	Overflows   uint64 // SYNs dropped because an accept queue was full
	Outcomes    [NumOutcomes]uint64
	Transitions [event.NumStates][event.NumStates]uint64
}

// Repairs counts what a snapshot put right: something had happened that no event told.
type Repairs struct {
	Moved  uint64 // connections found in another state
	Gone   uint64 // connections found to have ended
	Linger uint64 // mini sockets found to have ended
}

// Sum is all of them.
func (r Repairs) Sum() uint64 { return r.Moved + r.Gone + r.Linger }

// Options for New. The zero value is usable.
type Options struct {
	// MaxConns bounds the table; the connection that was quiet for longest is
	// given up first. 0: 262,144.
	MaxConns int
	// NoDestroy says that no KindDestroy will come: sockets are forgotten at
	// their end.
	NoDestroy bool
	// NoResets says that no KindResetReceived will come: a reset by the peer
	// is told by the socket's error alone.
	NoResets bool
	// SeesTimeWait says that KindTimeWait and KindTimeWaitEnd will come: what
	// they do not tell of is not there.
	SeesTimeWait bool
}

// settle is how long after -> CLOSE the cause may still arrive: a RST is sent
// after the transition, under the same lock (tcp_disconnect and __tcp_close in
// net/ipv4/tcp.c), but in a process that may be preempted in between.
const settle = 10e6

const shutdownMask = 3 // SHUTDOWN_MASK in include/net/sock.h

// Table holds the connections that are open. It is not safe for concurrent use.
type Table struct {
	opts     Options
	observer Observer
	conns    map[event.SocketID]*Conn
	quiet    Conn    // ring of the connections by their last event, quietest first
	settling []*Conn // in order of their end
	settled  int     // of these are done
	free     *Conn
	shares   shares
	stats    Stats
	now      int64
	lossAt   int64 // time of the last KindLost

	lingers   lingers
	snapshots map[uint32]sweep // by network namespace
	swept     int64            // end of the last one
	holders   int              // descriptors shown since then
	doubtful  bool
	said      event.Event // what the observer is told instead of the kernel's event
}

// New makes an empty table that tells o what happens.
func New(o Observer, opts Options) *Table {
	if opts.MaxConns == 0 {
		opts.MaxConns = 1 << 18
	}
	t := &Table{opts: opts, observer: o, conns: make(map[event.SocketID]*Conn)}
	t.quiet.prev, t.quiet.next = &t.quiet, &t.quiet
	return t
}

// Stats returns the counts so far.
func (t *Table) Stats() Stats { return t.stats }

// Now returns the time of the last event, in nanoseconds since boot.
func (t *Table) Now() int64 { return t.now }

// Pending reports whether the passing of time alone (a KindClock event) would
// finish a connection.
func (t *Table) Pending() bool { return len(t.settling) > t.settled }

// Get returns the connection that a socket is in, nil if none is known.
func (t *Table) Get(id event.SocketID) *Conn { return t.conns[id] }

// All calls f for each connection in the table, the quietest first.
func (t *Table) All(f func(*Conn)) {
	for c := t.quiet.next; c != &t.quiet; c = c.next {
		f(c)
	}
}

// Apply takes the next event of the stream. It keeps nothing of e.
func (t *Table) Apply(e *event.Event) {
	t.stats.Events++
	if e.Time > t.now {
		t.now = e.Time
	}
	if e.Kind == event.KindResetSent {
		t.resetSent(e) // what is waited for, however late
	}
	t.settleUntil(t.now)
	t.expire()
	switch e.Kind {
	case event.KindState:
		t.state(e)
	case event.KindSnapshot:
		t.snapshot(e)
	case event.KindDestroy:
		t.destroy(e)
	case event.KindResetReceived:
		if c := t.find(e); c != nil {
			if c.held && e.New != event.StateClose {
				c = t.bornUntold(c, e, Span{State: e.New, Known: AtLeast})
				t.touch(c, e.Time)
			}
			c.resetIn = true
		}
	case event.KindAccept:
		t.accepted(e)
	case event.KindHolder:
		t.holders++
		if c := t.snapshot(e); c != nil {
			t.own(c, e.Task, event.OwnerHolder)
			c.heldBy(e.Task)
		}
	case event.KindLost:
		t.stats.Lost += e.Count
		t.lossAt = t.now
	case event.KindRequest:
		t.request(e)
	case event.KindRequestEnd:
		t.requestEnd(e)
	case event.KindUntold:
		t.stats.Requests += e.Count
		t.stats.Untold += e.Count
	case event.KindTimeWait:
		t.timeWait(e)
	case event.KindTimeWaitEnd:
		t.timeWaitEnd(e)
	case event.KindOverflow:
		t.overflow(e)
	case event.KindSnapshotBegin, event.KindSnapshotDone, event.KindSnapshotEnd:
		t.sweep(e)
	}
}

func (t *Table) accepted(e *event.Event) {
	c := t.find(e)
	if c == nil {
		return
	}
	t.own(c, e.Task, event.OwnerAccept)
	if c.AcceptedAt == 0 {
		c.AcceptedAt = e.Time
	}
	c.metEarly = c.metEarly || c.State == event.StateSynRecv // Fast Open
}

func (t *Table) overflow(e *event.Event) {
	c := t.find(e)
	if c == nil {
		return
	}
	t.learnAlone(c, e)
	if n := c.Overflows(); e.Count > n {
		t.stats.Overflows += e.Count - n
		c.rare().Overflows = e.Count
	}
}

// Flush finishes what only waits for late evidence: the stream has ended.
func (t *Table) Flush() { t.settleUntil(1<<63 - 1) }

// find returns the connection of an event and marks it as lively.
func (t *Table) find(e *event.Event) *Conn {
	c := t.conns[e.Socket]
	if c == nil || e.Socket == 0 {
		t.stats.Ignored++
		return nil
	}
	t.touch(c, e.Time)
	return c
}

func (t *Table) touch(c *Conn, time int64) {
	c.LastEvent = max(c.LastEvent, time)
	c.missed, c.leaving = 0, false
	if c.next != nil {
		c.prev.next, c.next.prev = c.next, c.prev
	}
	c.prev, c.next = t.quiet.prev, &t.quiet
	c.prev.next, t.quiet.prev = c, c
}

func (t *Table) state(e *event.Event) {
	t.stats.Transitions[min(e.Old, event.NumStates-1)][min(e.New, event.NumStates-1)]++
	if e.Socket == 0 {
		t.stats.Ignored++
		return
	}
	c := t.conns[e.Socket]
	birth := isBirth(e.Old, e.New)
	switch {
	case c != nil && birth && c.halfOpen:
		t.complete(c, e)
		return
	case c != nil && birth:
		c = t.reborn(c, e)
	case c == nil && e.Old == event.StateClose && !birth:
		t.stats.Ignored++ // 7 -> 7 of a socket that never connected
		return
	case c == nil:
		c = t.open(e)
		if !birth {
			c.Spans.Add(Span{State: e.Old, Known: AtLeast})
			c.State = e.Old
		}
	case c.End != 0 && (!c.held || e.Old == event.StateClose):
		t.again(c, e)
		return
	case c.End != 0:
		c = t.bornUntold(c, e, Span{State: e.Old, Known: AtLeast})
	}
	c.halfOpen = false
	t.touch(c, e.Time)
	t.learn(c, e)
	if e.Old == e.New {
		t.closedBy(c, e)
		c.closed = e.New
		t.observer.Transition(c, e)
		return
	}
	t.step(c, e, birth)
}

// step moves c from e.Old to e.New.
func (t *Table) step(c *Conn, e *event.Event, birth bool) {
	// Ring order is the order of events; the clocks of two CPUs may differ a little.
	at := e.Time
	if n := c.Spans.Len(); n > 0 {
		at = max(at, c.Spans.At(n-1).Start)
	}
	switch {
	case birth:
		c.FromStart = true
	case c.State != e.Old:
		// What brought it from c.State to e.Old is lost.
		t.gap(c)
		c.Spans.Add(Span{Start: at, State: e.Old, Known: Inferred})
	}
	if e.Old == event.StateSynRecv && e.New == event.StateEstablished {
		c.inferHandshake(at, e)
	}
	c.State = e.New
	c.weighReset(e.New, at)
	c.judge(e)
	t.closedBy(c, e)
	if e.New == event.StateEstablished {
		t.replaced(c, e)
	}
	if e.New != event.StateClose {
		c.Spans.Add(Span{Start: at, State: e.New})
		t.observer.Transition(c, e)
		return
	}
	c.End = at
	// a subflow has no descriptor, and of an MPTCP connection nothing tells that it is gone
	c.held = !e.Flags.Has(event.FlagDead) && !t.opts.NoDestroy && c.Multipath() == nil && !c.Subflow && !closing(e)
	c.queued = true
	t.settling = append(t.settling, c)
	c.conclude(t.opts.NoResets)
	t.linger(c, e)
	t.observer.Transition(c, e)
}

// again is CLOSE -> CLOSE: aborted twice, or a listener that was killed, of which
// only this one has the error (tcp_abort in net/ipv4/tcp.c).
func (t *Table) again(c *Conn, e *event.Event) {
	if c.finished || c.Spans.Last().State != event.StateListen || syscall.Errno(e.Err) != syscall.ECONNABORTED {
		t.stats.Ignored++
		return
	}
	t.touch(c, e.Time)
	t.closedBy(c, e)
	c.Err = e.Err
	c.conclude(t.opts.NoResets)
}

// closing reports whether close() itself brought the socket to CLOSE. SOCK_DEAD is
// set behind that, the shutdown of both sides before (__tcp_close in net/ipv4/tcp.c).
func closing(e *event.Event) bool {
	return e.Flags.Has(event.FlagTask) && e.Shutdown == shutdownMask && e.Err == 0
}

func (t *Table) gap(c *Conn) {
	if !c.Gap {
		c.Gap = true
		t.stats.Gaps++
	}
}

// reborn ends what c was and begins the next connection on the same socket:
// after disconnect, a failed connect(), or because we lost the end.
func (t *Table) reborn(c *Conn, e *event.Event) *Conn {
	epoch := c.Epoch + 1
	if c.End == 0 {
		t.gap(c)
		c.Outcome, c.Why = OutcomeUnknown, WhyEndLost
		c.End = max(e.Time, c.Spans.Last().Start)
	}
	t.finish(c)
	t.remove(c)
	c = t.open(e)
	c.Epoch = epoch
	return c
}

// bornUntold is the next connection on the socket of c, which has ended and is held:
// an event, or a snapshot, found it alive, and its birth was lost.
func (t *Table) bornUntold(c *Conn, e *event.Event, in Span) *Conn {
	c = t.reborn(c, e)
	t.gap(c)
	c.Spans.Add(in)
	c.State = in.State
	return c
}

func (t *Table) open(e *event.Event) *Conn {
	if len(t.conns) >= t.opts.MaxConns {
		t.evict()
	}
	c := t.free
	if c != nil {
		t.free = c.next
		*c = Conn{}
	} else {
		c = new(Conn)
	}
	c.Shared = &unknown
	c.Socket = e.Socket
	c.FirstEvent = e.Time
	c.OwnID = e.Flags.Has(event.FlagOwnID)
	c.inTable = true
	t.conns[e.Socket] = c
	t.stats.Open++
	return c
}

func (t *Table) evict() {
	c := t.quiet.next
	t.stats.Evicted++
	if c.End == 0 {
		c.Outcome, c.Why = OutcomeUnknown, WhyTableFull
	}
	t.finish(c)
	t.remove(c)
}

func (t *Table) resetSent(e *event.Event) {
	c := t.find(e)
	if c == nil {
		return
	}
	if e.Reset != event.ResetUnknown {
		c.Reset = e.Reset
	}
	if c.End == 0 {
		c.resetPre, c.rare().resetUntil = true, e.Time+settle
		return
	}
	c.resetOut = true
	if c.finished {
		return
	}
	c.conclude(t.opts.NoResets)
	if c.LingersKnown == Inferred && c.Lingers != event.StateNone && c.Outcome != OutcomeClosed {
		t.unlinger(c)
	}
}

func (t *Table) destroy(e *event.Event) {
	c := t.find(e)
	if c == nil || c.End == 0 {
		return
	}
	if !c.finished {
		c.held = false // closed by now
	}
	t.finish(c)
	t.remove(c)
}

// settleUntil finishes the connections for which no more evidence can come.
func (t *Table) settleUntil(now int64) {
	for t.settled < len(t.settling) && t.settling[t.settled].End+settle <= now {
		c := t.settling[t.settled]
		t.settled++
		c.queued = false
		if !c.inTable {
			t.release(c)
			continue
		}
		t.finish(c)
		if !c.held {
			t.remove(c)
		}
	}
	if t.settled > len(t.settling)/2 {
		t.settling = t.settling[:copy(t.settling, t.settling[t.settled:])]
		t.settled = 0
	}
}

// finish tells the observer that c has ended, once.
func (t *Table) finish(c *Conn) {
	if c.finished {
		return
	}
	c.finished = true
	t.stats.Open--
	if c.held {
		t.stats.Held++
	}
	t.stats.Outcomes[c.Outcome]++
	t.observer.Finished(c)
}

// remove forgets c, which is finished.
func (t *Table) remove(c *Conn) {
	delete(t.conns, c.Socket)
	c.prev.next, c.next.prev = c.next, c.prev
	c.prev, c.next = nil, nil
	c.inTable = false
	if c.held {
		t.stats.Held--
	}
	if !c.queued {
		t.release(c)
	}
}

// release keeps c's memory for the next connection.
func (t *Table) release(c *Conn) {
	c.next = t.free
	t.free = c
}
