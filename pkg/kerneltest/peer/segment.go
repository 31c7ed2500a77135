// SPDX-License-Identifier: Apache-2.0

// Package peer is the other end of a TCP connection, played segment by segment
// by a test: a TUN device in the current network namespace behind which there
// is no TCP at all but a script. It is test support only.
package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Flags of a segment (RFC 9293 3.1).
type Flags uint8

// The flags that scripts use.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
)

func (f Flags) String() string {
	s := ""
	for i, name := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK"} {
		if f&(1<<i) != 0 {
			s += "|" + name
		}
	}
	if s == "" {
		return "none"
	}
	return s[1:]
}

// Segment is one TCP segment with the addresses of its packet.
type Segment struct {
	From, To netip.AddrPort
	Seq, Ack uint32
	Flags    Flags
	Window   uint16 // unscaled
	Options  []byte // as on the wire, a multiple of four bytes
	Data     []byte
}

// length is the sequence space that s takes.
func (s *Segment) length() uint32 {
	n := uint32(len(s.Data))
	if s.Flags&SYN != 0 {
		n++
	}
	if s.Flags&FIN != 0 {
		n++
	}
	return n
}

// bare reports whether s does nothing but acknowledge.
func (s *Segment) bare() bool { return s.Flags == ACK && len(s.Data) == 0 }

func (s *Segment) String() string {
	return fmt.Sprintf("%s seq %d ack %d, %d bytes, window %d", s.Flags, s.Seq, s.Ack, len(s.Data), s.Window)
}

const (
	protoTCP    = 6
	protoICMPv4 = 1
	protoICMPv6 = 58
	headerTCP   = 20
)

// Marshal makes the IP packet of s.
func (s *Segment) Marshal() []byte {
	be := binary.BigEndian
	b := be.AppendUint16(nil, s.From.Port())
	b = be.AppendUint16(b, s.To.Port())
	b = be.AppendUint32(b, s.Seq)
	b = be.AppendUint32(b, s.Ack)
	b = append(b, byte(headerTCP+len(s.Options))/4<<4, byte(s.Flags))
	b = be.AppendUint16(b, s.Window)
	b = append(b, 0, 0, 0, 0) // checksum, urgent pointer
	b = append(append(b, s.Options...), s.Data...)
	be.PutUint16(b[16:], checksum(b, pseudo(s.From.Addr(), s.To.Addr(), protoTCP, len(b))))
	return packet(s.From.Addr(), s.To.Addr(), protoTCP, b)
}

// Parse reads an IP packet with a TCP segment; everything else is an error.
func Parse(b []byte) (Segment, error) {
	var s Segment
	from, to, payload, proto, err := unwrap(b)
	if err != nil {
		return s, err
	}
	if proto != protoTCP || len(payload) < headerTCP {
		return s, fmt.Errorf("protocol %d, %d bytes: not a TCP segment", proto, len(payload))
	}
	if checksum(payload, pseudo(from, to, protoTCP, len(payload))) != 0 {
		return s, errors.New("wrong TCP checksum")
	}
	data := int(payload[12]>>4) * 4
	if data < headerTCP || data > len(payload) {
		return s, fmt.Errorf("a TCP header of %d bytes in %d", data, len(payload))
	}
	be := binary.BigEndian
	s.From = netip.AddrPortFrom(from, be.Uint16(payload))
	s.To = netip.AddrPortFrom(to, be.Uint16(payload[2:]))
	s.Seq, s.Ack = be.Uint32(payload[4:]), be.Uint32(payload[8:])
	s.Flags, s.Window = Flags(payload[13]), be.Uint16(payload[14:])
	s.Options, s.Data = payload[headerTCP:data], payload[data:]
	return s, nil
}

// unreachable makes the packet of an ICMP or ICMPv6 "destination unreachable"
// that quotes the head of a packet (RFC 792; RFC 4443 3.1).
func unreachable(from, to netip.Addr, code byte, quoted []byte) []byte {
	kind, proto, sum := byte(3), byte(protoICMPv4), uint32(0)
	if from.Is6() {
		kind, proto = 1, protoICMPv6
	}
	b := append([]byte{kind, code, 0, 0, 0, 0, 0, 0}, quoted[:min(len(quoted), 512)]...)
	if from.Is6() {
		sum = pseudo(from, to, proto, len(b))
	}
	binary.BigEndian.PutUint16(b[2:], checksum(b, sum))
	return packet(from, to, proto, b)
}

// packet puts an IPv4 or IPv6 header in front.
func packet(from, to netip.Addr, proto byte, payload []byte) []byte {
	be := binary.BigEndian
	const ttl = 64
	if from.Is6() {
		b := be.AppendUint32(nil, 6<<28)
		b = be.AppendUint16(b, uint16(len(payload)))
		b = append(b, proto, ttl)
		b = append(append(b, from.AsSlice()...), to.AsSlice()...)
		return append(b, payload...)
	}
	b := []byte{4<<4 | 5, 0}
	b = be.AppendUint16(b, uint16(20+len(payload)))
	b = append(b, 0, 0, 1<<6, 0, ttl, proto, 0, 0) // id, do not fragment, checksum
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	be.PutUint16(b[10:], checksum(b, 0))
	return append(b, payload...)
}

func unwrap(b []byte) (from, to netip.Addr, payload []byte, proto byte, err error) {
	switch {
	case len(b) >= 40 && b[0]>>4 == 6:
		from, to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		return from, to, b[40:], b[6], nil
	case len(b) >= 20 && b[0]>>4 == 4 && int(b[0]&15)*4 >= 20 && int(b[0]&15)*4 <= len(b):
		from, to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		return from, to, b[int(b[0]&15)*4:], b[9], nil
	}
	return from, to, nil, 0, fmt.Errorf("%d bytes that are no IP packet", len(b))
}

// pseudo is the sum over the pseudo header (RFC 9293 3.1, RFC 8200 8.1).
func pseudo(from, to netip.Addr, proto byte, length int) uint32 {
	return add(from.AsSlice(), add(to.AsSlice(), uint32(proto)+uint32(length)))
}

func add(b []byte, sum uint32) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is that of RFC 1071, begun with sum; over what carries the right one it is 0.
func checksum(b []byte, sum uint32) uint16 {
	sum = add(b, sum)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
