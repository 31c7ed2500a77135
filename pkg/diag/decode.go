// SPDX-License-Identifier: Apache-2.0

package diag

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// Sizes and numbers of include/uapi/linux/netlink.h and inet_diag.h. What the
// kernel counts is in the byte order of the host, ports and addresses in that of
// the network.
const (
	headerLen  = 16 // struct nlmsghdr
	requestLen = 56 // struct inet_diag_req_v2
	messageLen = 72 // struct inet_diag_msg
	attrLen    = 4  // struct nlattr

	flagInterrupted = 0x10 // NLM_F_DUMP_INTR

	attrInfo     = 2 // INET_DIAG_INFO: struct tcp_info
	attrShutdown = 8
	attrULP      = 19 // INET_DIAG_ULP_INFO, nested
	attrCgroup   = 21
	ulpName      = 1 // INET_ULP_INFO_NAME

	timerRetransmit = 1 // idiag_timer
	timerTimeWait   = 3
	timerProbe      = 4

	stateLoss = 4 // TCP_CA_Loss
)

// tick is the longest that jiffies stand still, in nanoseconds: CONFIG_HZ is 100
// or more.
const tick = 10e6

// decoder makes sightings of the datagrams of one list.
type decoder struct {
	netns   uint32
	states  event.StateSet // wanted
	begun   int64
	got     int64
	sockets []event.Sighting
	partial bool // the kernel says that its tables changed meanwhile
}

// datagram adds the sockets of one datagram, and reports whether it is the last.
func (d *decoder) datagram(b []byte) (done bool, err error) {
	native := binary.NativeEndian
	for len(b) >= headerLen {
		size := int(native.Uint32(b))
		if size < headerLen || size > len(b) {
			return false, fmt.Errorf("netlink message of %d bytes in %d", size, len(b))
		}
		if native.Uint32(b[8:]) != sequence { // not an answer to us
			b = b[min(align(size), len(b)):]
			continue
		}
		if native.Uint16(b[6:])&flagInterrupted != 0 {
			d.partial = true
		}
		body := b[headerLen:size]
		switch native.Uint16(b[4:]) {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if errno := -int32(native.Uint32(body)); errno > 0 {
					return false, unix.Errno(errno)
				}
			}
			return true, nil
		case unix.SOCK_DIAG_BY_FAMILY:
			var s event.Sighting
			if err := d.decode(body, &s); err != nil {
				return false, err
			}
			if s.New != event.StateClose && Wanted(d.states, &s) { // it ended when the kernel had chosen it
				d.sockets = append(d.sockets, s)
			}
		}
		b = b[min(align(size), len(b)):]
	}
	return false, nil
}

func align(n int) int { return (n + 3) &^ 3 }

// Wanted reports whether a socket is in one of the states: a mini socket is in
// TIME_WAIT, whatever its substate, or in SYN_RECV.
func Wanted(states event.StateSet, s *event.Sighting) bool {
	if s.Flags.Has(event.FlagMini) && s.New != event.StateSynRecv {
		return states.Has(event.StateTimeWait)
	}
	return states.Has(s.New)
}

// decode reads a struct inet_diag_msg and its attributes, as they are filled in
// net/ipv4/inet_diag.c and tcp_diag.c.
func (d *decoder) decode(b []byte, s *event.Sighting) error {
	if len(b) < messageLen {
		return fmt.Errorf("inet_diag message of %d bytes, expected %d", len(b), messageLen)
	}
	native, be := binary.NativeEndian, binary.BigEndian
	family, state, timer, retransmits := b[0], event.State(b[1]), b[2], b[3]
	if state == event.StateNone || state >= event.NumStates {
		return fmt.Errorf("inet_diag message of a socket in state %d", state)
	}
	*s = event.Sighting{Limited: true, Inode: uint64(native.Uint32(b[68:]))}
	e := &s.Event
	e.Kind, e.Time, e.Netns, e.Protocol, e.FD = event.KindSnapshot, d.got, d.netns, event.ProtoTCP, -1
	e.Old, e.New, e.Family = state, state, uint16(family)
	e.Local = AddrPort(e.Family, (*[16]uint8)(b[8:]), be.Uint16(b[4:]))
	e.Peer = AddrPort(e.Family, (*[16]uint8)(b[24:]), be.Uint16(b[6:]))
	// Two halves, the low one first (sock_diag_save_cookie).
	e.Socket = event.SocketID(native.Uint32(b[44:])) | event.SocketID(native.Uint32(b[48:]))<<32
	e.Unread, e.Unsent, e.UID = native.Uint32(b[56:]), native.Uint32(b[60:]), native.Uint32(b[64:])
	if s.Inode == 0 {
		e.Flags |= event.FlagNoSocket
	}
	info, full := attributes(b[messageLen:], s)
	if timer == timerTimeWait || !full {
		e.Flags |= event.FlagMini // a request has no tcp_info
		if timer != timerTimeWait {
			e.Retransmits = uint32(retransmits) // num_retrans, in inet_req_diag_fill
		} else if s.New == event.StateTimeWait {
			e.Began = TimeWaitBegan(d.got, int64(native.Uint32(b[52:]))*1e6+tick)
		}
		return nil
	}
	if s.Inode == 0 && e.UID == 0 {
		e.UID = event.NoUID // what sock_i_uid said of all that have no file, before 6.17
	}
	infer(s)
	s.Shut = shut(state, timer, info)
	Numbers(s, info, d.begun, d.got)
	return nil
}

// TimeWaitBegan is no earlier than TIME_WAIT began, of which that time is left, in
// nanoseconds. It lasts TCP_TIMEWAIT_LEN, and begins anew with each FIN of the peer.
func TimeWaitBegan(now, left int64) int64 { return now - max(60e9-left, 0) }

// infer fills in what follows from the state alone: a FIN brought it there, and
// close(), not the lack of an accept(), left it without a struct socket. Of a
// connection that nobody accepted close() is not called: inet_csk_listen_stop
// ends it.
func infer(s *event.Sighting) {
	switch s.New {
	case event.StateCloseWait, event.StateLastAck, event.StateClosing:
		s.Flags |= event.FlagDone // tcp_fin
	}
	switch s.New {
	case event.StateFinWait1, event.StateFinWait2, event.StateLastAck, event.StateClosing:
		if s.Inode == 0 && !s.Flags.Has(event.FlagMPTCP) {
			s.Flags |= event.FlagDead
		}
	}
}

// Numbers takes over a struct tcp_info, which the kernel made between begun and
// got, for a socket whose state is known; of a listener it means something else.
func Numbers(s *event.Sighting, info *unix.TCPInfo, begun, got int64) {
	s.Opened = opened(s.New, info)
	if s.New == event.StateListen {
		return
	}
	s.BytesSent, s.BytesResent = info.Bytes_sent, info.Bytes_retrans
	s.BytesAcked, s.BytesReceived = info.Bytes_acked, info.Bytes_received
	s.SRTT, s.Retransmits = info.Rtt, info.Total_retrans
	s.Timeouts, s.Probes = info.Retransmits, info.Probes
	if s.New == event.StateSynSent {
		s.Unread = 0 // as of what the socket was before
	}
	// The earliest that it may have been; 0 if that is before the kernel began.
	earliest := func(ms uint32) int64 { return max(begun-int64(ms)*1e6-tick, 0) }
	if s.BytesReceived != 0 {
		s.LastReceived = earliest(info.Last_data_recv)
	}
	if s.BytesSent != 0 {
		s.LastSent = earliest(info.Last_data_sent)
	}
	// What we sent since is not told, so there may be a later segment.
	if ago := int64(info.Last_ack_recv) * 1e6; ago < begun && EnteredByAck(s.New) {
		s.LastSegment = min(got-ago+tick, got)
	}
}

// EnteredByAck reports whether a connection came into its state no later than the
// last acknowledgement did: it is stamped (rcv_tstamp, by tcp_ack in
// net/ipv4/tcp_input.c), and what brings a connection into these states is one. What
// we send meanwhile, once more or as a probe, does not count, nor do data that
// acknowledge nothing new, in the fast path of tcp_rcv_established. A FIN that comes
// behind a newer acknowledgement (reordered) is not stamped.
func EnteredByAck(s event.State) bool {
	switch s {
	case event.StateEstablished, event.StateCloseWait, event.StateFinWait2, event.StateClosing:
		return true
	}
	return false
}

// shut reports whether the peer's window is closed, by the rules of inspect_timer
// in bpf/inspect.h.
func shut(state event.State, timer uint8, info *unix.TCPInfo) bool {
	switch {
	case timer == timerProbe:
		return info.Backoff > 0
	case timer == timerRetransmit && state != event.StateSynSent && state != event.StateSynRecv:
		return info.Snd_wnd == 0 && info.Ca_state == stateLoss
	}
	return false
}

// opened reports whether the peer's SYN came. In CLOSE its options tell, or that
// ours was acknowledged, or data.
func opened(state event.State, info *unix.TCPInfo) bool {
	switch state {
	case event.StateListen, event.StateSynSent:
		return false
	case event.StateClose:
		return info.Options != 0 || info.Bytes_acked != 0 || info.Bytes_received != 0
	}
	return true
}

// attributes reads what follows the message, and reports whether tcp_info is
// among it, which only full sockets have. Older kernels have less of it.
func attributes(b []byte, s *event.Sighting) (_ *unix.TCPInfo, full bool) {
	info := new(unix.TCPInfo)
	eachAttr(b, func(kind uint16, value []byte) {
		switch {
		case kind == attrInfo:
			full = true
			copy(unsafe.Slice((*byte)(unsafe.Pointer(info)), unsafe.Sizeof(*info)), value)
		case kind == attrShutdown && len(value) >= 1:
			s.Shutdown = value[0]
		case kind == attrCgroup && len(value) >= 8:
			s.Cgroup = binary.NativeEndian.Uint64(value)
		case kind == attrULP:
			eachAttr(value, func(kind uint16, value []byte) {
				if kind == ulpName && string(bytes.TrimRight(value, "\x00")) == "mptcp" {
					s.Flags |= event.FlagMPTCP
				}
			})
		}
	})
	return info, full
}

// eachAttr walks over struct nlattr; a broken rest is left out.
func eachAttr(b []byte, f func(kind uint16, value []byte)) {
	native := binary.NativeEndian
	for len(b) >= attrLen {
		size := int(native.Uint16(b))
		if size < attrLen || size > len(b) {
			return
		}
		f(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[attrLen:size])
		b = b[min(align(size), len(b)):]
	}
}

// AddrPort makes one of the fields of a struct inet_diag_sockid and the like: an
// IPv4 address takes the first four bytes.
func AddrPort(family uint16, addr *[16]uint8, port uint16) netip.AddrPort {
	switch family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr[:4])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(*addr).Unmap(), port)
	}
	return netip.AddrPort{}
}
