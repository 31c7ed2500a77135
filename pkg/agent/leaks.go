// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"time"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Leaks looks for leaks. As a Consumer it does so every Every, with the ages
// that the events tell, in a goroutine of its own: a process that holds the lock of
// a socket can make a look last. Report alone does so once.
type Leaks struct {
	Inspector Inspector
	Rules     leak.Rules
	By        leak.Key
	Filter    *filter.Filter
	Now       func() (boot, wall int64)
	Table     *lifecycle.Table // nil: without history
	Every     time.Duration    // between reports while events are consumed
	Stacks    *Stacks          // nil: where in the code is not asked for
	// Show gets each report. An error ends the watching.
	Show func(r leak.Report, groups []leak.Group, growth map[string]float64, err error) error

	seen  map[lookedAt]stay    // what the last look found
	ended int64                // when it saw the last socket
	flows map[uint32]leak.Flow // by the pid of the owner
	past  []sizes              // oldest first
	next  int64

	// Late is told once of a look that has not ended after lateAfter; may be nil.
	Late    func()
	begun   int64
	late    bool
	looking chan sockets // nil: nobody looks
}

// sockets are what a look found.
type sockets struct {
	census *census.Census
	err    error
}

// lookedAt identifies a socket from one look to the next.
type lookedAt struct {
	inode uint64
	id    event.SocketID // where it has no inode, and of subflows, which have that of their MPTCP connection
}

// stay is how a socket was found, and since when it has been in that state.
type stay struct {
	state          event.State
	local, peer    netip.AddrPort
	sent, received uint64
	since          int64 // nanoseconds since boot
}

// lateAfter is when a look at all sockets should be over, in nanoseconds: 100,000
// take less than a second.
const lateAfter = 60e9

// Report looks once. The error tells what could not be looked at.
func (l *Leaks) Report() (leak.Report, []leak.Group, error) {
	if l.looking != nil {
		<-l.looking // one at a time
		l.looking = nil
	}
	now, _ := l.Now()
	c, err := gather(l.Inspector, l.Rules.States, now)
	return l.report(c, err)
}

func (l *Leaks) report(c *census.Census, err error) (leak.Report, []leak.Group, error) {
	l.remember(c)
	var history census.History
	if l.Table != nil {
		history = l.Table.Get
	}
	c.Complete(history)
	c.Drop(func(s *census.Socket) bool { return s.New != event.StateListen && !l.Filter.Socket(s) })
	r := leak.Find(c, l.Rules)
	if l.Stacks != nil {
		err = errors.Join(err, l.Stacks.Name(r.Findings))
	}
	return r, r.Group(l.By), err
}

// remember lets each socket know since when the looks have found it in its state: a
// connection does not come back to one that it has left. A socket may, by
// connect(AF_UNSPEC), and begins to count bytes anew (tcp_disconnect).
func (l *Leaks) remember(c *census.Census) {
	seen := make(map[lookedAt]stay)
	for _, s := range c.Sockets {
		key := lookedAt{inode: s.Inode}
		if s.Inode == 0 || s.Subflow() {
			key = lookedAt{id: s.Sighting.Socket}
		}
		if key == (lookedAt{}) || s.New == event.StateListen {
			continue
		}
		now := stay{s.New, s.Local, s.Peer, s.BytesSent, s.BytesReceived, s.Time}
		before, known := l.seen[key]
		if known && before.state == now.state && before.local == now.local && before.peer == now.peer && before.sent <= now.sent && before.received <= now.received {
			now.since = before.since
			if s.Since == 0 || s.Since > now.since {
				s.Since = now.since
			}
		}
		seen[key] = now
		l.ended = max(l.ended, s.Time)
	}
	l.seen = seen
}

// Event implements Consumer.
func (l *Leaks) Event(*event.Event) {}

// maxFlows bounds the processes whose flow is counted.
const maxFlows = 4096

// Transition implements lifecycle.Observer: it counts what comes into CLOSE_WAIT
// and leaves it.
func (l *Leaks) Transition(c *lifecycle.Conn, e *event.Event) {
	in, out := e.New == event.StateCloseWait, e.Old == event.StateCloseWait
	if e.Kind != event.KindState || in == out || c.Owner.PID == 0 {
		return
	}
	flow, known := l.flows[c.Owner.PID]
	if !known && len(l.flows) >= maxFlows {
		return
	}
	if l.flows == nil {
		l.flows = make(map[uint32]leak.Flow)
	}
	if in {
		flow.In++
	} else {
		flow.Out++
	}
	l.flows[c.Owner.PID] = flow
}

// Flow returns how many connections of the process came into CLOSE_WAIT and left
// it since events are consumed.
func (l *Leaks) Flow(pid uint32) leak.Flow { return l.flows[pid] }

// Finished implements lifecycle.Observer.
func (l *Leaks) Finished(*lifecycle.Conn) {}

// Idle begins to look when it is time, and reports when that is done.
func (l *Leaks) Idle() error {
	now, _ := l.Now()
	if l.looking != nil {
		select {
		case s := <-l.looking:
			l.looking = nil
			return l.tell(l.report(s.census, s.err))
		default:
		}
		if now-l.begun > lateAfter && !l.late {
			l.late = true
			if l.Late != nil {
				l.Late()
			}
		}
		return nil
	}
	if now < l.next {
		return nil
	}
	l.next, l.begun, l.late = now+int64(l.Every), now, false
	l.looking = make(chan sockets, 1)
	go func(done chan<- sockets) {
		c, err := gather(l.Inspector, l.Rules.States, now)
		done <- sockets{c, err}
	}(l.looking)
	return nil
}

// Tell reports now, with the growth in the last hour.
func (l *Leaks) Tell() error { return l.tell(l.Report()) }

func (l *Leaks) tell(r leak.Report, groups []leak.Group, err error) error {
	return l.Show(r, groups, l.growth(r.Now, groups), err)
}

// Begin takes the first report as the one that growth is counted from.
func (l *Leaks) Begin() {
	r, groups, _ := l.Report()
	l.growth(r.Now, groups)
}

// growthWindow is how far back growth is counted, nanoseconds: a daemon that runs
// for months must tell of now. It is kept in growthSteps.
const (
	growthWindow = 3600e9
	growthSteps  = 60
)

// sizes are the groups of an earlier report.
type sizes struct {
	at      int64
	ended   int64
	sockets map[string]int
}

// undecided returns how many findings were there in an earlier report that could
// not tell that they are stuck: they are no growth.
func (l *Leaks) undecided(g *leak.Group, earlier *sizes) (n int) {
	for i := range g.Findings {
		f := &g.Findings[i]
		looks := f.LastSegment == 0 || f.Time-f.LastSegment < l.Rules.MinAge // nothing else tells the age
		if looks && f.Since != 0 && f.Since <= earlier.ended && earlier.ended-f.Since < l.Rules.MinAge {
			n++
		}
	}
	return n
}

// growth returns by how many sockets a second each group grew: since the oldest
// report in the window, or since the last one that did not have it.
func (l *Leaks) growth(now int64, groups []leak.Group) map[string]float64 {
	var growth map[string]float64
	if len(l.past) > 0 && now-l.past[0].at >= 1e9 {
		growth = make(map[string]float64, len(groups))
		for i := range groups {
			g := &groups[i]
			from := len(l.past) - 1
			for j := range l.past {
				if _, there := l.past[j].sockets[g.Key]; there {
					from = max(j-1, 0)
					break
				}
			}
			base := &l.past[from]
			if seconds := float64(now-base.at) / 1e9; seconds > 0 {
				growth[g.Key] = float64(len(g.Findings)-base.sockets[g.Key]-l.undecided(g, base)) / seconds
			}
		}
	}
	if n := len(l.past); n == 0 || now-l.past[n-1].at >= growthWindow/growthSteps {
		s := sizes{now, l.ended, make(map[string]int, len(groups))}
		for i := range groups {
			s.sockets[groups[i].Key] = len(groups[i].Findings)
		}
		l.past = append(l.past, s)
	}
	for len(l.past) > 1 && now-l.past[1].at >= growthWindow {
		l.past = l.past[1:]
	}
	return growth
}
