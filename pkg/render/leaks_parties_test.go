// SPDX-License-Identifier: Apache-2.0

package render

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
)

func leaksBy(by By, key leak.Key) *Leaks {
	l := leaksOf(key, false)
	l.By = by
	return l
}

// workers are two of a program in network namespaces of their own, at the same
// addresses, and a third beside the second one; each has one socket, and of what
// waits to be accepted nothing but the listener's holders tells whose it is.
func workers(by By, key leak.Key) *Leaks {
	const now = 100e9
	c := census.New(now)
	add := func(n uint64, netns uint32, state event.State, peer string, flags event.Flags, tasks ...uint32) {
		s := &event.Sighting{Event: event.Event{
			Kind: event.KindSnapshot, New: state, Old: state, Time: now, Socket: event.SocketID(n), Netns: netns, Flags: flags,
			Protocol: event.ProtoTCP, Local: netip.MustParseAddrPort("127.0.0.1:7800"), Peer: netip.MustParseAddrPort(peer), FD: -1,
		}, Inode: 50_000 + n, References: 1, Opened: true, LastSegment: now - 60e9 + int64(n)}
		s.Unread = 1
		if state == event.StateListen {
			s.Unsent, s.References = 128, uint32(len(tasks))
		}
		if flags.Has(event.FlagNoSocket) {
			s.Inode, s.References = 0, 0
		}
		c.Add(s)
		for _, pid := range tasks {
			h := *s
			h.Kind, h.Task, h.FD = event.KindHolder, event.Task{PID: pid, Start: 1, Comm: event.MakeComm("python3")}, 3+int32(min(n, 3)-1)
			c.Add(&h)
		}
	}
	const one, two = 4026531840, 4026532999
	add(1, one, event.StateListen, "0.0.0.0:0", 0, 817)
	add(2, two, event.StateListen, "0.0.0.0:0", 0, 819, 820)
	add(3, one, event.StateCloseWait, "127.0.0.1:40001", event.FlagDone, 817)
	add(4, two, event.StateCloseWait, "127.0.0.1:40001", event.FlagDone, 819)
	add(5, two, event.StateCloseWait, "127.0.0.1:40002", event.FlagDone, 820)
	add(6, one, event.StateCloseWait, "127.0.0.1:40003", event.FlagDone|event.FlagNoSocket)
	c.Complete(nil)
	r := leak.Find(c, leak.Rules{MinAge: 30e9, States: leak.DefaultStates})
	return &Leaks{Report: r, Groups: r.Group(key), By: by, MinAge: 30e9, Examples: 5,
		Processes: func(t event.Task) Process {
			return Process{Unit: map[uint32]string{817: "one.service"}[t.PID], FDs: int(t.PID), FDLimit: 1024}
		}}
}

// TestPartiesGolden: what several processes have is not told of one of them.
func TestPartiesGolden(t *testing.T) {
	for name, l := range map[string]*Leaks{
		"listener": workers(ByListener, leak.ByListener), "peer": workers(ByPeer, leak.ByPeer), "shared": workers(ByProcess, leak.ByProcess),
	} {
		golden(t, name+".text", render(Options{}, func(w *Writer) { w.Leaks(l) }))
		golden(t, name+".json", render(Options{Format: FormatJSON}, func(w *Writer) { w.Leaks(l) }))
	}
}

// TestCloseOfShared: closing what several processes hold in one of them ends nothing.
func TestCloseOfShared(t *testing.T) {
	text := render(Options{}, func(w *Writer) { w.Leaks(leaksOf(leak.ByProcess, false)) })
	for group := range strings.SplitSeq(text, "\n\n") {
		shared := strings.Contains(group, "[7], java[4242]: ")
		if says := strings.Contains(group, "only when each of the 2 processes that hold it has closed it"); says != shared {
			t.Errorf("%v, want %v:\n%s", says, shared, group)
		}
	}
}

// TestForkedHolders: where many hold a socket, its line still says which it is.
func TestForkedHolders(t *testing.T) {
	const now = 100e9
	c := census.New(now)
	s := &event.Sighting{Event: event.Event{
		Kind: event.KindSnapshot, New: event.StateCloseWait, Old: event.StateCloseWait, Time: now, Socket: 1, Netns: 1, Flags: event.FlagDone,
		Protocol: event.ProtoTCP, Local: netip.MustParseAddrPort("127.0.0.1:7800"), Peer: netip.MustParseAddrPort("127.0.0.1:40001"), FD: -1,
	}, Inode: 50_001, References: 9, Opened: true, LastSegment: now - 60e9}
	c.Add(s)
	for pid := range uint32(9) {
		h := *s
		h.Kind, h.Task, h.FD = event.KindHolder, event.Task{PID: 800 + pid, Start: 1, Comm: event.MakeComm("prefork")}, 19
		c.Add(&h)
	}
	c.Complete(nil)
	r := leak.Find(c, leak.Rules{MinAge: 30e9, States: leak.DefaultStates})
	l := &Leaks{Report: r, Groups: r.Group(leak.ByProcess), Processes: func(event.Task) Process { return Process{} }, MinAge: 30e9, Examples: 5}
	for format, want := range map[Format]string{
		FormatText: "pid 800 fd 19, 8 more  ≥1m00s  127.0.0.1:7800 ←~ 127.0.0.1:40001\n",
		FormatWide: "pid 807 fd 19, pid 808 fd 19  ≥1m00s",
	} {
		if text := render(Options{Format: format}, func(w *Writer) { w.Leaks(l) }); !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
