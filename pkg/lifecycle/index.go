// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"encoding/binary"
	"iter"
	"math/bits"

	"github.com/stated-tcp/stated/pkg/event"
)

// lingerKey names a mini socket as the kernel's hash table does.
type lingerKey struct {
	local, peer Endpoint
	netns       uint32
}

func keyOf(e *event.Event) lingerKey {
	return lingerKey{EndpointOf(e.Local), EndpointOf(e.Peer), e.Netns}
}

// index finds the lingers by their keys. A map of whole keys would be larger than
// what it finds, so this is one of hashes; whose hash another has is among the
// twins. It is asked for the addresses of each new connection, and of most servers
// nothing lingers, as their clients close first: ports, how many there are at each
// port of this host, answers that for less than a look into a map of many.
type index struct {
	hashes map[uint64]*linger
	twins  map[lingerKey]*linger
	ports  []uint32
}

func (x *index) get(k lingerKey) *linger {
	if x.ports == nil || x.ports[k.local.port] == 0 {
		return nil
	}
	if l := x.hashes[k.hash()]; l != nil && l.key() == k {
		return l
	}
	return x.twins[k]
}

// put adds l, whose key is not there.
func (x *index) put(l *linger) {
	if x.hashes == nil {
		x.hashes, x.twins, x.ports = make(map[uint64]*linger), make(map[lingerKey]*linger), make([]uint32, 1<<16)
	}
	k := l.key()
	x.ports[k.local.port]++
	if h := k.hash(); x.hashes[h] == nil {
		x.hashes[h] = l
		return
	}
	x.twins[k] = l
}

// delete takes out l, which is there.
func (x *index) delete(l *linger) {
	k := l.key()
	x.ports[k.local.port]--
	if h := k.hash(); x.hashes[h] == l {
		delete(x.hashes, h)
		return
	}
	delete(x.twins, k)
}

// all yields each linger, in no order.
func (x *index) all() iter.Seq[*linger] {
	return func(yield func(*linger) bool) {
		for _, l := range x.hashes {
			if !yield(l) {
				return
			}
		}
		for _, l := range x.twins {
			if !yield(l) {
				return
			}
		}
	}
}

// Odd numbers without a pattern (the golden ratio, pi).
const (
	saltA = 0x9e3779b97f4a7c15
	saltB = 0x243f6a8885a308d3
)

// hash folds the key by multiplication. Keys that have the same, by chance or
// because somebody chose them so, cost memory, no more.
func (k *lingerKey) hash() uint64 {
	h := uint64(k.local.port)<<48 | uint64(k.peer.port)<<32 | uint64(k.netns)
	for _, a := range [...]*[16]byte{&k.local.addr, &k.peer.addr} {
		h = fold(h, binary.LittleEndian.Uint64(a[:8]))
		h = fold(h, binary.LittleEndian.Uint64(a[8:]))
	}
	return h
}

func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a^saltA, b^saltB)
	return high ^ low
}
