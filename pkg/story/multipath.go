// SPDX-License-Identifier: Apache-2.0

package story

import "github.com/stated-tcp/stated/pkg/census"

// multipath says what a socket is of MPTCP (RFC 8684), and what that means for it.
func multipath(s *census.Socket) []byte {
	switch {
	case s.Multipath():
		return []byte("It is an MPTCP connection: what it has to send and to receive goes over its subflows, TCP connections without a descriptor of their own, each in a state of its own.")
	case !s.Subflow():
		return nil
	case s.Whole != nil:
		b := append([]byte("It is a subflow of an MPTCP connection, which is in "), s.Whole.New.String()...)
		return append(b, ". That is the state that its process sees, and that can be stuck; a subflow is not closed by itself."...)
	case len(s.Holders) > 0:
		return []byte("It is a subflow of an MPTCP connection. The state of that is the one that its process sees, and it is not known: ss -M shows it.")
	case s.Orphan():
		return []byte("It is a subflow of an MPTCP connection that its process has closed, and that the peer has not, or not yet: ss -M shows its state.")
	}
	b := []byte("It is a subflow of an MPTCP connection whose descriptor was not found: nobody has accepted it yet, or its descriptor is in flight on a unix socket, or in an io_uring")
	if s.Limited {
		b = append(b, ", or was closed"...)
	}
	return append(b, ". ss -M shows its state."...)
}
