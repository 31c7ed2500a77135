// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNetns looks at this process's own namespace, and compares with what the
// kernel answers otherwise.
func TestNetns(t *testing.T) {
	r := New(Options{})
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Skip(err)
	}
	pid := uint32(os.Getpid())
	if inode, err := r.Netns(pid); err != nil || inode != uint32(st.Ino) {
		t.Errorf("%d, %v, want %d", inode, err, st.Ino)
	}
	got, err := r.Addrs(pid)
	if err != nil {
		t.Fatal(err)
	}
	want, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range want {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(got, prefix.Addr()) {
			t.Errorf("no %v in %v", prefix.Addr(), got)
		}
	}
	if _, err := r.Netns(1 << 22); err == nil {
		t.Error("of no process")
	}
}

// TestParseAddrs: networks and broadcast addresses are nobody's.
func TestParseAddrs(t *testing.T) {
	const trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.0.2.0\n        /24 link UNICAST\n     |-- 192.0.2.2\n        /32 host LOCAL\n" +
		"     |-- 192.0.2.255\n        /32 link BROADCAST\nLocal:\n     |-- 192.0.2.2\n        /32 host LOCAL\n     |-- junk\n        /32 host LOCAL\n"
	if got := parseTrie(trie); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("192.0.2.2")}) {
		t.Error(got)
	}
	const six = "00000000000000000000000000000001 01 80 10 80       lo\n20010db8000000000000000000000005 02 40 00 80     eth0\njunk\n"
	if got := parseInet6(six); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("::1"), netip.MustParseAddr("2001:db8::5")}) {
		t.Error(got)
	}
}
