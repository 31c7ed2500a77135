// SPDX-License-Identifier: Apache-2.0

package ecs

import "net/netip"

// Names returns the document's field of each of a record; "" where several are
// made of it.
func Names() map[string]string {
	names := make(map[string]string)
	for name, i := range byName {
		names[name] = rows[i].path
	}
	for _, name := range aside {
		names[name] = ""
	}
	return names
}

// Paths returns all fields of a document, in order.
func Paths() (paths []string) {
	for _, r := range rows {
		paths = append(paths, r.path)
	}
	return paths
}

func CommunityID(a, b netip.AddrPort) string { return string(appendCommunityID(nil, a, b)) }
