// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestTrampolines: each of them works where the kernel has trampolines at all,
// and where it refuses them the rest works without.
func TestTrampolines(t *testing.T) {
	p := openTier(t, Options{})
	refused := 0
	for _, h := range p.Hooks() {
		instead := slices.ContainsFunc(p.Hooks(), func(o HookStatus) bool { return o.insteadOf == h.Program && o.Err == nil && !o.Unused })
		if h.Tier != TierTrampolines || h.Err == nil || instead {
			continue
		}
		refused++
		t.Logf("%s: %s", h.Name, firstLine(h.Err))
		if log := (*ebpf.VerifierError)(nil); errors.As(h.Err, &log) && len(log.Log) > 0 {
			t.Logf("%s", strings.Join(log.Log[max(0, len(log.Log)-25):], "\n"))
		}
	}
	if full := os.Getenv("STATED_VM") != "" && runtime.GOARCH == "amd64" && p.cookies; full && refused > 0 {
		t.Errorf("%d trampolines do not work", refused)
	}
	if p = openTier(t, Options{NoTrampolines: true}); p.SeesRequests() || p.SeesTimeWait() {
		t.Error("trampolines although not asked for")
	}
}

// rawPeer is the other end of a TUN device: a peer of which each segment is ours.
type rawPeer struct {
	fd       int
	us, them [4]byte
	window   uint16
}

const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	_
	flagACK
)

// tun makes a network in which only 10.7.0.1 is the kernel.
func (s *space) tun() *rawPeer {
	p := &rawPeer{fd: must(unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)), us: [4]byte{10, 7, 0, 2}, them: [4]byte{10, 7, 0, 1}, window: 0xffff}
	s.fds = append(s.fds, p.fd)
	req := must(unix.NewIfreq("peer"))
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	check(unix.IoctlIfreq(p.fd, unix.TUNSETIFF, req))
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fd)
	for ioctl, addr := range map[uint][]byte{unix.SIOCSIFADDR: p.them[:]} {
		check(req.SetInet4Addr(addr))
		check(unix.IoctlIfreq(fd, ioctl, req))
	}
	check(req.SetInet4Addr([]byte{255, 255, 255, 0}))
	check(unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, req))
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	check(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req))
	return p
}

// send puts a segment without data on the wire (RFC 9293, section 3.1).
func (p *rawPeer) send(from, to uint16, seq, ack uint32, flags byte) {
	be := binary.BigEndian
	ip := []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0}
	ip = append(append(ip, p.us[:]...), p.them[:]...)
	be.PutUint16(ip[10:], checksum(ip))
	tcp := be.AppendUint16(be.AppendUint16(nil, from), to)
	tcp = be.AppendUint32(be.AppendUint32(tcp, seq), ack)
	tcp = append(be.AppendUint16(append(tcp, 5<<4, flags), p.window), 0, 0, 0, 0)
	pseudo := append(append([]byte(nil), ip[12:20]...), 0, unix.IPPROTO_TCP, 0, 20)
	be.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	must(unix.Write(p.fd, append(ip, tcp...)))
}

// unreachable says that a segment of the kernel's did not get to us (RFC 792).
func (p *rawPeer) unreachable(from, to uint16, seq uint32) {
	be := binary.BigEndian
	header := func(size, protocol byte, from, to [4]byte) []byte {
		ip := append(append([]byte{0x45, 0, 0, size, 0, 0, 0x40, 0, 64, protocol, 0, 0}, from[:]...), to[:]...)
		be.PutUint16(ip[10:], checksum(ip))
		return ip
	}
	const hostUnreachable = 3<<8 | 1
	icmp := append(be.AppendUint16(nil, hostUnreachable), 0, 0, 0, 0, 0, 0)
	icmp = append(icmp, header(40, unix.IPPROTO_TCP, p.them, p.us)...)
	icmp = be.AppendUint32(be.AppendUint16(be.AppendUint16(icmp, to), from), seq)
	be.PutUint16(icmp[2:], checksum(icmp))
	must(unix.Write(p.fd, append(header(byte(20+len(icmp)), unix.IPPROTO_ICMP, p.us, p.them), icmp...)))
}

// synAck waits for the kernel's answer to a SYN and returns its sequence number.
func (p *rawPeer) synAck() uint32 {
	for {
		var b [2048]byte
		n := must(unix.Read(p.fd, b[:]))
		if n >= 40 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP && b[33]&(flagSYN|flagACK) == flagSYN|flagACK {
			return binary.BigEndian.Uint32(b[24:])
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

type ender struct{ finished []lifecycle.Conn }

func (*ender) Transition(*lifecycle.Conn, *event.Event) {}
func (o *ender) Finished(c *lifecycle.Conn) {
	o.finished = append(o.finished, *c)
}

func local10(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: [4]byte{10, 7, 0, 1}, Port: port}
}

func tableFor(p *Probe, o lifecycle.Observer) *lifecycle.Table {
	return lifecycle.New(o, lifecycle.Options{SeesTimeWait: p.SeesTimeWait()})
}

// TestHalfOpen: a SYN is a connection from the first, and each way for it to
// end has its outcome.
func TestHalfOpen(t *testing.T) {
	p := openTier(t, Options{})
	if !p.SeesRequests() {
		t.Skip("this kernel refuses trampolines")
	}
	end := &ender{}
	table := tableFor(p, end)
	inSpace(t, func(s *space) {
		wire := s.tun()
		l, _ := s.listen(local10(4000), 8, 0)
		check(unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1))
		halfOpen := func() (n int) {
			table.All(func(c *lifecycle.Conn) {
				if c.HalfOpen() {
					n++
				}
			})
			return n
		}
		wire.send(1005, 4000, 100, 1, flagACK) // of nothing: a RST answers it
		for _, port := range []uint16{1004, 1005, 1006} {
			wire.send(port, 4000, 100, 0, flagSYN)
			seq := wire.synAck()
			switch port {
			case 1004:
				wire.send(port, 4000, 101, seq+7, flagACK) // a RST answers this, too
			case 1005:
				wire.send(port, 4000, 101, 0, flagRST)
			case 1006:
				wire.unreachable(port, 4000, seq+7) // not what was sent
			}
		}
		follow(t, p, table, s.inode, func() bool { return len(end.finished) == 1 && halfOpen() == 2 })
		wire.send(1001, 4000, 100, 0, flagSYN) // never heard of again
		wire.send(1002, 4000, 100, 0, flagSYN)
		wire.synAck()
		wire.synAck()
		follow(t, p, table, s.inode, func() bool { return halfOpen() == 4 })
		wire.send(1002, 4000, 101, 0, flagRST)
		wire.send(1003, 4000, 100, 0, flagSYN)
		seq := wire.synAck()
		for ; ; seq = wire.synAck() {
			wire.send(1003, 4000, 101, seq+1, flagACK)
			if n := must(unix.GetsockoptTCPInfo(l, unix.IPPROTO_TCP, unix.TCP_INFO)).Unacked; n > 0 {
				break
			}
		}
		a := s.accept(l)
		wire.send(1003, 4000, 101, seq+1, flagRST|flagACK)
		follow(t, p, table, s.inode, func() bool { return len(end.finished) == 6 })
		s.close(a)
	})
	want := map[uint16]lifecycle.Outcome{
		1001: lifecycle.OutcomeHandshakeExpired, 1002: lifecycle.OutcomeHandshakeReset, 1003: lifecycle.OutcomeResetByPeer,
		1004: lifecycle.OutcomeHandshakeExpired, 1005: lifecycle.OutcomeHandshakeReset, 1006: lifecycle.OutcomeHandshakeExpired,
	}
	for _, c := range end.finished {
		port := c.Peer.Port()
		if c.Outcome != want[port] || c.Role != lifecycle.RoleServer || c.Spans.At(0).State != event.StateSynRecv || c.Spans.At(0).Known != lifecycle.Seen {
			t.Errorf("from port %d: %s, %s, %+v", port, c.Outcome, c.Role, c.Spans.At(0))
		}
		if c.Owner.PID != uint32(os.Getpid()) {
			t.Errorf("from port %d: owner %d by %s", port, c.Owner.PID, c.Owner.Source)
		}
		if port == 1001 && (c.Retransmits != 1 || c.End-c.Spans.At(0).Start < 1e9) {
			t.Errorf("expired after %d SYN-ACKs, %d ns", c.Retransmits, c.End-c.Spans.At(0).Start)
		}
		if _, ok := c.AcceptWait(); ok != (port == 1003) {
			t.Errorf("from port %d: accept() seen %v", port, ok)
		}
	}
}

// TestOverflow: the SYNs that a full queue drops are counted, each.
func TestOverflow(t *testing.T) {
	p := openTier(t, Options{})
	if !p.works(bpfProgStConnRequest) {
		t.Skip("this kernel refuses trampolines")
	}
	table := tableFor(p, &ender{})
	const syns = 25
	inSpace(t, func(s *space) {
		wire := s.tun()
		l, _ := s.listen(local10(4000), 0, 0)
		s.connect(local10(4000), 0)
		for must(unix.GetsockoptTCPInfo(l, unix.IPPROTO_TCP, unix.TCP_INFO)).Unacked == 0 {
			time.Sleep(time.Millisecond)
		}
		for i := range syns {
			wire.send(uint16(2000+i), 4000, 100, 0, flagSYN)
		}
		looked(t, p, table, s.inode) // tells what was counted and not told yet
		if n := table.Stats().Overflows; n != syns {
			t.Errorf("%d overflows, want %d", n, syns)
		}
	})
}

// TestTimeWait: its start, and its early end by a SYN and by SOCK_DESTROY.
func TestTimeWait(t *testing.T) {
	p := openTier(t, Options{})
	if !p.SeesTimeWait() {
		t.Skip("this kernel refuses trampolines")
	}
	ends := &miniEnds{}
	table := tableFor(p, ends)
	inSpace(t, func(s *space) {
		l, at := s.listen(local4(), 8, 0)
		from := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 5000}
		for range 2 {
			c := s.socket(unix.AF_INET, 0)
			check(unix.SetsockoptInt(c, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			check(unix.Bind(c, from))
			check(unix.Connect(c, at))
			a := s.accept(l)
			s.close(a) // TIME_WAIT is the server's
			readEOF(c)
			s.close(c)
			time.Sleep(5 * time.Millisecond) // the clock of TCP timestamps must go on
		}
		follow(t, p, table, s.inode, func() bool { return len(ends.causes) >= 1 && table.Stats().Lingering == 1 })
	})
	if got := fmt.Sprint(ends.causes); got != "[syn]" {
		t.Errorf("ended by %s, want [syn]", got)
	}
}

type miniEnds struct {
	ender
	causes []event.EndCause
}

func (o *miniEnds) Transition(c *lifecycle.Conn, e *event.Event) {
	if e.Flags.Has(event.FlagMini) && e.New == event.StateClose && e.Old == event.StateTimeWait {
		o.causes = append(o.causes, e.Cause)
	}
}

// TestSnapshotOfMiniSockets: TIME_WAIT and SYN_RECV are in the table although
// they began before us, in every tier that has iterators.
func TestSnapshotOfMiniSockets(t *testing.T) {
	for _, tier := range tiers {
		t.Run(tier.name, func(t *testing.T) {
			requireKernel(t)
			inSpace(t, func(s *space) {
				s.t = t
				wire := s.tun()
				s.listen(local10(4000), 8, 0)
				wire.send(1001, 4000, 100, 0, flagSYN)
				wire.synAck()
				c, a := s.pair(0)
				s.close(c)
				readEOF(a)
				s.close(a)
				p := openTier(s.t, tier.opts)
				if !p.works(bpfProgStIterTcp) && p.names == nil {
					panic(skip("no iterators"))
				}
				table := tableFor(p, &ender{})
				looked(t, p, table, s.inode)
				halfOpen := 0
				table.All(func(c *lifecycle.Conn) {
					if c.HalfOpen() && c.Peer.AddrPort() == netip.MustParseAddrPort("10.7.0.2:1001") && c.State == event.StateSynRecv {
						halfOpen++
					}
				})
				if want := 1; p.cookies && halfOpen != want {
					t.Errorf("%d half-open", halfOpen)
				}
				var left []event.State
				table.Lingering(func(c *lifecycle.Conn) { left = append(left, c.State) })
				if fmt.Sprint(left) != "[TIME_WAIT]" {
					t.Errorf("left behind: %v", left)
				}
			})
		})
	}
}

// TestRepair: whatever the ring buffer had no room for, after some snapshots
// the table has the sockets that are there, each once.
func TestRepair(t *testing.T) {
	for _, classic := range []bool{false, true} {
		t.Run(fmt.Sprintf("classic %v", classic), func(t *testing.T) {
			testRepair(t, openTier(t, Options{RingBytes: 64 << 10, Classic: classic}))
		})
	}
}

func testRepair(t *testing.T, p *Probe) {
	if !p.works(bpfProgStIterTcp) && p.names == nil {
		t.Skip("no iterators")
	}
	end := &ender{}
	table := tableFor(p, end)
	inSpace(t, func(s *space) {
		l, at := s.listen(local4(), 64, 0)
		var early [][2]int
		for range 10 {
			c := s.connect(at, 0)
			early = append(early, [2]int{c, s.accept(l)})
		}
		follow(t, p, table, s.inode, func() bool { return table.Stats().Open == 21 })
		for i := range 200 { // more than there is room for, and nobody reads
			c := s.connect(at, 0)
			a := s.accept(l)
			if i%40 == 0 {
				continue
			}
			linger0(c)
			s.close(c, a)
		}
		for _, pair := range early {
			linger0(pair[0])
			s.close(pair[0], pair[1])
		}
		want := 1 + 2*5
		open := func() (n int) {
			table.All(func(c *lifecycle.Conn) {
				if c.End == 0 {
					n++
				}
			})
			return n
		}
		for try := 0; table.Stats().Lost == 0 || open() != want; try++ {
			if try == 10 {
				t.Fatalf("%d sockets in the table, %d are there: %+v", open(), want, table.Stats())
			}
			looked(t, p, table, s.inode)
		}
		looked(t, p, table, s.inode)
		if open() != want {
			t.Errorf("%d sockets in the table after one more snapshot, %d are there", open(), want)
		}
	})
	gone := 0
	for _, c := range end.finished {
		if c.Gap && c.Outcome == lifecycle.OutcomeUnknown && c.Why != lifecycle.WhyNone {
			gone++
		}
	}
	if gone == 0 {
		t.Error("no end was lost: the ring buffer was too large for this test")
	}
}

// TestInferenceAgrees: without what trampolines tell, the same comes out.
func TestInferenceAgrees(t *testing.T) {
	p := openTier(t, Options{})
	if !p.SeesRequests() || !p.SeesTimeWait() {
		t.Skip("this kernel refuses trampolines")
	}
	var stream []event.Event
	seen, inferred := &ender{}, &ender{}
	table := tableFor(p, seen)
	netns := inSpace(t, func(s *space) {
		for range 20 {
			c, a := s.pair(0)
			s.close(c)
			readEOF(a)
			s.close(a)
		}
	})
	for quiet := 0; len(seen.finished) < 60 || quiet < 2; {
		var e event.Event
		if err := p.Read(&e); errors.Is(err, event.ErrIdle) {
			boot, wall := Now()
			e = event.Event{Kind: event.KindClock, Time: boot, Wall: wall}
			quiet++
		} else if err != nil {
			t.Fatal(err)
		} else if e.Netns != netns {
			continue
		}
		stream = append(stream, e)
		table.Apply(&e)
		if quiet > 1000 {
			t.Fatalf("%d connections", len(seen.finished))
		}
	}
	other := lifecycle.New(inferred, lifecycle.Options{})
	for i := range stream {
		switch stream[i].Kind {
		case event.KindRequest, event.KindRequestEnd, event.KindTimeWait, event.KindTimeWaitEnd:
		default:
			other.Apply(&stream[i])
		}
	}
	other.Flush()
	if len(inferred.finished) != len(seen.finished) {
		t.Fatalf("%d inferred, %d seen", len(inferred.finished), len(seen.finished))
	}
	for i := range seen.finished {
		a, b := &seen.finished[i], &inferred.finished[i]
		if a.Socket != b.Socket || a.Outcome != b.Outcome || a.Initiator != b.Initiator || a.Role != b.Role {
			t.Errorf("seen %v %s %s, inferred %v %s %s", a.Socket, a.Outcome, a.Role, b.Socket, b.Outcome, b.Role)
		}
		if (a.Lingers == event.StateNone) != (b.Lingers == event.StateNone) || a.LingerStart <= a.End && a.Lingers != b.Lingers {
			t.Errorf("seen to leave %s, inferred %s", a.Lingers, b.Lingers)
		}
		if a.Lingers != event.StateNone && (a.LingersKnown != lifecycle.Seen || b.LingersKnown != lifecycle.Inferred) {
			t.Errorf("%s and %s", a.LingersKnown, b.LingersKnown)
		}
		if a.Role != lifecycle.RoleServer {
			continue
		}
		// the kernel measures from the SYN-ACK on, and a clock of an emulated machine has steps of milliseconds
		d := b.Spans.At(0).Start - a.Spans.At(0).Start
		if a.Spans.At(0).Known != lifecycle.Seen || d < -2e7 || b.Spans.At(0).Start > a.Spans.At(1).Start {
			t.Errorf("SYN_RECV inferred (%s) to begin %v after the SYN (%s), rtt %d", b.Spans.At(0).Known, time.Duration(d), a.Spans.At(0).Known, b.SRTT)
		}
	}
}
