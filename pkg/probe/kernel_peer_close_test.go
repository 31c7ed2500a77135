// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/kerneltest/peer"
)

// closed closes the descriptor and acknowledges the FIN.
func (s *script) closed(fd int, c *peer.Conn) {
	s.close(fd)
	c.Expect(peer.FIN | peer.ACK)
	c.Send(peer.ACK)
}

// unreachable is a client with the error of an ICMP message on its socket, which
// ended nothing: the data arrived after all.
func (s *script) unreachable() (int, *peer.Conn) {
	fd, c := s.connected(option(unix.IPPROTO_IP, unix.IP_RECVERR, 1))
	must(unix.Write(fd, []byte("data")))
	c.Expect(peer.PSH | peer.ACK)
	c.Unreachable(1)
	if must(unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 20_000)) != 1 {
		panic("no error on the socket")
	}
	c.Send(peer.ACK)
	return fd, c
}

// scriptedCloses: what happens once somebody has closed.
var scriptedCloses = []scripted{
	{
		name: "FIN acknowledged, FIN later",
		run: func(s *script) {
			fd, c := s.connected()
			s.closed(fd, c)
			if s.sockets(event.StateFinWait2) != 1 {
				panic("no mini socket in FIN_WAIT2")
			}
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			if s.sockets(event.StateTimeWait) != 1 {
				panic("no TIME_WAIT")
			}
		},
		want:  []string{client + active},
		ends:  []string{"client closed local FIN_WAIT2 by connect"},
		grows: true,
	},
	{
		name: "FIN and ACK together",
		run: func(s *script) {
			fd, c := s.connected()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
		},
		want: []string{client + active},
		ends: []string{"client closed local TIME_WAIT by connect"},
	},
	{
		name: "FIN with data",
		run: func(s *script) {
			fd, c := s.accepted()
			c.Send(peer.FIN|peer.PSH|peer.ACK, "last words")
			c.ExpectAck()
			readEOF(fd)
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.ACK)
		},
		want: []string{listener, server + passive},
		ends: []string{listenerEnd, "server closed peer by accept"},
	},
	{
		name: "FIN with data never read",
		run: func(s *script) {
			fd, c := s.accepted()
			c.Send(peer.FIN|peer.PSH|peer.ACK, "last words")
			c.ExpectAck()
			s.close(fd)
			c.Expect(peer.RST | peer.ACK)
		},
		want: []string{listener, server + "ESTABLISHED>CLOSE_WAIT CLOSE_WAIT>CLOSE"},
		ends: []string{listenerEnd, "server reset_unread_data peer by accept"},
	},
	{
		name: "close in LAST_ACK with data never read",
		run: func(s *script) {
			fd, c := s.connected()
			c.Send(peer.FIN|peer.PSH|peer.ACK, "last words")
			c.ExpectAck()
			shut(fd)
			c.Expect(peer.FIN | peer.ACK)
			s.close(fd)
			c.Expect(peer.RST | peer.ACK)
		},
		want: []string{client + passive},
		ends: []string{"client reset_unread_data peer by connect"},
	},
	{
		name: "SO_LINGER 0 in LAST_ACK with data not sent",
		run: func(s *script) {
			fd, c := s.connected()
			c.Window = 0
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			must(unix.Write(fd, []byte("data")))
			shut(fd)
			linger0(fd)
			s.close(fd)
			c.Expect(peer.RST | peer.ACK)
		},
		want: []string{client + passive},
		ends: []string{"client reset_linger peer by connect"},
	},
	{
		name: "SO_LINGER 0 in LAST_ACK with the FIN on its way",
		run: func(s *script) {
			fd, c := s.connected()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			shut(fd)
			c.Expect(peer.FIN | peer.ACK)
			linger0(fd)
			s.close(fd)
			s.none(event.StateLastAck)
		},
		want: []string{client + passive},
		ends: []string{"client unknown peer by connect"}, // dropped without a word: the peer may still wait
	},
	{
		name: "close in CLOSING with data never read",
		run: func(s *script) {
			fd, c := s.connected()
			c.Send(peer.PSH|peer.ACK, "last words")
			c.ExpectAck()
			closing(c, func() { shut(fd) })
			wait(fd, event.StateClosing)
			s.close(fd)
			c.Expect(peer.RST | peer.ACK)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSING CLOSING>CLOSE"},
		ends: []string{"client reset_unread_data simultaneous by connect"},
	},
	{
		name: "closed well after an ICMP error",
		run: func(s *script) {
			fd, c := s.unreachable()
			s.closed(fd, c)
		},
		want: []string{client + active},
		ends: []string{"client closed local FIN_WAIT2 by connect"},
	},
	{
		name: "closed by the peer after an ICMP error",
		run: func(s *script) {
			fd, c := s.unreachable()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			s.closed(fd, c)
		},
		want: []string{client + passive},
		ends: []string{"client closed peer by connect"},
	},
	{
		name: "simultaneous close after an ICMP error",
		run: func(s *script) {
			fd, c := s.unreachable()
			closing(c, func() { s.close(fd) })
			c.Send(peer.ACK)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSING CLOSING>CLOSE"},
		ends: []string{"client closed simultaneous TIME_WAIT by connect"},
	},
	{
		name: "reset by SO_LINGER 0 after an ICMP error",
		run: func(s *script) {
			fd, c := s.unreachable()
			linger0(fd)
			s.close(fd)
			c.Expect(peer.RST | peer.ACK)
		},
		want: []string{client + toClose},
		ends: []string{"client reset_linger local by connect"},
	},
	{
		name: "simultaneous close with the descriptor open",
		run: func(s *script) {
			fd, c := s.connected()
			closing(c, func() { shut(fd) })
			wait(fd, event.StateClosing)
			c.Send(peer.ACK)
			wait(fd, event.StateClose)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSING CLOSING>CLOSE"},
		ends: []string{"client closed simultaneous TIME_WAIT by connect"},
	},
	{
		name: "close after shutdown tells the state again",
		run: func(s *script) {
			fd, c := s.connected()
			shut(fd)
			c.Expect(peer.FIN | peer.ACK)
			s.close(fd)
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>FIN_WAIT1 FIN_WAIT1>FIN_WAIT2 FIN_WAIT2>CLOSE"},
		ends: []string{"client closed local TIME_WAIT by connect"},
	},
	{
		name: "close in LAST_ACK and CLOSING tells the state again",
		run: func(s *script) {
			fd, c := s.connected()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			shut(fd)
			c.Expect(peer.FIN | peer.ACK)
			s.close(fd)
			c.Send(peer.ACK)

			fd, c = s.connected()
			closing(c, func() { shut(fd) })
			s.close(fd)
			c.Send(peer.ACK)
		},
		want: []string{client + "ESTABLISHED>CLOSE_WAIT CLOSE_WAIT>LAST_ACK LAST_ACK>LAST_ACK LAST_ACK>CLOSE",
			client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSING CLOSING>CLOSING CLOSING>CLOSE"},
		ends: []string{"client closed peer by connect", "client closed simultaneous TIME_WAIT by connect"},
	},
	{
		name: "data to FIN_WAIT1 of nobody",
		run: func(s *script) {
			fd, c := s.connected()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Ack-- // the FIN has not come yet
			c.Send(peer.PSH|peer.ACK, "data")
			c.Expect(peer.RST)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSE"},
		ends: []string{"client reset_data_after_close local by connect"},
	},
	{
		// tcp_rcv_state_process does not call tcp_reset here
		name: "data with the ACK of our FIN",
		run: func(s *script) {
			fd, c := s.connected()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.PSH|peer.ACK, "data")
			c.Expect(peer.RST)
		},
		want: []string{client + active},
		ends: []string{"client reset_data_after_close local by connect"},
	},
	{
		name: "data to FIN_WAIT2 of nobody with a long time",
		run: func(s *script) {
			s.sysctl("tcp_fin_timeout", 120)
			fd, c := s.connected()
			s.closed(fd, c)
			c.Send(peer.PSH|peer.ACK, "data")
			c.Expect(peer.RST)
		},
		want: []string{client + active},
		ends: []string{"client reset_data_after_close local by connect"},
	},
	{
		// the connection is over for its socket: what the mini socket answers is not its end
		name: "data to a mini socket in FIN_WAIT2",
		run: func(s *script) {
			fd, c := s.connected()
			s.closed(fd, c)
			c.Send(peer.PSH|peer.ACK, "data")
			c.Expect(peer.RST)
			s.none(event.StateFinWait2)
		},
		want: []string{client + active},
		ends: []string{"client closed local FIN_WAIT2 by connect"},
	},
	{
		name: "mini socket in FIN_WAIT2 times out",
		run: func(s *script) {
			s.sysctl("tcp_fin_timeout", 1)
			fd, c := s.connected()
			s.closed(fd, c)
			s.none(event.StateFinWait2)
			c.Send(peer.FIN | peer.ACK)
			c.Expect(peer.RST)
		},
		want: []string{client + active},
		ends: []string{"client closed local FIN_WAIT2 by connect"},
	},
	{
		// what is above 60 s is spent as a socket, and once more as a mini socket
		name: "long FIN_WAIT2 handed over by its timer",
		run: func(s *script) {
			s.sysctl("tcp_fin_timeout", 63)
			fd, c := s.connected()
			s.closed(fd, c)
			s.handedOver()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
		},
		want:  []string{client + active},
		ends:  []string{"client closed local FIN_WAIT2 by connect"},
		grows: true,
	},
	{
		name: "long FIN_WAIT2 ended by FIN",
		run: func(s *script) {
			s.sysctl("tcp_fin_timeout", 120)
			fd, c := s.connected()
			s.closed(fd, c)
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
		},
		want: []string{client + active},
		ends: []string{"client closed local TIME_WAIT by connect"},
	},
	{
		name: "long FIN_WAIT2 of nobody, and its time is cut short",
		run: func(s *script) {
			s.sysctl("tcp_fin_timeout", 62)
			fd, c := s.connected()
			s.closed(fd, c)
			s.sysctl("tcp_fin_timeout", 30)
			c.Expect(peer.RST | peer.ACK)
		},
		want: []string{client + active},
		ends: []string{"client reset_protocol local by connect"},
	},
	{
		name: "TCP_LINGER2 below zero in FIN_WAIT2",
		run: func(s *script) {
			fd, c := s.connected(option(unix.IPPROTO_TCP, unix.TCP_LINGER2, -1))
			shut(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.ACK)
			wait(fd, event.StateFinWait2)
			s.close(fd)
			c.Expect(peer.RST | peer.ACK)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>FIN_WAIT2 FIN_WAIT2>FIN_WAIT2 FIN_WAIT2>CLOSE"},
		ends: []string{"client reset_linger local by connect"},
	},
	{
		name: "TCP_REPAIR closes without a word",
		run: func(s *script) {
			fd, _ := s.connected()
			check(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1))
			s.close(fd)
		},
		want: []string{client + toClose},
		ends: []string{"client unknown unknown by connect"},
	},
	{
		name: "TIME_WAIT reopened by a SYN",
		run: func(s *script) {
			l := s.serve(8)
			c := s.client()
			shake(c)
			fd := s.accept(l)
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			again := s.dev.Conn(c.Local, c.Kernel)
			again.Seq = c.Seq + 100000
			shake(again)
			fd = s.accept(l)
			s.close(l)
			reset(fd, again)
		},
		want: []string{listener, server + active, server + toClose},
		ends: []string{listenerEnd, "server closed local TIME_WAIT by accept", "server reset_by_peer peer by accept"},
	},
}
