// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata")

// TestStories runs each file of testdata: the events before a line of ---,
// the connections that come of them behind it. A line of events is
//
//	TIME SOCKET OLD>NEW [flag...]        a change of state
//	TIME SOCKET kind [flag...]           another kind of event
//
// with flags task, dead, done, nosocket, partial, mini, acked, defer, cookie,
// own=PID:SOURCE, pid=PID, err=ERRNO, reset=REASON, cause=, local=, peer=, rx=,
// tx=, unread=, unsent=, count=, netns=, srtt=, began=, retransmits=, old=, state=.
// Times are nanoseconds, or seconds with an s behind. Lines max=N and
// sees_time_wait set options.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories: ", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			story, want, _ := bytes.Cut(text, []byte("\n---\n"))
			got := tell(t, string(story))
			if *update {
				if err := os.WriteFile(path, []byte(string(story)+"\n---\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

type teller struct{ strings.Builder }

func (b *teller) Transition(c *Conn, e *event.Event) {
	if !e.Flags.Has(event.FlagMini) {
		return
	}
	fmt.Fprintf(b, "at %d %d %s %s>%s", e.Time, c.Socket, e.Kind, e.Old, e.New)
	if s := c.Spans.Last(); s.Known != Seen {
		fmt.Fprintf(b, " (%s)", s.Known)
	}
	if c.LingerEnd != 0 {
		fmt.Fprintf(b, ", after %d, by %s", c.LingerEnd-c.Spans.Last().Start, c.LingerCause)
	}
	b.WriteString("\n")
}

func (b *teller) Finished(c *Conn) { fmt.Fprintln(b, "finished", describe(c)) }

func describe(c *Conn) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d/%d %s %s %s by %s, owner %d by %s:", c.Socket, c.Epoch, c.Role, c.State, c.Outcome, c.Initiator, c.Owner.PID, c.Owner.Source)
	for i, s := range c.Spans.All() {
		if s.Start == 0 {
			fmt.Fprintf(&b, " %s ?", s.State)
		} else {
			fmt.Fprintf(&b, " %s %d", s.State, c.SpanEnd(i, c.LastEvent)-s.Start)
		}
		if s.Known != Seen {
			fmt.Fprintf(&b, " (%s)", s.Known)
		}
	}
	if c.Lingers != event.StateNone {
		fmt.Fprintf(&b, ", leaves %s (%s)", c.Lingers, c.LingersKnown)
	}
	if wait, ok := c.AcceptWait(); ok {
		fmt.Fprintf(&b, ", accepted after %d", wait)
	}
	if c.Cookie {
		b.WriteString(", by cookie")
	}
	if c.Overflows() > 0 {
		fmt.Fprintf(&b, ", %d overflows", c.Overflows())
	}
	if c.halfOpen {
		b.WriteString(", half-open")
	}
	if c.BytesSent+c.BytesReceived > 0 {
		fmt.Fprintf(&b, ", sent %d received %d", c.BytesSent, c.BytesReceived)
	}
	if c.Gap {
		b.WriteString(", gap")
	}
	if c.HeldClosed() {
		b.WriteString(", descriptor open")
	}
	if c.Why != WhyNone {
		b.WriteString("; " + c.Why.String())
	}
	return b.String()
}

func tell(t *testing.T, story string) string {
	var b teller
	var opts Options
	table := New(&b, opts)
	for line := range strings.Lines(story) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if words[0] == "sees_time_wait" {
			opts.SeesTimeWait = true
			table = New(&b, opts)
			continue
		}
		if n, ok := strings.CutPrefix(words[0], "max="); ok {
			opts.MaxConns, _ = strconv.Atoi(n)
			table = New(&b, opts)
			continue
		}
		e := parse(t, words)
		table.Apply(&e)
	}
	table.Flush()
	table.All(func(c *Conn) { fmt.Fprintln(&b, "in the table", describe(c)) })
	var left []string
	table.Lingering(func(c *Conn) {
		left = append(left, fmt.Sprintf("lingering %d %s %s %s (%s)\n", c.Socket, c.Local, c.Peer, c.State, c.Spans.At(0).Known))
	})
	slices.Sort(left)
	b.WriteString(strings.Join(left, ""))
	if n := table.Stats().Lingering; n != len(left) {
		t.Errorf("%d lingering, counted as %d", len(left), n)
	}
	if table.Doubtful() {
		b.WriteString("doubtful\n")
	}
	return b.String()
}

func parse(t *testing.T, words []string) (e event.Event) {
	number := func(s string) int64 {
		s, seconds := strings.CutSuffix(s, "s")
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if seconds {
			n *= 1e9
		}
		return n
	}
	e.Time, e.Socket, e.Protocol = number(words[0]), event.SocketID(number(words[1])), event.ProtoTCP
	from, to, ok := strings.Cut(words[2], ">")
	if ok {
		var err1, err2 error
		e.Kind = event.KindState
		e.Old, err1 = event.ParseState(from)
		e.New, err2 = event.ParseState(to)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
	} else if e.Kind, ok = event.ParseKind(words[2]); !ok {
		t.Fatalf("no kind %q", words[2])
	}
	for _, word := range words[3:] {
		k, v, _ := strings.Cut(word, "=")
		switch k {
		case "task":
			e.Flags |= event.FlagTask
		case "dead":
			e.Flags |= event.FlagDead
		case "done":
			e.Flags |= event.FlagDone
		case "shutdown":
			e.Shutdown = uint8(number(v))
		case "nosocket":
			e.Flags |= event.FlagNoSocket
		case "partial":
			e.Flags |= event.FlagPartial
		case "mini":
			e.Flags |= event.FlagMini
		case "acked":
			e.Flags |= event.FlagAcked
		case "defer":
			e.Flags |= event.FlagDefer
		case "cookie":
			e.Flags |= event.FlagCookie
		case "cause":
			if e.Cause, ok = event.ParseEndCause(v); !ok {
				t.Fatalf("no cause %q", v)
			}
		case "netns":
			e.Netns = uint32(number(v))
		case "began":
			e.Began = number(v)
		case "srtt":
			e.SRTT = uint32(number(v))
		case "retransmits":
			e.Retransmits = uint32(number(v))
		case "unsent":
			e.Unsent = uint32(number(v))
		case "old":
			e.Old, _ = event.ParseState(v)
		case "state":
			e.New, _ = event.ParseState(v)
			e.Old = e.New
		case "own":
			pid, source, _ := strings.Cut(v, ":")
			e.Owner.PID = uint32(number(pid))
			e.OwnerSource, _ = event.ParseOwnerSource(source)
		case "pid":
			e.Task.PID = uint32(number(v))
		case "err":
			e.Err = uint16(map[string]syscall.Errno{"refused": syscall.ECONNREFUSED, "reset": syscall.ECONNRESET, "pipe": syscall.EPIPE,
				"timeout": syscall.ETIMEDOUT, "unreach": syscall.EHOSTUNREACH, "aborted": syscall.ECONNABORTED, "badmsg": syscall.EBADMSG}[v])
			if e.Err == 0 {
				t.Fatalf("no error %q", v)
			}
		case "reset":
			e.Reset, _ = event.ParseResetReason(v)
		case "local":
			e.Local = netip.MustParseAddrPort(v)
		case "peer":
			e.Peer = netip.MustParseAddrPort(v)
		case "rx":
			e.BytesReceived = uint64(number(v))
		case "tx":
			e.BytesSent = uint64(number(v))
		case "unread":
			e.Unread = uint32(number(v))
		case "count":
			e.Count = uint64(number(v))
		default:
			t.Fatalf("no flag %q", word)
		}
	}
	return e
}

// FuzzTable: whatever comes, in whatever order, the table stays within its
// bound, no time is negative, each connection finishes once, and the same
// events give the same story.
func FuzzTable(f *testing.F) {
	f.Add([]byte{1, 1, 7, 2, 0, 2, 1, 2, 1, 0, 3, 1, 1, 8, 0, 4, 1, 8, 9, 1, 5, 1, 9, 7, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		run := func() string {
			var b teller
			table := New(&b, Options{MaxConns: 4})
			now := int64(1)
			for ; len(data) >= 5; data = data[5:] {
				now += int64(data[0]) * 1e5
				e := event.Event{Time: now, Socket: event.SocketID(data[1] % 8), Kind: event.Kind(data[4]%15 + 1),
					Old: event.State(data[2] % event.NumStates), New: event.State(data[3] % event.NumStates), Flags: event.Flags(data[4])}
				if e.Kind == event.KindSnapshotDone+1 {
					e.Kind = event.KindSnapshotEnd
				}
				e.Local, e.Peer = netip.AddrPortFrom(netip.IPv6Loopback(), uint16(data[1]%8)+1), netip.AddrPortFrom(netip.IPv6Loopback(), 1)
				if data[0]&1 == 0 {
					e.Kind = event.KindState
				}
				table.Apply(&e)
				n := 0
				table.All(func(c *Conn) {
					n++
					for i, s := range c.Spans.All() {
						if s.Start != 0 && c.SpanEnd(i, now) < s.Start {
							t.Fatalf("span %d of %s is negative", i, describe(c))
						}
					}
				})
				if s := table.Stats(); n > 4 || n != s.Open+s.Held+settled(table) {
					t.Fatalf("%d in the table, %+v", n, s)
				}
			}
			table.Flush()
			return b.String()
		}
		kept := data
		first := run()
		data = kept
		if again := run(); again != first {
			t.Fatalf("not the same twice:\n%s\n%s", first, again)
		}
	})
}

// settled counts what has finished and is neither open nor held: nothing may.
func settled(t *Table) (n int) {
	t.All(func(c *Conn) {
		if c.finished && !c.held {
			n++
		}
	})
	return n
}

// TestReusedPorts: what was left in TIME_WAIT and has ended takes no memory, even
// where ports come again long before its time would have been up.
func TestReusedPorts(t *testing.T) {
	table := New(nobody{}, Options{})
	path := [...]event.State{event.StateClose, event.StateSynSent, event.StateEstablished, event.StateFinWait1, event.StateFinWait2, event.StateClose}
	at := int64(1e12)
	for i := range 10_000 {
		for j := range len(path) - 1 {
			at += 100_000
			table.Apply(&event.Event{Kind: event.KindState, Time: at, Socket: event.SocketID(i + 1), Old: path[j], New: path[j+1],
				Flags: event.FlagDead | event.FlagDone, Protocol: event.ProtoTCP, Family: 2,
				Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(i%100)), Peer: netip.MustParseAddrPort("10.0.0.1:80")})
		}
	}
	count := func() (n int) {
		for second, list := range table.lingers.due {
			for slot, l := range list {
				if l.due != second || int(l.slot) != slot || table.lingers.at.get(l.key()) != l {
					t.Errorf("%+v is in second %d, slot %d", l, second, slot)
				}
			}
			n += len(list)
		}
		return n
	}
	if n, s := count(), table.Stats(); n != s.Lingering || n == 0 || n > 100 || len(table.lingers.free) > 100 {
		t.Errorf("%d planned, %d free, %+v", n, len(table.lingers.free), s)
	}
	table.Apply(&event.Event{Kind: event.KindClock, Time: at + timeWaitLen + 2e9})
	if n, s := count(), table.Stats(); n != 0 || s.Lingering != 0 {
		t.Errorf("%d planned in the end, %+v", n, s)
	}
}

// BenchmarkLifecycle applies the six transitions of a short connection's client.
func BenchmarkLifecycle(b *testing.B) {
	table := New(nobody{}, Options{})
	var e event.Event
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		path := [...]event.State{event.StateClose, event.StateSynSent, event.StateEstablished, event.StateFinWait1, event.StateFinWait2, event.StateClose}
		for j := range len(path) - 1 {
			e = event.Event{Kind: event.KindState, Time: int64(i)*1000 + int64(j), Socket: event.SocketID(i + 1), Old: path[j], New: path[j+1], Flags: event.FlagDead}
			table.Apply(&e)
		}
	}
}

type nobody struct{}

func (nobody) Transition(*Conn, *event.Event) {}
func (nobody) Finished(*Conn)                 {}
