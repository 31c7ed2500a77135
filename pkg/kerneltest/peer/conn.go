// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Conn is the script's end of one connection. It counts sequence numbers: what
// is sent continues what was sent, and what is expected must continue what came.
//
// A script that does not go as written ends in a panic whose text has the line
// of the script, what was expected, and every segment that went either way.
type Conn struct {
	Local  netip.AddrPort // the script's
	Kernel netip.AddrPort // port 0: whoever connects to Local first
	Seq    uint32         // of the next byte to send
	Ack    uint32         // of the next byte to come, what Send acknowledges
	Window uint16         // that Send announces
	Last   Segment        // the last that came

	dev     *Device
	synced  bool // Ack is known
	pending []Segment
	taken   []Segment // by Expect
	log     []string
}

// Conn makes an end at an address of the script. The kernel's end is where the
// script wants to connect to, or has port 0 and is learned from the first
// segment that comes to local.
func (d *Device) Conn(local, kernel netip.AddrPort) *Conn {
	c := &Conn{Local: local, Kernel: kernel, Seq: 1000, Window: 65535, dev: d}
	d.conns = append(d.conns, c)
	return c
}

// Send sends a segment with these flags and data, and counts it.
func (c *Conn) Send(flags Flags, data ...string) {
	s := Segment{Seq: c.Seq, Flags: flags, Data: []byte(strings.Join(data, ""))}
	if flags&ACK != 0 {
		s.Ack = c.Ack
	}
	c.Seq += s.length()
	c.SendSegment(s)
}

// SendSegment sends s as it is, but for its addresses, and for its window
// where that is 0; nothing is counted.
func (c *Conn) SendSegment(s Segment) {
	s.From, s.To = c.Local, c.Kernel
	if s.Window == 0 {
		s.Window = c.Window
	}
	c.log = append(c.log, "> "+s.String())
	if err := c.dev.write(s.Marshal()); err != nil {
		c.fail("send %s: %v", &s, err)
	}
}

// Unreachable answers the last segment with an ICMP or ICMPv6 "destination
// unreachable" of this code.
func (c *Conn) Unreachable(code byte) {
	c.log = append(c.log, fmt.Sprintf("> unreachable, code %d, for %s", code, &c.Last))
	if err := c.dev.write(unreachable(c.Local.Addr(), c.Kernel.Addr(), code, c.Last.Marshal())); err != nil {
		c.fail("send unreachable: %v", err)
	}
}

// Expect waits for the next segment and returns it. Its flags must be these,
// where PSH stands for data, and it must continue what came before. What says nothing new is
// passed over, as it depends on the kernel's timers: repetitions, and bare
// acknowledgements where something else is expected.
func (c *Conn) Expect(flags Flags) Segment {
	for deadline := time.Now().Add(patience); ; {
		s, ok := c.next(deadline)
		if !ok {
			c.fail("expected %s, but nothing came in %s", flags, patience)
		}
		if c.repeats(&s) || s.bare() && flags != ACK {
			continue
		}
		if s.Flags&^PSH != flags&^PSH || flags&^PSH == ACK && (len(s.Data) > 0) != (flags&PSH != 0) {
			c.fail("expected %s, got %s", flags, &s)
		}
		if c.synced && s.Seq != c.Ack && flags&(RST|SYN) == 0 {
			c.fail("expected %s with seq %d, got %s", flags, c.Ack, &s)
		}
		if flags&RST == 0 {
			c.synced = true
			c.Ack = s.Seq + s.length()
			c.taken = append(c.taken, s)
		}
		return s
	}
}

// repeats reports whether s is a repetition of what was taken already.
func (c *Conn) repeats(s *Segment) bool {
	return s.length() > 0 && slices.ContainsFunc(c.taken, func(t Segment) bool {
		return t.Seq == s.Seq && t.length() == s.length() && t.Flags&^PSH == s.Flags&^PSH
	})
}

// ExpectAck waits until the kernel has acknowledged all that was counted.
func (c *Conn) ExpectAck() {
	for c.Expect(ACK); c.Last.Ack != c.Seq; {
		c.Expect(ACK)
	}
}

// ExpectRepeat waits for a repetition of the last segment, or a probe: one that
// begins before what came already.
func (c *Conn) ExpectRepeat() Segment {
	for deadline := time.Now().Add(patience); ; {
		s, ok := c.next(deadline)
		if !ok {
			c.fail("expected a repetition, but nothing came in %s", patience)
		}
		if int32(s.Seq-c.Ack) < 0 {
			return s
		}
	}
}

// next returns the next segment of c; those of other connections are kept for them.
func (c *Conn) next(deadline time.Time) (Segment, bool) {
	for len(c.pending) == 0 {
		s, ok, err := c.dev.read(deadline)
		if err != nil {
			c.fail("%v", err)
		}
		if !ok {
			return s, false
		}
		to := c.dev.conn(&s)
		if to == nil {
			c.fail("a segment of no connection: %s from %s to %s", &s, s.From, s.To)
		}
		to.log = append(to.log, "< "+s.String())
		to.pending = append(to.pending, s)
	}
	c.Last, c.pending = c.pending[0], c.pending[1:]
	return c.Last, true
}

// conn finds the connection of a segment, the newest first. One that waits for
// the kernel's port takes only what begins a connection, unless there is no
// other: an older one may still be repeating its FIN.
func (d *Device) conn(s *Segment) *Conn {
	if s.Flags&(SYN|ACK) != SYN {
		for _, c := range slices.Backward(d.conns) {
			if c.Local == s.To && c.Kernel == s.From {
				return c
			}
		}
	}
	for i := len(d.conns) - 1; i >= 0; i-- {
		c := d.conns[i]
		if c.Local == s.To && c.Kernel.Addr() == s.From.Addr() && (c.Kernel.Port() == 0 || c.Kernel == s.From) {
			c.Kernel = s.From
			return c
		}
	}
	return nil
}

func (c *Conn) fail(format string, args ...any) {
	where := ""
	for skip := 1; where == ""; skip++ {
		pc, file, line, ok := runtime.Caller(skip)
		if !ok || !strings.Contains(runtime.FuncForPC(pc).Name(), "/peer.") {
			where = fmt.Sprintf("%s:%d", filepath.Base(file), line)
		}
	}
	panic(fmt.Sprintf("%s: %s; so far:\n\t%s", where, fmt.Sprintf(format, args...), strings.Join(c.log, "\n\t")))
}
