// SPDX-License-Identifier: Apache-2.0

package diag

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

var native, be = binary.NativeEndian, binary.BigEndian

// message is a struct inet_diag_msg of 10.0.0.5:8080 and 10.0.0.9:40001.
func message(state event.State, timer uint8, inode uint32, attrs ...[]byte) []byte {
	b := []byte{unix.AF_INET, byte(state), timer, 2}
	b = be.AppendUint16(be.AppendUint16(b, 8080), 40001)
	b = append(append(b, 10, 0, 0, 5), make([]byte, 12)...)
	b = append(append(b, 10, 0, 0, 9), make([]byte, 12)...)
	b = native.AppendUint32(b, 0)                            // interface
	b = native.AppendUint32(native.AppendUint32(b, 0x17), 1) // cookie
	for _, v := range []uint32{41000, 6, 7, 1000, inode} {   // expires, rqueue, wqueue, uid, inode
		b = native.AppendUint32(b, v)
	}
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

func setUID(b []byte, uid uint32) []byte {
	native.PutUint32(b[64:], uid)
	return b
}

func attr(kind uint16, value []byte) []byte {
	b := native.AppendUint16(nil, uint16(attrLen+len(value)))
	b = append(native.AppendUint16(b, kind), value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func tcpInfo(i unix.TCPInfo) []byte {
	return attr(attrInfo, unsafe.Slice((*byte)(unsafe.Pointer(&i)), unsafe.Sizeof(i)))
}

func netlink(kind, flags uint16, body []byte) []byte {
	b := native.AppendUint32(nil, uint32(headerLen+len(body)))
	b = native.AppendUint16(native.AppendUint16(b, kind), flags)
	return append(native.AppendUint32(native.AppendUint32(b, sequence), 0), body...)
}

func failure(errno unix.Errno) []byte { return native.AppendUint32(nil, uint32(-int32(errno))) }

func sighting(state event.State, flags event.Flags, inode uint64) event.Sighting {
	s := event.Sighting{Inode: inode, Limited: true}
	s.Kind, s.Old, s.New, s.Flags, s.Time, s.FD = event.KindSnapshot, state, state, flags, 100e9, -1
	s.Socket, s.Netns, s.Protocol, s.Family = 1<<32|0x17, 5, event.ProtoTCP, unix.AF_INET
	s.Local, s.Peer = netip.MustParseAddrPort("10.0.0.5:8080"), netip.MustParseAddrPort("10.0.0.9:40001")
	s.UID, s.Unread, s.Unsent = 1000, 6, 7
	return s
}

func TestDecode(t *testing.T) {
	info := unix.TCPInfo{Rtt: 250, Total_retrans: 3, Bytes_sent: 70, Bytes_retrans: 10, Bytes_acked: 61, Bytes_received: 6, Retransmits: 2, Probes: 1, Backoff: 2,
		Last_data_recv: 2000, Last_data_sent: 3000, Last_ack_recv: 1000}
	full := sighting(event.StateCloseWait, event.FlagDone, 77)
	full.SRTT, full.Retransmits, full.BytesSent, full.BytesResent, full.BytesAcked, full.BytesReceived = 250, 3, 70, 10, 61, 6
	full.Timeouts, full.Probes = 2, 1
	full.Shutdown, full.Cgroup, full.Opened = 1, 1234567890123, true
	full.LastReceived, full.LastSent, full.LastSegment = 99e9-2e9-tick, 99e9-3e9-tick, 100e9-1e9+tick
	orphan := sighting(event.StateLastAck, event.FlagDone|event.FlagDead|event.FlagNoSocket, 0)
	orphan.Opened = true
	subflow := sighting(event.StateFinWait2, event.FlagMPTCP|event.FlagNoSocket, 0)
	subflow.Opened = true
	ofRoot := orphan
	ofRoot.UID = event.NoUID
	request := sighting(event.StateSynRecv, event.FlagMini|event.FlagNoSocket, 0)
	request.Retransmits = 2
	shut := sighting(event.StateEstablished, 0, 77)
	shut.Opened, shut.Shut, shut.Probes = true, true, 1
	open := sighting(event.StateEstablished, 0, 77)
	open.Opened = true
	ulp := attr(attrULP|unix.NLA_F_NESTED, attr(ulpName, []byte("mptcp\x00")))
	old := tcpInfo(unix.TCPInfo{})[:104] // as of 3.2: no counters of bytes
	native.PutUint16(old, 104)
	for _, tt := range []struct {
		name string
		body []byte
		want event.Sighting
	}{
		{"close wait", message(event.StateCloseWait, 0, 77, tcpInfo(info), attr(attrShutdown, []byte{1}),
			attr(attrCgroup, native.AppendUint64(nil, 1234567890123))), full},
		{"orphan", message(event.StateLastAck, 1, 0, tcpInfo(unix.TCPInfo{})), orphan},
		{"orphan, perhaps of root", setUID(message(event.StateLastAck, 1, 0, tcpInfo(unix.TCPInfo{})), 0), ofRoot},
		{"subflow", message(event.StateFinWait2, 0, 0, ulp, tcpInfo(unix.TCPInfo{Last_ack_recv: 1e6})), subflow},
		{"window closed", message(event.StateEstablished, timerProbe, 77, tcpInfo(unix.TCPInfo{Last_ack_recv: 1e6, Probes: 1, Backoff: 1})), shut},
		{"segment sent again", message(event.StateEstablished, timerRetransmit, 77, tcpInfo(unix.TCPInfo{Last_ack_recv: 1e6, Ca_state: stateLoss, Snd_wnd: 9})), open},
		{"corked", message(event.StateEstablished, timerProbe, 77, tcpInfo(unix.TCPInfo{Last_ack_recv: 1e6})), open},
		{"listener", message(event.StateListen, 0, 77, tcpInfo(info)), sighting(event.StateListen, 0, 77)},
		{"request", message(event.StateSynRecv, 1, 0), request},
		{"time wait", message(event.StateTimeWait, timerTimeWait, 0), sighting(event.StateTimeWait, event.FlagMini|event.FlagNoSocket, 0)},
		{"its first part", message(event.StateFinWait2, timerTimeWait, 0), sighting(event.StateFinWait2, event.FlagMini|event.FlagNoSocket, 0)},
		{"old kernel", message(event.StateListen, 0, 77, old), sighting(event.StateListen, 0, 77)},
	} {
		if tt.name == "time wait" {
			tt.want.Began = 100e9 - (60e9 - 41e9 - tick)
		}
		d := decoder{netns: 5, states: event.AllStates, begun: 99e9, got: 100e9}
		done, err := d.datagram(netlink(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_MULTI, tt.body))
		if err != nil || done || len(d.sockets) != 1 {
			t.Errorf("%s: %v, %v, %d sockets", tt.name, done, err, len(d.sockets))
		} else if !reflect.DeepEqual(d.sockets[0], tt.want) {
			t.Errorf("%s:\n  got  %+v\n  want %+v", tt.name, d.sockets[0], tt.want)
		}
	}
}

// TestWanted: a mini socket is TIME_WAIT, whatever its substate.
func TestWanted(t *testing.T) {
	datagram := netlink(unix.SOCK_DIAG_BY_FAMILY, 0, message(event.StateFinWait2, timerTimeWait, 0))
	datagram = append(datagram, netlink(unix.SOCK_DIAG_BY_FAMILY, 0, message(event.StateFinWait2, 0, 7, tcpInfo(unix.TCPInfo{})))...)
	for _, tt := range []struct {
		states event.StateSet
		minis  []bool
	}{
		{event.SetOf(event.StateTimeWait), []bool{true}},
		{event.SetOf(event.StateFinWait2), []bool{false}},
		{event.SetOf(event.StateListen), nil},
	} {
		d := decoder{states: tt.states}
		if _, err := d.datagram(datagram); err != nil {
			t.Fatal(err)
		}
		var minis []bool
		for _, s := range d.sockets {
			minis = append(minis, s.Flags.Has(event.FlagMini))
		}
		if !reflect.DeepEqual(minis, tt.minis) {
			t.Errorf("%s: %v, want %v", tt.states, minis, tt.minis)
		}
	}
}

func TestDatagram(t *testing.T) {
	done := netlink(unix.NLMSG_DONE, unix.NLM_F_MULTI, native.AppendUint32(nil, 0))
	failed := netlink(unix.NLMSG_DONE, flagInterrupted, failure(unix.EBUSY))
	refused := netlink(unix.NLMSG_ERROR, 0, failure(unix.ENOENT))
	foreign := slices.Clone(failed)
	native.PutUint32(foreign[8:], sequence+1)
	short := netlink(unix.SOCK_DIAG_BY_FAMILY, 0, message(event.StateListen, 0, 7)[:messageLen-1])
	for _, tt := range []struct {
		name    string
		b       []byte
		done    bool
		partial bool
		err     string
	}{
		{"done", done, true, false, ""},
		{"interrupted", netlink(unix.NLMSG_DONE, flagInterrupted, native.AppendUint32(nil, 0)), true, true, ""},
		{"refused", refused, false, false, "no such file"},
		{"failed at the end", netlink(unix.NLMSG_DONE, 0, failure(unix.EBUSY)), false, false, "busy"},
		{"of another request", foreign, false, false, ""},
		{"ended while it was looked at", netlink(unix.SOCK_DIAG_BY_FAMILY, 0, message(event.StateClose, 0, 7, tcpInfo(unix.TCPInfo{}))), false, false, ""},
		{"short", short, false, false, "71 bytes"},
		{"longer than it is", native.AppendUint32(nil, 1<<20), false, false, ""},
		{"state", netlink(unix.SOCK_DIAG_BY_FAMILY, 0, message(99, 0, 7)), false, false, "state 99"},
		{"size", append(native.AppendUint32(nil, 1<<20), make([]byte, 60)...), false, false, "1048576 bytes"},
	} {
		d := decoder{states: event.AllStates}
		got, err := d.datagram(tt.b)
		if len(d.sockets) != 0 {
			t.Errorf("%s: %+v", tt.name, d.sockets)
		}
		if got != tt.done || d.partial != tt.partial || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, interrupted %v, %v", tt.name, got, d.partial, err)
		}
	}
	if err := unsupported(unix.ENOENT); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// FuzzDatagram: whatever comes, sockets are whole or there is an error.
func FuzzDatagram(f *testing.F) {
	f.Add(netlink(unix.SOCK_DIAG_BY_FAMILY, 0, message(event.StateCloseWait, 0, 77, tcpInfo(unix.TCPInfo{}), attr(attrShutdown, []byte{3}))))
	f.Add(netlink(unix.SOCK_DIAG_BY_FAMILY, 0, message(event.StateFinWait2, 0, 0, attr(attrULP, attr(ulpName, []byte("mptcp\x00"))))))
	f.Add(netlink(unix.NLMSG_DONE, 0, native.AppendUint32(nil, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{states: event.AllStates, begun: 99e9, got: 100e9}
		if _, err := d.datagram(b); err != nil {
			return
		}
		if len(d.sockets)*messageLen > len(b) {
			t.Errorf("%d sockets in %d bytes", len(d.sockets), len(b))
		}
		for i := range d.sockets {
			s := &d.sockets[i]
			if s.New == event.StateNone || s.New == event.StateClose || s.New >= event.NumStates || s.LastReceived > d.begun || s.LastSent > d.begun || s.LastSegment > d.got {
				t.Errorf("%+v", s)
			}
		}
	})
}
