// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"reflect"
	"testing"
)

func TestSegmentThereAndBack(t *testing.T) {
	for _, addrs := range [][2]string{{"192.0.2.1:80", "192.0.2.2:4000"}, {"[2001:db8::1]:80", "[2001:db8::2]:4000"}} {
		s := Segment{From: netip.MustParseAddrPort(addrs[0]), To: netip.MustParseAddrPort(addrs[1]), Seq: 1<<32 - 1, Ack: 7,
			Flags: PSH | ACK, Window: 500, Options: []byte{2, 4, 5, 0xb4}, Data: []byte("odd")}
		b := s.Marshal()
		got, err := Parse(b)
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("got %v, %v; want %v", got, err, s)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 4
			if got, err := Parse(bad); err == nil && reflect.DeepEqual(got, s) && i >= len(b)-len(s.Data) {
				t.Errorf("byte %d changed, and it was not seen", i)
			}
		}
		for n := range b {
			Parse(b[:n]) // must not panic
		}
	}
}

// TestChecksum: the example of RFC 1071 section 3, whose sum is ddf2.
func TestChecksum(t *testing.T) {
	b, _ := hex.DecodeString("0001f203f4f5f6f7")
	if got := checksum(b, 0); got != ^uint16(0xddf2) {
		t.Errorf("%x", got)
	}
}
