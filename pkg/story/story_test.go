// SPDX-License-Identifier: Apache-2.0

package story

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

var update = flag.Bool("update", false, "write the golden files")

const now = 100_000 * int64(time.Millisecond)

var (
	shop    = event.Task{PID: 4242, Start: 10e9, Comm: event.MakeComm("java")}
	hostile = event.Task{PID: 7, Start: 20e9, Comm: event.Comm{0x1b, '[', '2', 'J', '\n', 0xff}}
)

// host is a census with a socket of each kind that is told of differently.
type host struct {
	c *census.Census
	n uint64
}

func (h *host) socket(state event.State, local, peer string, change func(*event.Sighting), fd int32, tasks ...event.Task) {
	h.n++
	s := &event.Sighting{Event: event.Event{
		Kind: event.KindSnapshot, New: state, Old: state, Time: now, Socket: event.SocketID(h.n), Netns: 1, Protocol: event.ProtoTCP,
		Local: netip.MustParseAddrPort(local), Peer: netip.MustParseAddrPort(peer), FD: -1,
	}, Inode: 50 + h.n, References: uint32(len(tasks)), Opened: true, LastSegment: now - 60e9}
	if change != nil {
		change(s)
	}
	h.c.Add(s)
	for _, task := range tasks {
		holder := *s
		holder.Kind, holder.Task, holder.FD = event.KindHolder, task, fd
		h.c.Add(&holder)
	}
}

func newHost() *host {
	h := &host{c: census.New(now)}
	h.socket(event.StateListen, "0.0.0.0:8080", "0.0.0.0:0", func(s *event.Sighting) { s.Unread, s.Unsent, s.LastSegment = 3, 2, 0 }, 3, shop)
	h.socket(event.StateCloseWait, "10.0.0.5:8080", "10.0.0.9:40001", func(s *event.Sighting) {
		s.Unread, s.Flags, s.LastReceived, s.BytesReceived, s.BytesSent, s.BytesAcked, s.LastSent = 1, event.FlagDone, now-90e9, 1201, 34e3, 34e3, now-89e9
	}, 87, shop)
	h.socket(event.StateCloseWait, "10.0.0.5:8080", "10.0.0.9:40002", func(s *event.Sighting) {
		s.Unread, s.Flags, s.Inode, s.References, s.BytesReceived = 6, event.FlagDone|event.FlagNoSocket, 0, 0, 6
	}, -1)
	h.socket(event.StateCloseWait, "[2001:db8::1]:50000", "[2001:db8::2]:443", func(s *event.Sighting) {
		s.References, s.Flags, s.LastSegment, s.BytesReceived, s.LastReceived, s.BytesAcked = 3, event.FlagDone, now-2e9, 1, now-200e9, 1
	}, 5, hostile, shop)
	h.socket(event.StateClose, "10.0.0.5:51234", "10.0.0.7:5432", func(s *event.Sighting) { s.Err, s.BytesAcked = 104, 1 }, 9, shop)
	h.socket(event.StateClose, "0.0.0.0:0", "0.0.0.0:0", func(s *event.Sighting) { s.Opened, s.LastSegment = false, 0 }, 10, shop)
	h.socket(event.StateEstablished, "10.0.0.5:51235", "10.0.0.7:5432", func(s *event.Sighting) {
		s.Unsent, s.BytesSent, s.LastSent = 9000, 12e3, now-90e9 // and window probes since
	}, 11, shop)
	h.socket(event.StateFinWait2, "10.0.0.5:8080", "10.0.0.9:40003", func(s *event.Sighting) {
		s.Flags, s.Inode, s.References = event.FlagDead, 0, 0
	}, -1)
	h.socket(event.StateTimeWait, "10.0.0.5:8080", "10.0.0.9:40004", func(s *event.Sighting) {
		s.Flags, s.Inode, s.References, s.LastSegment, s.Began = event.FlagMini|event.FlagNoSocket, 0, 0, 0, now-3e9
	}, -1)
	h.socket(event.StateSynSent, "10.0.0.5:51236", "10.0.0.8:5432", nil, 12, shop)
	h.socket(event.StateCloseWait, "10.0.0.5:905", "10.0.0.2:2049", func(s *event.Sighting) {
		s.Unread, s.Flags, s.References, s.BytesAcked = 1, event.FlagDone|event.FlagKernel, 1, 1
	}, -1)
	h.c.Complete(func(id event.SocketID) *lifecycle.Conn {
		if id != 2 {
			return nil
		}
		return &lifecycle.Conn{Role: lifecycle.RoleServer, State: event.StateCloseWait,
			Spans: lifecycle.PathOf(lifecycle.Span{Start: now - 60e9, State: event.StateCloseWait, Known: lifecycle.Seen}), Shared: new(lifecycle.Shared)}
	})
	return h
}

// multipaths is a host with MPTCP: a listener, a connection that leaks and its two
// subflows, one that is open, and subflows of connections that are not found.
func multipaths() *host {
	h := &host{c: census.New(now)}
	whole := func(state event.State, local, peer string, inode uint64, fd int32) {
		h.c.Add(&event.Sighting{Event: event.Event{Kind: event.KindHolder, New: state, Old: state, Time: now, Netns: 1, Protocol: event.ProtoMPTCP, Task: shop, FD: fd,
			Local: netip.MustParseAddrPort(local), Peer: netip.MustParseAddrPort(peer)}, Inode: inode, References: 1, Opened: true, LastSegment: now - 60e9})
	}
	of := func(inode uint64, flags event.Flags) func(*event.Sighting) {
		return func(s *event.Sighting) { s.Inode, s.Flags, s.BytesAcked = inode, event.FlagMPTCP|flags, 0 }
	}
	h.socket(event.StateListen, "0.0.0.0:8080", "0.0.0.0:0", func(s *event.Sighting) { s.Unsent, s.LastSegment, s.Inode = 128, 0, 3 }, -1)
	h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40001", of(5, 0), -1)
	h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.1.9:40002", of(5, 0), -1)
	h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40003", of(6, 0), -1)
	h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40004", of(0, event.FlagNoSocket), -1)
	h.socket(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40005", of(0, event.FlagNoSocket|event.FlagDead), -1)
	whole(event.StateListen, "0.0.0.0:8080", "0.0.0.0:0", 3, 3)
	whole(event.StateCloseWait, "10.0.0.5:8080", "10.0.0.9:40001", 5, 5)
	whole(event.StateEstablished, "10.0.0.5:8080", "10.0.0.9:40003", 6, 6)
	h.c.Complete(nil)
	return h
}

func teller() *Teller {
	return &Teller{Now: now, MinAge: 30e9,
		Processes: func(t event.Task) render.Process {
			if t.PID != shop.PID {
				return render.Process{}
			}
			return render.Process{Executable: "/usr/bin/java", CommandLine: "java -jar a\x1b[31mpp.jar", User: "app", Unit: "shop.service",
				Container: "3f2a", Pod: "0e1a", FDs: 1000, FDLimit: 1024}
		},
		Waits: func(s *census.Socket) render.Wait {
			switch s.Holders[0].FDs[0] {
			case 87:
				return render.Wait{Kind: render.WaitWatched}
			case 9:
				return render.Wait{Kind: render.WaitNone}
			case 11:
				return render.Wait{Kind: render.WaitCall, TID: 4243, Call: "recvfrom"}
			case 12:
				return render.Wait{Kind: render.WaitPoll, TID: 4244, Call: "epoll_wait"}
			}
			return render.Wait{Why: "bad\x1bluck"}
		},
	}
}

// only are the sockets that a process has to do with.
func only(h *host, pid uint32) (list []*census.Socket) {
	for _, s := range h.c.Sockets {
		if Of(s, pid) {
			list = append(list, s)
		}
	}
	return list
}

func TestGolden(t *testing.T) {
	for name, f := range map[string]func(*Teller, *host) []byte{
		"mptcp": func(t *Teller, _ *host) []byte {
			h := multipaths()
			b := t.Sockets(nil, h.c.Sockets[1:3], 0)
			return t.Sockets(t.Process(b, shop, only(h, shop.PID), 9), h.c.Sockets, 100)
		},
		"sockets": func(t *Teller, h *host) []byte { return t.Sockets(nil, h.c.Sockets, 100) },
		"some":    func(t *Teller, h *host) []byte { return t.Sockets(nil, h.c.Sockets, 1) },
		"process": func(t *Teller, h *host) []byte { return t.Process(nil, shop, only(h, shop.PID), 1) },
		"hostile": func(t *Teller, h *host) []byte { return t.Process(nil, hostile, only(h, hostile.PID), 9) },
		"nothing": func(t *Teller, h *host) []byte { return t.Process(nil, hostile, nil, 9) },
		"young": func(t *Teller, h *host) []byte {
			t.MinAge = 600e9
			return t.Process(t.Sockets(nil, h.c.Sockets[1:5], 9), shop, only(h, shop.PID), 9)
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := string(f(teller(), newHost()))
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
				if utf8.RuneCountInString(line) > Width && strings.Contains(strings.TrimSpace(line), " ") && !strings.HasPrefix(line, "  ") {
					t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
				}
				if strings.ContainsAny(line, "\x1b\n") || strings.Contains(line, "\xff") {
					t.Errorf("not escaped: %q", line)
				}
			}
		})
	}
}

// TestHalfClosed: who has shut down sending only may wait for the answer. It is
// stuck where nobody does, and never for what the network or the peer owes.
func TestHalfClosed(t *testing.T) {
	const receiving = 1
	for _, tt := range []struct {
		name   string
		state  event.State
		wait   render.Wait
		change func(*event.Sighting)
		stuck  bool
		says   string
	}{
		{"a thread reads", event.StateFinWait2, render.Wait{Kind: render.WaitCall, Call: "recvfrom"}, nil, false, "may want the answer of the peer, which has not closed"},
		{"epoll", event.StateFinWait2, render.Wait{Kind: render.WaitWatched}, nil, false, "may want the answer"},
		{"something", event.StateFinWait2, render.Wait{Kind: render.WaitNone}, func(s *event.Sighting) { s.Waited = true }, false, "may want the answer"},
		{"not known", event.StateFinWait2, render.Wait{}, func(s *event.Sighting) { s.Limited = true }, false, "may want the answer"},
		{"nobody", event.StateFinWait2, render.Wait{Kind: render.WaitNone}, nil, true, "nobody waits for what it may still send"},
		{"receiving too", event.StateFinWait2, render.Wait{Kind: render.WaitWatched}, func(s *event.Sighting) { s.Shutdown = receiving }, true, "close(4)"},
		{"not acknowledged", event.StateFinWait1, render.Wait{Kind: render.WaitNone}, nil, false, "Look there, not at this process"},
		{"closed at both ends", event.StateLastAck, render.Wait{Kind: render.WaitNone}, nil, true, "close(4)"},
		{"orphan", event.StateFinWait2, render.Wait{}, func(s *event.Sighting) { s.Flags |= event.FlagDead }, false, "the kernel waits for the peer"},
	} {
		h := &host{c: census.New(now)}
		h.socket(tt.state, "10.0.0.5:40000", "10.0.0.9:80", tt.change, 4, shop)
		h.c.Complete(nil)
		teller := teller()
		teller.Waits = func(*census.Socket) render.Wait { return tt.wait }
		got := strings.Join(strings.Fields(string(teller.Sockets(nil, h.c.Sockets, 1))), " ")
		if !strings.Contains(got, tt.says) || strings.Contains(got, "It is stuck") != tt.stuck || strings.Contains(got, "close(4)") != strings.Contains(tt.says, "close(4)") {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}

// TestExamples: what is not told of is told with as many examples as are said.
func TestExamples(t *testing.T) {
	h := newHost()
	told := func(examples int) string { return string(teller().Process(nil, shop, only(h, shop.PID), examples)) }
	if few := told(1); !strings.Contains(few, "And 2 more that are stuck: --examples 3 tells of each.") {
		t.Error(few)
	}
	if all := told(3); strings.Count(all, "It is stuck") != 3 || strings.Contains(all, "more that are stuck") {
		t.Error(all)
	}
}

// TestQueue: the kernel lets one more wait than the backlog says.
func TestQueue(t *testing.T) {
	for _, tt := range []struct {
		waiting, backlog uint32
		may              string
		full             bool
	}{{0, 0, "1 may", false}, {1, 0, "1 may", true}, {2, 2, "3 may", false}, {3, 2, "3 may", true}, {4096, 4096, "4097 may", false}} {
		h := &host{c: census.New(now)}
		h.socket(event.StateListen, "0.0.0.0:80", "0.0.0.0:0", func(s *event.Sighting) { s.Unread, s.Unsent = tt.waiting, tt.backlog }, 3, shop)
		h.c.Complete(nil)
		got := string(teller().Sockets(nil, h.c.Sockets, 1))
		var table bytes.Buffer
		w := render.New(&table, render.Options{})
		w.Sockets(h.c, nil)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(got, tt.may) || strings.Contains(got, "queue is full") != tt.full || strings.Contains(table.String(), "queue full") != tt.full {
			t.Errorf("%d, backlog %d: %s%s", tt.waiting, tt.backlog, got, table.String())
		}
	}
}

// TestNext: the advice is about what holds the socket.
func TestNext(t *testing.T) {
	child := event.Task{PID: 4300, Start: now - 50e9, Comm: event.MakeComm("sleep")}
	pool := "nobody reads this socket any more"
	for _, tt := range []struct {
		name   string
		change func(*event.Sighting)
		tasks  []event.Task
		says   []string
		not    string
	}{
		{"in flight", func(s *event.Sighting) { s.References = 1 }, nil, []string{"1 reference keeps the file open", "find what has it", `grep -s 'socket:\[51\]'`}, pool},
		{"older than the connection", nil, []event.Task{shop}, []string{"Next: " + pool}, "inherited"},
		{"inherited", nil, []event.Task{child}, []string{"Next: sleep[4300] began after the connection did", "Otherwise: " + pool}, "these descriptors"},
		{"by one of two", nil, []event.Task{shop, child}, []string{"Next: sleep[4300] began"}, "java[4242] began"},
		{"data came since", func(s *event.Sighting) { s.LastSegment, s.LastReceived = now-40e9, now-45e9 }, []event.Task{child}, []string{"Next: " + pool}, "began after"},
		{"data went before", func(s *event.Sighting) { s.LastSegment, s.LastReceived, s.LastSent = now-40e9, now-45e9, now-55e9 }, []event.Task{child}, []string{"sleep[4300] began"}, "java"},
		{"start not known", nil, []event.Task{{PID: 4301}}, []string{"Next: " + pool}, "began after"},
		{"within the clocks' resolution", func(s *event.Sighting) { s.LastSegment = child.Start - 5e6 }, []event.Task{child}, []string{"Next: " + pool}, "began after"},
	} {
		h := &host{c: census.New(now)}
		h.socket(event.StateCloseWait, "10.0.0.5:40000", "10.0.0.9:80", func(s *event.Sighting) {
			s.Unread, s.Flags = 1, event.FlagDone
			if tt.change != nil {
				tt.change(s)
			}
		}, 4, tt.tasks...)
		h.c.Complete(nil)
		got := strings.Join(strings.Fields(string(teller().Sockets(nil, h.c.Sockets, 1))), " ")
		for _, want := range tt.says {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %q", tt.name, want, got)
			}
		}
		if strings.Contains(got, tt.not) {
			t.Errorf("%s: %q in %q", tt.name, tt.not, got)
		}
	}
}

// TestOf: a process has to do with what it holds and with what waits in the
// queues of its listeners, and with nothing else.
func TestOf(t *testing.T) {
	h := newHost()
	if n := len(only(h, shop.PID)); n != 8 {
		t.Errorf("%d sockets of %d, want 8", n, len(h.c.Sockets))
	}
	if n := len(only(h, hostile.PID)); n != 1 {
		t.Errorf("%d sockets, want 1", n)
	}
	if n := len(only(h, 1)); n != 0 {
		t.Errorf("%d sockets of a stranger", n)
	}
}
