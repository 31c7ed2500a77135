// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// maxAddrs is how much of a file with the addresses of a namespace is read.
const maxAddrs = 4 << 20

// Netns returns the inode of a process's network namespace, by which sockets name
// theirs. Of a process with threads in several it is the first thread's.
func (r *Resolver) Netns(pid uint32) (uint32, error) {
	d, err := r.procDir(pid)
	if err != nil {
		return 0, fmt.Errorf("look at the network namespace of process %d: %w", pid, err)
	}
	defer d.close()
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, "ns/net", &st, 0); err != nil {
		return 0, fmt.Errorf("look at the network namespace of process %d: %w", pid, procErr("ns/net", err))
	}
	return uint32(st.Ino), nil
}

// Addrs returns the addresses that are local in a process's network namespace.
func (r *Resolver) Addrs(pid uint32) ([]netip.Addr, error) {
	d, err := r.procDir(pid)
	if err != nil {
		return nil, fmt.Errorf("look at the addresses of process %d: %w", pid, err)
	}
	defer d.close()
	four, _, err := d.file("net/fib_trie", maxAddrs)
	six, _, err6 := d.file("net/if_inet6", maxAddrs) // none without IPv6
	if err != nil && err6 != nil {
		return nil, fmt.Errorf("look at the addresses of process %d: %w", pid, errors.Join(err, err6))
	}
	return append(parseTrie(string(four)), parseInet6(string(six))...), nil
}

// parseTrie reads "|-- 10.0.0.5" and below it "/32 host LOCAL", as
// fib_trie_seq_show in net/ipv4/fib_trie.c writes them, twice.
func parseTrie(text string) (addrs []netip.Addr) {
	var last netip.Addr
	seen := make(map[netip.Addr]bool)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "|--":
			last, _ = netip.ParseAddr(f[1])
		case len(f) >= 3 && f[0] == "/32" && f[2] == "LOCAL" && last.IsValid() && !seen[last]:
			seen[last] = true
			addrs = append(addrs, last)
		}
	}
	return addrs
}

// parseInet6 reads an address without colons at the beginning of each line
// (if6_seq_show in net/ipv6/addrconf.c).
func parseInet6(text string) (addrs []netip.Addr) {
	for line := range strings.Lines(text) {
		digits, _, _ := strings.Cut(line, " ")
		if b, err := hex.DecodeString(digits); err == nil && len(b) == 16 {
			addr, _ := netip.AddrFromSlice(b)
			addrs = append(addrs, addr)
		}
	}
	return addrs
}
