// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/symbol"
)

// stuckSockets is a census with a leak of each kind, a hostile process and
// the longest of addresses.
func stuckSockets() *census.Census {
	const now = 100_000 * int64(time.Millisecond)
	c := census.New(now)
	java := event.Task{PID: 4242, Start: 1, Comm: event.MakeComm("java")}
	hostile := event.Task{PID: 7, Start: 2, Comm: event.Comm{0x1b, '[', '2', 'J', '\n', '"', 0xff}}
	addr := netip.MustParseAddrPort
	n := uint64(0)
	socket := func(state event.State, local, peer string, change func(*event.Sighting)) *event.Sighting {
		n++
		s := &event.Sighting{Event: event.Event{
			Kind: event.KindSnapshot, New: state, Old: state, Time: now, Socket: event.SocketID(0x1000 + n), Netns: 4026531840,
			Protocol: event.ProtoTCP, Local: addr(local), Peer: addr(peer), FD: -1,
		}, Inode: 50_000 + n, References: 1, Opened: true, LastSegment: now - 60e9}
		change(s)
		c.Add(s)
		return s
	}
	hold := func(s *event.Sighting, fd int32, tasks ...event.Task) {
		for _, t := range tasks {
			h := *s
			h.Kind, h.Task, h.FD = event.KindHolder, t, fd
			c.Add(&h)
		}
	}
	l := socket(event.StateListen, "0.0.0.0:8080", "0.0.0.0:0", func(s *event.Sighting) { s.Unread, s.Unsent, s.LastSegment = 1, 128, 0 })
	hold(l, 3, java)
	for i := range 4 {
		fin := now - 60e9
		s := socket(event.StateCloseWait, "10.0.0.5:8080", "10.0.0.9:4000"+string(rune('1'+i)), func(s *event.Sighting) {
			s.Unread, s.Flags, s.LastReceived, s.LastSegment = 1, event.FlagDone, fin-30e9, fin
		})
		hold(s, 87+int32(i), java)
	}
	s := socket(event.StateCloseWait, "10.0.0.5:8080", "10.0.0.9:40009", func(s *event.Sighting) {
		s.Unread, s.Flags, s.Waited = 5001, event.FlagDone, true
	})
	hold(s, 91, java)
	socket(event.StateCloseWait, "10.0.0.5:8080", "10.0.0.9:40010", func(s *event.Sighting) {
		s.Unread, s.Flags, s.Inode, s.References = 1, event.FlagDone|event.FlagNoSocket, 0, 0
	})
	s = socket(event.StateCloseWait, "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:1111]:65535", "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:2222]:65535",
		func(s *event.Sighting) { s.References, s.BytesAcked = 3, 1 })
	hold(s, 5, hostile, java)
	s = socket(event.StateClose, "10.0.0.5:51234", "10.0.0.7:5432", func(s *event.Sighting) { s.Err, s.BytesAcked = 104, 1 })
	hold(s, 9, java)
	s = socket(event.StateEstablished, "10.0.0.5:51235", "10.0.0.7:5432", func(s *event.Sighting) { s.BytesAcked = 1 })
	hold(s, 10, java)
	socket(event.StateTimeWait, "10.0.0.5:51236", "10.0.0.7:5432", func(s *event.Sighting) {
		s.Flags, s.Inode, s.References, s.LastSegment = event.FlagMini|event.FlagNoSocket, 0, 0, 0
	})
	socket(event.StateCloseWait, "10.0.0.5:905", "10.0.0.2:2049", func(s *event.Sighting) { // NFS
		s.Unread, s.Flags, s.BytesAcked = 1, event.FlagDone|event.FlagKernel, 1
	})
	c.Complete(nil)
	return c
}

// multipaths is a census of an MPTCP listener, two connections, one of which leaks,
// with their subflows, and subflows of connections that were not found.
func multipaths() *census.Census {
	const now = 100_000 * int64(time.Millisecond)
	c := census.New(now)
	server := event.Task{PID: 4242, Start: 1, Comm: event.MakeComm("server")}
	add := func(kind event.Kind, protocol uint16, state event.State, peer string, inode uint64, flags event.Flags) {
		s := event.Sighting{Event: event.Event{Kind: kind, New: state, Old: state, Flags: flags, Time: now, Netns: 4026531840, Protocol: protocol,
			Local: netip.MustParseAddrPort("10.0.0.5:7400"), Peer: netip.MustParseAddrPort(peer), FD: -1}, Inode: inode, Opened: true, LastSegment: now - 60e9}
		if kind == event.KindHolder {
			s.Task, s.FD, s.References = server, int32(inode), 1
		}
		c.Add(&s)
	}
	const tcp, mptcp = event.ProtoTCP, event.ProtoMPTCP
	add(event.KindSnapshot, tcp, event.StateListen, "0.0.0.0:0", 3, 0)
	add(event.KindSnapshot, tcp, event.StateEstablished, "10.0.0.9:40001", 5, event.FlagMPTCP)
	add(event.KindSnapshot, tcp, event.StateEstablished, "10.0.1.9:40002", 5, event.FlagMPTCP)
	add(event.KindSnapshot, tcp, event.StateEstablished, "10.0.0.9:40003", 6, event.FlagMPTCP)
	add(event.KindSnapshot, tcp, event.StateEstablished, "10.0.0.9:40004", 0, event.FlagMPTCP|event.FlagNoSocket)
	add(event.KindSnapshot, tcp, event.StateEstablished, "10.0.0.9:40005", 0, event.FlagMPTCP|event.FlagNoSocket|event.FlagDead)
	add(event.KindHolder, mptcp, event.StateListen, "0.0.0.0:0", 3, 0)
	add(event.KindHolder, mptcp, event.StateCloseWait, "10.0.0.9:40001", 5, 0)
	add(event.KindHolder, mptcp, event.StateEstablished, "10.0.0.9:40003", 6, 0)
	c.Complete(nil)
	return c
}

func multipathLeaks(by leak.Key, each bool) *Leaks {
	r := leak.Find(multipaths(), leak.Rules{MinAge: 30e9, States: leak.DefaultStates})
	return &Leaks{Report: r, Groups: r.Group(by), MinAge: 30e9, Examples: 5, Each: each,
		Processes: func(event.Task) Process { return Process{CommandLine: "server -p 7400"} }}
}

func leaksOf(by leak.Key, each bool) *Leaks {
	c := stuckSockets()
	r := leak.Find(c, leak.Rules{MinAge: 30e9, States: leak.DefaultStates})
	l := &Leaks{Report: r, Groups: r.Group(by), MinAge: 30e9, Examples: 3, Each: each, Growth: map[string]float64{},
		Flow: func(pid uint32) leak.Flow { return leak.Flow{In: uint64(pid), Out: 12} }}
	l.Growth[l.Groups[0].Key] = 0.1
	l.Waits = func(s *census.Socket) Wait {
		switch s.Holders[0].FDs[0] {
		case 87:
			return Wait{Kind: WaitCall, TID: 4243, Call: "recvfrom"}
		case 88:
			return Wait{Kind: WaitWatched}
		case 9:
			return Wait{Kind: WaitPoll, TID: 4244, Call: "epoll_wait"}
		case 10:
			return Wait{Kind: WaitNone}
		}
		return Wait{Why: "not permitted"}
	}
	l.Processes = func(t event.Task) Process {
		if t.PID != 4242 {
			return Process{}
		}
		return whole
	}
	return l
}

// leaksByContainer has a container and the host, of one process each.
func leaksByContainer() *Leaks {
	in := func(t event.Task) string {
		if t.PID == 4242 {
			return "3f2a\x1b[2J"
		}
		return ""
	}
	l := leaksOf(leak.ByContainer(in), false)
	l.By = ByContainer
	of := l.Processes
	l.Processes = func(t event.Task) Process {
		p := of(t)
		if p.Container = in(t); p.Container != "" {
			p.Pod = "0e1a-pod"
		}
		return p
	}
	return l
}

// leaksWithStacks are the leaks by two places in the code, one of them as a
// hostile program names it, and one socket of which it is not known.
func leaksWithStacks(by leak.Key) *Leaks {
	l := leaksOf(by, false)
	frame := func(function, file string, line int, module string) symbol.Frame {
		return symbol.Frame{Address: 0x401000, Function: function, File: file, Line: line, Module: module, Offset: 0x2a}
	}
	whole := []symbol.Frame{
		frame("syscall.Connect", "/usr/local/go/src/syscall/syscall_unix.go", 252, "/srv/app"),
		frame("net.Dial", "/usr/local/go/src/net/dial.go", 101, "/srv/app"),
		frame("main.(*pool).get", "/src/app/pool.go", 41, "/srv/app"),
	}
	for range 14 {
		whole = append(whole, frame("main.retry", "/src/app/retry.go", 9, "/srv/app"))
	}
	for i := range 12 {
		whole = append(whole, frame("main.descend", "/src/app/tree.go", 20+i, "/srv/app"))
	}
	whole = append(whole, frame("runtime.goexit", "/usr/local/go/src/runtime/asm_amd64.s", 1700, "/srv/app"))
	hostile := []symbol.Frame{
		frame("connect", "", 0, "/lib/libc.so.6"), frame("evil\x1b[2J\n\"x", "", 0, "/tmp/\xff\n/lib.so"), frame("", "", 0, "/opt/stripped"),
		{Address: 0xdeadbeef, Note: "in no mapping"},
	}
	places := []*leak.Stack{leak.NewStack(whole, false), leak.NewStack(hostile, false)}
	for i := range l.Findings[1:] {
		l.Findings[1+i].Stack = places[min(i/4, 1)]
	}
	l.Groups, l.Stacks = l.Group(by), true
	return l
}

func TestLeaksGolden(t *testing.T) {
	for name, tt := range map[string]struct {
		o Options
		f func(*Writer)
	}{
		"leaks.text":     {Options{}, func(w *Writer) { w.Leaks(leaksOf(leak.ByProcess, false)) }},
		"leaks.wide":     {Options{Format: FormatWide}, func(w *Writer) { w.Leaks(leaksBy(ByPeer, leak.ByPeer)) }},
		"leaks.json":     {Options{Format: FormatJSON}, func(w *Writer) { w.Leaks(leaksOf(leak.ByProcess, false)) }},
		"each.json":      {Options{Format: FormatJSON}, func(w *Writer) { w.Leaks(leaksOf(leak.ByNone, true)) }},
		"container.text": {Options{}, func(w *Writer) { w.Leaks(leaksByContainer()) }},
		"container.json": {Options{Format: FormatJSON}, func(w *Writer) { w.Leaks(leaksByContainer()) }},
		"stacks.text":    {Options{}, func(w *Writer) { w.Leaks(leaksWithStacks(leak.ByProcess)) }},
		"stacks.json":    {Options{Format: FormatJSON}, func(w *Writer) { w.Leaks(leaksWithStacks(leak.ByStack)) }},
		"none.text": {Options{}, func(w *Writer) {
			w.Leaks(&Leaks{MinAge: 30e9, Report: leak.Report{Young: 2, Undecided: 1}})
		}},
		"mptcp.text": {Options{}, func(w *Writer) {
			w.Sockets(multipaths(), func(event.Task) Process { return Process{} })
			w.Leaks(multipathLeaks(leak.ByProcess, false))
		}},
		"mptcp.json": {Options{Format: FormatJSON}, func(w *Writer) {
			w.Sockets(multipaths(), func(event.Task) Process { return Process{} })
			w.Leaks(multipathLeaks(leak.ByProcess, false))
			w.Leaks(multipathLeaks(leak.ByNone, true))
		}},
		"sockets.text": {Options{}, func(w *Writer) { w.Sockets(stuckSockets(), func(event.Task) Process { return Process{} }) }},
		"sockets.wide": {Options{Format: FormatWide}, func(w *Writer) { w.Sockets(stuckSockets(), func(event.Task) Process { return Process{} }) }},
		"sockets.json": {Options{Format: FormatJSON}, func(w *Writer) { w.Sockets(stuckSockets(), leaksOf(leak.ByProcess, false).Processes) }},
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, name, render(tt.o, tt.f))
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name + ".golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s; look at the change with go test -update and git diff:\n%s", path, got)
	}
	for line := range strings.Lines(got) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasSuffix(name, "json") {
			if !json.Valid([]byte(line)) {
				t.Errorf("no JSON: %s", line)
			}
		} else if (name == "leaks.text" || name == "stacks.text") && utf8.RuneCountInString(line) > Width {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
		}
		if name != "color" && (strings.ContainsAny(line, "\x1b\n") || strings.Contains(line, "\xff")) {
			t.Errorf("not escaped: %q", line)
		}
	}
}

// TestHalfClosed: no command closes what may wait for an answer.
func TestHalfClosed(t *testing.T) {
	for shutdown, want := range map[uint8]string{2: "and may still send", 3: "call (int)close(4)"} {
		c := census.New(0)
		s := event.Sighting{Event: event.Event{Kind: event.KindSnapshot, New: event.StateFinWait2, Time: 60e9, Socket: 1, Shutdown: shutdown}, Inode: 5, References: 1, LastSegment: 1}
		c.Add(&s)
		s.Kind, s.Task, s.FD = event.KindHolder, event.Task{PID: 7}, 4
		c.Add(&s)
		c.Complete(nil)
		r := leak.Find(c, leak.Rules{States: event.SetOf(event.StateFinWait2)})
		var out bytes.Buffer
		w := New(&out, Options{})
		w.Leaks(&Leaks{Report: r, Groups: r.Group(leak.ByProcess), Processes: func(event.Task) Process { return Process{} }})
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); !strings.Contains(got, want) || strings.Contains(got, "(int)close") != (shutdown == 3) {
			t.Errorf("shut down %d: %s", shutdown, got)
		}
	}
}

// TestAgain: each of many reports can be told from the one before it, and records
// stay records.
func TestAgain(t *testing.T) {
	const line, clear = "-- looked at 2023-11-14 22:15:00 +00:00 --\n", "\x1b[H\x1b[2J"
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{}, line}, {Options{Format: FormatWide}, line}, {Options{Color: true}, clear},
		{Options{Format: FormatJSON}, ""}, {Options{Format: FormatJSON, Color: true}, ""}, {Options{Format: FormatECS, Color: true}, ""},
	} {
		once := render(tt.o, func(w *Writer) { w.Leaks(leaksOf(leak.ByProcess, false)) })
		if got := render(tt.o, func(w *Writer) {
			l := leaksOf(leak.ByProcess, false)
			w.Again(l)
			w.Leaks(l)
		}); got != tt.want+once {
			t.Errorf("%+v: %s", tt.o, got)
		}
	}
}

// TestLeaksFit: a report keeps to the width of a terminal.
func TestLeaksFit(t *testing.T) {
	for _, by := range []leak.Key{leak.ByProcess, leak.ByListener} {
		for line := range strings.Lines(render(Options{Width: 80}, func(w *Writer) { w.Leaks(leaksOf(by, true)) })) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

// TestLeaksWithin: on a terminal the beginning of a report stays, and its total.
func TestLeaksWithin(t *testing.T) {
	for _, color := range []bool{false, true} {
		all := render(Options{Color: color}, func(w *Writer) { w.Leaks(leaksOf(leak.ByProcess, false)) })
		lines := strings.SplitAfter(strings.TrimSuffix(all, "\n"), "\n")
		within := func(rows, columns int) string {
			return render(Options{Color: color}, func(w *Writer) { w.LeaksWithin(leaksOf(leak.ByProcess, false), rows, columns) })
		}
		if got := within(len(lines)+1, Width); got != all {
			t.Errorf("there is room for all: %s", got)
		}
		const rows = 8
		want := strings.Join(lines[:rows-3], "") + "… the terminal has no room for more\n" + lines[len(lines)-1] + "\n"
		if got := within(rows, Width); got != want {
			t.Errorf("in %d rows:\n%swant:\n%s", rows, got, want)
		}
		if got := within(rows, Width/2); height([]byte(got), Width/2) > rows-1 || !strings.HasPrefix(got, lines[0]) || !strings.HasSuffix(got, lines[len(lines)-1]+"\n") {
			t.Errorf("in half of the width:\n%s", got)
		}
		for rows := range 4 {
			within(rows, 1)
		}
	}
}

// TestRate: enough is shown to count with.
func TestRate(t *testing.T) {
	for rate, want := range map[float64]string{
		1.4923: "+1.49/s", 2: "+2/s", 10: "+10/s", 12.34: "+12.3/s", 1234.5: "+1234/s", -1.5: "-1.5/s",
		0.2: "+12/min", 100. / 3600: "+1.67/min", 1. / 3600: "+1/h", 0.5 / 3600: "+0.5/h",
	} {
		if got := string(appendRate(nil, rate)); got != want {
			t.Errorf("%v is %s, want %s", rate, got, want)
		}
	}
}
