// SPDX-License-Identifier: Apache-2.0

package event

import "net/netip"

// Filter says which sockets are wanted. Conditions of different kinds must all
// hold, of the same kind any. The zero Filter wants all. The kernel side
// withholds what can never match; what it cannot tell it lets through, so who
// prints must ask package filter again.
type Filter struct {
	Family int            `json:"family,omitempty"` // 4 or 6: of the addresses, so ::ffff:192.0.2.1 is 4
	Netns  uint32         `json:"netns,omitempty"`
	Cgroup uint64         `json:"cgroup,omitempty"`       // this cgroup v2, or one below it
	Ports  []uint16       `json:"ports,omitempty"`        // either end
	Local  []uint16       `json:"local_ports,omitempty"`  // our end
	Remote []uint16       `json:"remote_ports,omitempty"` // the other end
	Addrs  []netip.Prefix `json:"addresses,omitempty"`    // either end
	PIDs   []uint32       `json:"pids,omitempty"`         // owners
	Tree   bool           `json:"children,omitempty"`     // and the children that PIDs make from now on
	Comms  []string       `json:"processes,omitempty"`    // names of owners, as the kernel cuts them
}

// Empty reports whether everything is wanted.
func (f *Filter) Empty() bool {
	return f.Family == 0 && f.Netns == 0 && f.Cgroup == 0 && len(f.Ports) == 0 && len(f.Local) == 0 &&
		len(f.Remote) == 0 && len(f.Addrs) == 0 && len(f.PIDs) == 0 && len(f.Comms) == 0
}
