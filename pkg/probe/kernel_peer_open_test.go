// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/kerneltest/peer"
)

const (
	failed       = "CLOSE>SYN_SENT SYN_SENT>CLOSE"
	simultaneous = "CLOSE>SYN_SENT SYN_SENT>SYN_RECV "
	toClose      = "ESTABLISHED>CLOSE"
	listenerEnd  = "listener listen_ended local by listen"
)

// reset ends a connection from the script's side.
func reset(fd int, c *peer.Conn) {
	c.Send(peer.RST | peer.ACK)
	wait(fd, event.StateClose)
}

// scriptedOpens: how connections begin, or do not.
var scriptedOpens = []scripted{
	{
		name: "SYN answered by RST",
		run: func(s *script) {
			fd, c := s.connecting()
			reset(fd, c)
		},
		want: []string{failed},
		ends: []string{"client refused peer by connect"},
	},
	{
		name: "port unreachable",
		run: func(s *script) {
			fd, c := s.connecting()
			c.Unreachable(3) // ICMP_PORT_UNREACH: ECONNREFUSED, but no RST
			wait(fd, event.StateClose)
		},
		want: []string{failed},
		ends: []string{"client unreachable unknown by connect"},
	},
	{
		name: "host unreachable",
		run: func(s *script) {
			fd, c := s.connecting()
			c.Unreachable(1) // ICMP_HOST_UNREACH
			wait(fd, event.StateClose)
		},
		want: []string{failed},
		ends: []string{"client unreachable unknown by connect"},
	},
	{
		name: "IPv6 address unreachable",
		run: func(s *script) {
			fd, c := s.connectingTo(s.peer6, s.kernel6)
			c.Unreachable(3) // ICMPV6_ADDR_UNREACH
			wait(fd, event.StateClose)
		},
		want: []string{failed},
		ends: []string{"client unreachable unknown by connect"},
	},
	{
		name: "IPv6 refused",
		run: func(s *script) {
			fd, c := s.connectingTo(s.peer6, s.kernel6)
			reset(fd, c)
		},
		want: []string{failed},
		ends: []string{"client refused peer by connect"},
	},
	{
		name: "SYN never answered",
		run: func(s *script) {
			fd, c := s.connecting(option(unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1))
			c.ExpectRepeat()
			wait(fd, event.StateClose)
		},
		want: []string{failed},
		ends: []string{"client connect_timeout unknown by connect"},
	},
	{
		name: "no local route tells nothing",
		run: func(s *script) {
			fd := s.socket(unix.AF_INET, 0)
			to := &unix.SockaddrInet4{Addr: [4]byte{198, 51, 100, 1}, Port: 80}
			if err := unix.Connect(fd, to); err != unix.ENETUNREACH {
				panic(err)
			}
		},
	},
	{
		name: "simultaneous open and close",
		run: func(s *script) {
			fd, c := s.connecting()
			c.Send(peer.SYN)
			c.Expect(peer.SYN | peer.ACK)
			c.Send(peer.ACK)
			wait(fd, event.StateEstablished)
			closing(c, func() { s.close(fd) })
			c.Send(peer.ACK)
		},
		want: []string{simultaneous + "SYN_RECV>ESTABLISHED ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSING CLOSING>CLOSE"},
		ends: []string{"simultaneous closed simultaneous TIME_WAIT by connect"},
	},
	{
		name: "RST in SYN_RECV of a simultaneous open",
		run: func(s *script) {
			fd, c := s.connecting()
			c.Send(peer.SYN)
			c.Expect(peer.SYN | peer.ACK)
			reset(fd, c)
		},
		want: []string{simultaneous + "SYN_RECV>CLOSE"},
		ends: []string{"simultaneous reset_by_peer peer by connect"},
	},
	{
		// our RST in answer to a wrong acknowledgement ends nothing
		name: "RST sent in SYN_SENT, reset by the peer later",
		run: func(s *script) {
			fd, c := s.connecting()
			c.SendSegment(peer.Segment{Seq: c.Seq, Ack: c.Ack + 77, Flags: peer.SYN | peer.ACK})
			c.Expect(peer.RST)
			c.Send(peer.SYN | peer.ACK)
			c.Expect(peer.ACK)
			reset(fd, c)
		},
		want: []string{client + toClose},
		ends: []string{"client reset_by_peer peer by connect"},
	},
	{
		name: "RST to a half-open connection",
		run: func(s *script) {
			s.serve(8)
			c := s.client()
			c.Send(peer.SYN)
			c.Expect(peer.SYN | peer.ACK)
			c.Send(peer.RST)
			s.none(event.StateSynRecv)
		},
		want: []string{listener},
		ends: []string{listenerEnd},
		half: []string{"server handshake_reset peer"},
	},
	{
		name: "half-open connection that expires",
		run: func(s *script) {
			s.sysctl("tcp_synack_retries", 1)
			s.serve(8)
			c := s.client()
			c.Send(peer.SYN)
			c.Expect(peer.SYN | peer.ACK)
			c.ExpectRepeat()
			s.none(event.StateSynRecv)
			c.Send(peer.ACK) // now for nobody
			c.Expect(peer.RST)
		},
		want: []string{listener},
		ends: []string{listenerEnd},
		half: []string{"server handshake_expired unknown"},
	},
	{
		name: "third ACK carries FIN",
		run: func(s *script) {
			l := s.serve(8)
			c := s.client()
			c.Send(peer.SYN)
			c.Expect(peer.SYN | peer.ACK)
			c.Send(peer.FIN | peer.ACK)
			fd := s.accept(l)
			s.close(l)
			readEOF(fd)
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.ACK)
		},
		want: []string{listener, server + passive},
		ends: []string{listenerEnd, "server closed peer by accept"},
	},
	{
		name: "SYN cookie",
		run: func(s *script) {
			s.sysctl("tcp_syncookies", 2)
			l := s.serve(8)
			c := s.client()
			c.Send(peer.SYN)
			c.Expect(peer.SYN | peer.ACK)
			if s.sockets(event.StateSynRecv) != 0 {
				panic("a request in spite of cookies")
			}
			c.Send(peer.ACK)
			fd := s.accept(l)
			s.close(l)
			reset(fd, c)
		},
		want: []string{listener, server + toClose},
		ends: []string{listenerEnd, "server reset_by_peer peer by accept"},
	},
	{
		name: "TCP_DEFER_ACCEPT",
		run: func(s *script) {
			l := s.serve(8)
			check(unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30))
			c := s.client()
			shake(c)
			if s.sockets(event.StateSynRecv) != 1 {
				panic("no request although nothing was sent")
			}
			c.Send(peer.PSH|peer.ACK, "data")
			fd := s.accept(l)
			s.close(l)
			reset(fd, c)
		},
		want: []string{listener, server + toClose},
		ends: []string{listenerEnd, "server reset_by_peer peer by accept"},
	},
	{
		name:   "Fast Open accepted in SYN_RECV",
		unborn: true,
		run: func(s *script) {
			fd, c := fastOpen(s)
			c.Send(peer.ACK)
			wait(fd, event.StateEstablished)
			reset(fd, c)
		},
		want: []string{listener, server + toClose},
		ends: []string{listenerEnd, "server reset_by_peer peer by accept"},
	},
	{
		name:   "Fast Open closed in SYN_RECV",
		unborn: true,
		run: func(s *script) {
			fd, c := fastOpen(s)
			readN(fd, 4)
			s.close(fd)
			c.Send(peer.ACK)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
		},
		want: []string{listener, "LISTEN>SYN_RECV SYN_RECV>FIN_WAIT1 FIN_WAIT1>FIN_WAIT2 FIN_WAIT2>CLOSE"},
		ends: []string{listenerEnd, "server closed local TIME_WAIT by accept"},
	},
	{
		name: "RST to a child of Fast Open in the queue",
		run: func(s *script) {
			l, c := fastOpening(s)
			c.Send(peer.RST | peer.ACK)
			s.none(event.StateSynRecv)
			s.close(l)
		},
		want: []string{listener, halfOpen},
		ends: []string{listenerEnd, "server reset_by_peer peer"},
	},
	{
		name: "RST to a child in the queue",
		run: func(s *script) {
			l := s.serve(8)
			c := s.client()
			shake(c)
			c.Send(peer.RST | peer.ACK)
			s.none(event.StateEstablished)
			s.close(l)
		},
		want: []string{listener, server + toClose},
		ends: []string{listenerEnd, "server reset_by_peer peer by listener"},
	},
	{
		name: "child reset, then accepted",
		run: func(s *script) {
			l := s.serve(8)
			c := s.client()
			shake(c)
			c.Send(peer.RST | peer.ACK)
			s.none(event.StateEstablished)
			fd := s.accept(l) // what is accepted has ended
			s.close(l, fd)
		},
		want: []string{listener, server + toClose},
		ends: []string{"listener listen_ended local", "server reset_by_peer peer"},

		anyOwner: true, // accept() may come before the outcome is settled, or behind it
	},
	{
		name: "accept queue full at the third ACK",
		run: func(s *script) {
			l, last, queued := overflown(s)
			last.ExpectRepeat() // the request is still there
			s.close(l)
			for _, c := range queued {
				c.Expect(peer.RST | peer.ACK)
			}
			s.none(event.StateSynRecv) // its timer finds that there is no listener
		},
		want: []string{listener, server + toClose, server + toClose, server + toClose},
		ends: []string{listenerEnd, neverAccepted, neverAccepted, neverAccepted},
		half: []string{"server handshake_failed local"},
	},
	{
		name: "accept queue full, tcp_abort_on_overflow",
		run: func(s *script) {
			s.sysctl("tcp_abort_on_overflow", 1)
			l, last, queued := overflown(s)
			last.Expect(peer.RST)
			s.close(l)
			for _, c := range queued {
				c.Expect(peer.RST | peer.ACK)
			}
		},
		want: []string{listener, server + toClose, server + toClose, server + toClose},
		ends: []string{listenerEnd, neverAccepted, neverAccepted, neverAccepted},
		half: []string{"server handshake_overflow local"},
	},
}

const neverAccepted = "server reset_listener_closed local by listener"

// overflown is a listener whose queue holds three connections, one more than
// its limit, and one that has made the three steps, but for which there was no
// room. Two requests must be there at once, as a SYN would be dropped later.
func overflown(s *script) (l int, last *peer.Conn, queued []*peer.Conn) {
	l = s.serve(2)
	for range 4 {
		queued = append(queued, s.client())
	}
	shake(queued[0])
	shake(queued[1])
	for _, c := range queued[2:] {
		c.Send(peer.SYN)
		c.Expect(peer.SYN | peer.ACK)
	}
	queued[2].Send(peer.ACK)
	queued[3].Send(peer.ACK)
	return l, queued[3], queued[:3]
}

// fastOpening is a listener with a connection in its queue that is in SYN_RECV with
// data of the SYN, without a cookie (TFO_SERVER_COOKIE_NOT_REQD in include/net/tcp.h).
func fastOpening(s *script) (listening int, c *peer.Conn) {
	s.sysctl("tcp_fastopen", 0x202)
	l := s.serve(8)
	check(unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 8))
	c = s.client()
	c.Send(peer.SYN, "data")
	c.Expect(peer.SYN | peer.ACK)
	if c.Last.Ack != c.Seq {
		panic("the data of the SYN was not taken")
	}
	return l, c
}

// fastOpen is one that has been accepted.
func fastOpen(s *script) (int, *peer.Conn) {
	l, c := fastOpening(s)
	fd := s.accept(l)
	wait(fd, event.StateSynRecv)
	s.close(l)
	return fd, c
}

// readN reads what is known to be there.
func readN(fd, n int) {
	buf := make([]byte, n)
	for len(buf) > 0 {
		buf = buf[must(unix.Read(fd, buf)):]
	}
}
