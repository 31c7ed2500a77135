// SPDX-License-Identifier: Apache-2.0

package census

import (
	"net/netip"

	"github.com/stated-tcp/stated/pkg/event"
)

// Answering returns the listeners on any address that would answer a call to this
// one: in each namespace where it is local, unless another listens on just it.
// local says where it is; it is asked of one listener of a namespace.
func (c *Census) Answering(addr netip.AddrPort, local func(*Socket) bool) (list []*Socket) {
	spaces := make(map[uint32][]*Socket)
	var order []uint32
	for _, s := range c.Sockets {
		if s.New != event.StateListen || s.Local.Port() != addr.Port() {
			continue
		}
		if spaces[s.Netns] == nil {
			order = append(order, s.Netns)
		}
		spaces[s.Netns] = append(spaces[s.Netns], s)
	}
	for _, netns := range order {
		found := match(nil, addr.Addr(), spaces[netns])
		if len(found) > 0 && found[0].Local.Addr() != addr.Addr() && local(found[0]) {
			list = append(list, found...)
		}
	}
	return list
}
