// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestTimeWaitFull: above net.ipv4.tcp_max_tw_buckets a connection has no TIME_WAIT.
// What sees each one says so; what infers them claims none that is not there, and
// says where it does not know.
func TestTimeWaitFull(t *testing.T) {
	for name, opts := range map[string]Options{"seen": {}, "inferred": {NoTrampolines: true}} {
		t.Run(name, func(t *testing.T) { timeWaitFull(t, openTier(t, opts)) })
	}
}

func timeWaitFull(t *testing.T, p *Probe) {
	const rounds, room = 30, 8
	o := &ender{}
	table := tableFor(p, o)
	there := 0
	netns := inSpace(t, func(s *space) {
		check(os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", fmt.Append(nil, room), 0))
		for range rounds {
			c, a := s.pair(0)
			s.close(c)
			readEOF(a)
			s.close(a)
		}
		there = timeWaits()
	})
	follow(t, p, table, netns, func() bool { return len(o.finished) == 2*rounds+rounds }) // listeners, too
	told, unsure := 0, 0
	for i := range o.finished {
		c := &o.finished[i]
		if c.Lingers != event.StateNone {
			told++
		}
		if c.Crowded {
			unsure++
		}
	}
	t.Logf("%d in TIME_WAIT, %d told, %d unsure", there, told, unsure)
	if there != room {
		t.Fatalf("%d in TIME_WAIT, the limit is %d", there, room)
	}
	if p.SeesTimeWait() && (told != there || unsure > 0) || told > there || told < there-1 {
		t.Errorf("%d were told to be in TIME_WAIT, of %d nobody knew; %d were", told, unsure, there)
	}
	if s := table.Stats(); int(s.Crowded) != rounds-told || !p.SeesTimeWait() && unsure != rounds-told {
		t.Errorf("%d ended without TIME_WAIT or maybe without, %d unsure, want %d", s.Crowded, unsure, rounds-told)
	}
}

// timeWaits is how many mini sockets the namespace of this thread has.
func timeWaits() (n int) {
	for line := range strings.Lines(string(must(os.ReadFile("/proc/thread-self/net/sockstat")))) {
		var inuse, orphans int
		if _, err := fmt.Sscanf(line, "TCP: inuse %d orphan %d tw %d", &inuse, &orphans, &n); err == nil {
			return n
		}
	}
	panic("no line of TCP in sockstat")
}

// TestStillborn: the kernel makes a child of a request, has no route for it, and ends
// it again; the request, of which the child has the cookie, stays and becomes a
// connection. That one is told, and nothing else.
func TestStillborn(t *testing.T) {
	for name, opts := range map[string]Options{"seen": {}, "inferred": {NoTrampolines: true}} {
		t.Run(name, func(t *testing.T) {
			p := openTier(t, opts)
			netns := inSpace(t, func(s *space) {
				peer := s.tun()
				l, _ := s.listen(local10(80), 8, 0)
				peer.send(4000, 80, 1000, 0, flagSYN)
				seq := peer.synAck()
				peer.mask(32) // no route to the peer
				peer.send(4000, 80, 1001, seq+1, flagACK)
				peer.mask(24)
				peer.send(4000, 80, 1001, seq+1, flagACK)
				a := s.accept(l)
				peer.send(4000, 80, 1001, seq+1, flagACK|flagFIN)
				readEOF(a)
				s.close(a)
				peer.send(4000, 80, 1002, seq+2, flagACK)
			})
			got := collect(t, p, netns, 2)
			compare(t, "ends", got.ends, []string{"server closed peer", "listener listen_ended local"})
			for i := range got.conns {
				if c := &got.conns[i]; c.Gap || c.Role == lifecycle.RoleServer && c.State != event.StateClose {
					t.Errorf("%s %s: gap %v", c.Role, c.State, c.Gap)
				}
			}
		})
	}
}

// mask sets the length of the prefix that the other end of the device takes for its
// neighbourhood.
func (p *rawPeer) mask(bits int) {
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fd)
	req := must(unix.NewIfreq("peer"))
	mask := ^uint32(0) << (32 - bits)
	check(req.SetInet4Addr([]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}))
	check(unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, req))
}

// TestOldWithoutSnapshot: a connection that was there before the probe, and that no
// snapshot has shown, is known from its next change of state on.
func TestOldWithoutSnapshot(t *testing.T) {
	for name, opts := range map[string]Options{"storage": {}, "addresses": {NoStorage: true}} {
		t.Run(name, func(t *testing.T) {
			p := openTier(t, opts) // skips here, not within the space
			check(p.Close())
			netns := inSpace(t, func(s *space) {
				c, a := s.pair(0)
				p = openTier(t, opts)
				s.close(c)
				readEOF(a)
				s.close(a)
			})
			got := collect(t, p, netns, 2)
			n := 0
			for i := range got.conns {
				if c := &got.conns[i]; c.Outcome == lifecycle.OutcomeClosed && !c.FromStart && c.Local.IsValid() && c.Peer.IsValid() {
					n++
				}
			}
			if n != 2 {
				t.Errorf("%d ends of a connection, want 2; %v", n, got.paths)
			}
		})
	}
}

// TestFilterTakesNoRoom: of connections that are not wanted the ring holds only what
// was told before the filter could decide.
func TestFilterTakesNoRoom(t *testing.T) {
	const connections, changes = 200, 10
	for name, f := range map[string]event.Filter{"pid": {PIDs: []uint32{1 << 22}}, "port": {Remote: []uint16{1}}} {
		t.Run(name, func(t *testing.T) {
			p := openTier(t, Options{Filter: f})
			before, err := p.Stats()
			check(err)
			inSpace(t, func(s *space) {
				l, at := s.listen(local4(), 8, 0)
				for range connections {
					c, a := s.transient(at, l)
					unix.Close(c)
					unix.Close(a)
				}
			})
			after, err := p.Stats()
			check(err)
			events, room := after.Attempts-before.Attempts, (after.Pending-before.Pending)/int(unsafe.Sizeof(bpfEvent{}))
			t.Logf("%d events, %d filtered, room for %d taken", events, after.Filtered-before.Filtered, room)
			if events < connections*changes || room == 0 || room > connections*changes*2/3 {
				t.Errorf("of %d connections that nobody wants %d events take room", connections, room)
			}
		})
	}
}

// TestSnapshotWaits: a snapshot of more sockets than the ring has room for waits until
// it is read, and loses nothing.
func TestSnapshotWaits(t *testing.T) {
	const sockets = 600
	inSpace(t, func(s *space) {
		for i := range sockets {
			s.listen(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, 1}, Port: 4000 + i}, 8, 0)
		}
		p := openTier(t, Options{RingBytes: 64 << 10, Filter: event.Filter{Netns: s.inode}})
		if !p.works(bpfProgStIterTcp) {
			panic(skip("no iterators"))
		}
		var done atomic.Bool
		go func() {
			defer done.Store(true)
			check(p.Snapshot())
		}()
		found := 0
		for before := 0; !done.Load(); {
			stats := must(p.Stats())
			if stats.Pending <= stats.RingBytes/2 || stats.Pending != before {
				before = stats.Pending
				continue // the reader is so late that no more comes
			}
			for range stats.Pending / int(unsafe.Sizeof(bpfEvent{})) / 2 {
				var e event.Event
				if check(p.Read(&e)); e.Kind == event.KindSnapshot && e.Netns == s.inode {
					found++
				}
			}
		}
		stats := must(p.Stats())
		t.Logf("%d of %d sockets while the snapshot was made, %d events lost", found, sockets, stats.Lost)
		if found < sockets/2 || stats.Lost > 0 {
			t.Errorf("of %d sockets %d were read while the snapshot was made; %d events were lost", sockets, found, stats.Lost)
		}
	})
}

// TestStatsAtClose: who asks for the counters when the probe ends is told so.
func TestStatsAtClose(t *testing.T) {
	p := openTier(t, Options{})
	asked, told := make(chan bool), make(chan error)
	go func() {
		_, err := p.Stats()
		for asked <- true; err == nil; _, err = p.Stats() {
		}
		told <- err
	}()
	<-asked
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := <-told; !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}
