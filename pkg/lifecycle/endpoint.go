// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "net/netip"

// Endpoint is a netip.AddrPort without a zone in 20 bytes. The zero Endpoint is
// not known, which is not the same as [::]:0.
type Endpoint struct {
	addr  [16]byte // IPv4 mapped
	port  uint16
	known bool
}

// EndpointOf takes over an address that is valid; of any other it makes the zero
// Endpoint. An IPv4-mapped address becomes IPv4.
func EndpointOf(a netip.AddrPort) Endpoint {
	if !a.IsValid() {
		return Endpoint{}
	}
	return Endpoint{a.Addr().As16(), a.Port(), true}
}

// IsValid reports whether the address is known. The port may be 0 still.
func (p Endpoint) IsValid() bool { return p.known }

// Addr returns the address, the zero Addr where it is not known.
func (p Endpoint) Addr() netip.Addr {
	if !p.known {
		return netip.Addr{}
	}
	return netip.AddrFrom16(p.addr).Unmap()
}

// Is6 reports whether the address is known, and not IPv4.
func (p Endpoint) Is6() bool { return p.known && [12]byte(p.addr[:12]) != mapped }

// mapped is how an IPv4 address begins in 16 bytes (RFC 4291, 2.5.5.2).
var mapped = [12]byte{10: 0xff, 11: 0xff}

// Port returns the port, 0 where it is not known.
func (p Endpoint) Port() uint16 { return p.port }

// AddrPort returns both.
func (p Endpoint) AddrPort() netip.AddrPort { return netip.AddrPortFrom(p.Addr(), p.port) }

func (p Endpoint) String() string { return p.AddrPort().String() }
