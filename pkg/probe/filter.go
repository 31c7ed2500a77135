// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/stated-tcp/stated/pkg/event"
)

// Sides of a port: enum port_side in bpf/maps.h.
const (
	portLocal = 1 << iota
	portPeer
	portAny
)

// setFilter sets the knobs; the maps are filled once they exist.
func setFilter(spec *ebpf.CollectionSpec, f *event.Filter) error {
	flag := func(b bool) uint32 {
		if b {
			return 1
		}
		return 0
	}
	var ports uint32
	if len(f.Local) > 0 {
		ports |= portLocal
	}
	if len(f.Remote) > 0 {
		ports |= portPeer
	}
	if len(f.Ports) > 0 {
		ports |= portAny
	}
	for name, value := range map[string]any{
		bpfVarCfgFilter: flag(!f.Empty()),
		bpfVarCfgFamily: uint32(f.Family),
		bpfVarCfgNetns:  f.Netns,
		bpfVarCfgCgroup: f.Cgroup,
		bpfVarCfgPorts:  ports,
		bpfVarCfgAddrs:  flag(len(f.Addrs) > 0),
		bpfVarCfgPids:   flag(len(f.PIDs) > 0),
		bpfVarCfgTree:   flag(f.Tree),
		bpfVarCfgComms:  flag(len(f.Comms) > 0),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

func (p *Probe) fillFilter() error {
	if p.partial {
		return nil // the classic program has no filter
	}
	f := &p.opts.Filter
	put := func(m string, key any) error {
		if err := p.maps[m].Put(key, uint8(1)); err != nil {
			return fmt.Errorf("put %v into the filter %s: %w", key, m, err)
		}
		return nil
	}
	for side, ports := range map[uint16][]uint16{portLocal: f.Local, portPeer: f.Remote, portAny: f.Ports} {
		for _, port := range ports {
			if err := put(bpfMapFilterPorts, bpfPortKey{Port: port, Side: side}); err != nil {
				return err
			}
		}
	}
	for _, prefix := range f.Addrs {
		if err := put(bpfMapFilterAddrs, addrKey(prefix)); err != nil {
			return err
		}
	}
	for _, pid := range f.PIDs {
		if err := put(bpfMapFilterPids, pid); err != nil {
			return err
		}
	}
	for _, comm := range f.Comms {
		if err := put(bpfMapFilterComms, [16]byte(event.MakeComm(comm))); err != nil {
			return err
		}
	}
	return nil
}

// addrKey maps IPv4 prefixes into ::ffff:0:0/96, as the kernel side does.
func addrKey(prefix netip.Prefix) bpfAddrKey {
	addr, bits := prefix.Masked().Addr(), prefix.Bits()
	if addr.Is4() {
		bits += 96
	}
	return bpfAddrKey{PrefixLen: uint32(bits), Addr: addr.As16()}
}
