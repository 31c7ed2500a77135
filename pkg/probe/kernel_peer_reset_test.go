// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/kerneltest/peer"
)

// closing closes the kernel's side and answers its FIN with one that does not
// acknowledge it: both closed at once.
func closing(c *peer.Conn, closeFD func()) {
	closeFD()
	c.Expect(peer.FIN | peer.ACK)
	c.SendSegment(peer.Segment{Seq: c.Seq, Ack: c.Ack - 1, Flags: peer.FIN | peer.ACK})
	c.Seq++
	c.ExpectAck()
}

func shut(fd int) { check(unix.Shutdown(fd, unix.SHUT_WR)) }

// retries sets how soon the kernel gives up.
func (s *script) retries() {
	s.sysctl("tcp_retries2", 1)
	s.sysctl("tcp_orphan_retries", 1)
}

// scriptedResets: connections that end by a RST, or because nobody answers.
var scriptedResets = []scripted{
	{
		name: "RST in ESTABLISHED",
		run: func(s *script) {
			fd, c := s.accepted()
			reset(fd, c)
		},
		want: []string{listener, server + toClose},
		ends: []string{listenerEnd, "server reset_by_peer peer by accept"},
	},
	{
		name: "RST in CLOSE_WAIT",
		run: func(s *script) {
			fd, c := s.accepted()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			reset(fd, c)
		},
		want: []string{listener, server + "ESTABLISHED>CLOSE_WAIT CLOSE_WAIT>CLOSE"},
		ends: []string{listenerEnd, "server reset_by_peer peer by accept"},
	},
	{
		name: "RST in FIN_WAIT1",
		run: func(s *script) {
			fd, c := s.connected()
			shut(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Ack-- // as if the FIN were lost
			reset(fd, c)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSE"},
		ends: []string{"client reset_by_peer local by connect"},
	},
	{
		name: "RST in FIN_WAIT1 of nobody",
		run: func(s *script) {
			fd, c := s.connected()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Ack--
			c.Send(peer.RST | peer.ACK)
			s.none(event.StateFinWait1)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSE"},
		ends: []string{"client reset_by_peer local by connect"},
	},
	{
		name: "RST in FIN_WAIT2",
		run: func(s *script) {
			fd, c := s.connected()
			shut(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.ACK)
			wait(fd, event.StateFinWait2)
			reset(fd, c)
		},
		want: []string{client + active},
		ends: []string{"client reset_by_peer local by connect"},
	},
	{
		name: "RST in FIN_WAIT2 of nobody with a long time",
		run: func(s *script) {
			s.sysctl("tcp_fin_timeout", 120)
			fd, c := s.connected()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.ACK)
			c.Send(peer.RST | peer.ACK)
			s.none(event.StateFinWait2)
		},
		want: []string{client + active},
		ends: []string{"client reset_by_peer local by connect"},
	},
	{
		name: "RST in LAST_ACK",
		run: func(s *script) {
			fd, c := s.accepted()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Ack--
			c.Send(peer.RST | peer.ACK)
			s.none(event.StateLastAck)
		},
		want: []string{listener, server + passive},
		ends: []string{listenerEnd, "server reset_by_peer peer by accept"},
	},
	{
		name: "RST in CLOSING",
		run: func(s *script) {
			fd, c := s.connected()
			closing(c, func() { s.close(fd) })
			c.SendSegment(peer.Segment{Seq: c.Seq, Ack: c.Ack - 1, Flags: peer.RST | peer.ACK})
			s.none(event.StateClosing)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSING CLOSING>CLOSE"},
		ends: []string{"client reset_by_peer simultaneous by connect"},
	},
	{
		name: "RST in TIME_WAIT",
		run: func(s *script) {
			fd, c := s.connected()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			c.Send(peer.RST | peer.ACK)
			s.none(event.StateTimeWait) // tcp_rfc1337 is 0
		},
		want: []string{client + active},
		ends: []string{"client closed local TIME_WAIT by connect"},
	},
	{
		name: "RST that is not the next in order changes nothing",
		run: func(s *script) {
			s.sysctl("tcp_invalid_ratelimit", 0)
			fd, c := s.connected()
			c.SendSegment(peer.Segment{Seq: c.Seq + 100, Ack: c.Ack, Flags: peer.RST | peer.ACK})
			c.ExpectAck() // a challenge, RFC 5961 3.2
			c.SendSegment(peer.Segment{Seq: c.Seq - 100000, Ack: c.Ack, Flags: peer.RST | peer.ACK})
			c.SendSegment(peer.Segment{Seq: c.Seq, Ack: c.Ack, Flags: peer.SYN})
			c.ExpectAck() // RFC 5961 4.2
			wait(fd, event.StateEstablished)
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Send(peer.ACK)
		},
		want: []string{client + passive},
		ends: []string{"client closed peer by connect"},
	},
	{
		name: "retransmissions run out in ESTABLISHED",
		run: func(s *script) {
			s.retries()
			fd, c := s.connected()
			must(unix.Write(fd, []byte("data")))
			c.Expect(peer.PSH | peer.ACK)
			c.ExpectRepeat()
			wait(fd, event.StateClose)
		},
		want: []string{client + toClose},
		ends: []string{"client timed_out unknown by connect"},
	},
	{
		name: "retransmissions run out after ICMP",
		run: func(s *script) {
			s.retries()
			fd, c := s.connected()
			must(unix.Write(fd, []byte("data")))
			c.Expect(peer.PSH | peer.ACK)
			c.Unreachable(1)
			wait(fd, event.StateClose)
		},
		want: []string{client + toClose},
		ends: []string{"client timed_out unknown by connect"},
	},
	{
		name: "TCP_USER_TIMEOUT in ESTABLISHED",
		run: func(s *script) {
			fd, c := s.connected()
			option(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 300)(fd)
			must(unix.Write(fd, []byte("data")))
			c.Expect(peer.PSH | peer.ACK)
			wait(fd, event.StateClose)
		},
		want: []string{client + toClose},
		ends: []string{"client timed_out unknown by connect"},
	},
	{
		name: "retransmissions run out in CLOSE_WAIT",
		run: func(s *script) {
			s.retries()
			fd, c := s.connected()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			must(unix.Write(fd, []byte("data")))
			wait(fd, event.StateClose)
		},
		want: []string{client + "ESTABLISHED>CLOSE_WAIT CLOSE_WAIT>CLOSE"},
		ends: []string{"client timed_out peer by connect"},
	},
	{
		name: "window never opened",
		run: func(s *script) {
			fd, c := s.connected()
			must(unix.Write(fd, []byte("data")))
			c.Expect(peer.PSH | peer.ACK)
			c.Window = 0
			c.Send(peer.ACK)
			must(unix.Write(fd, []byte("more")))
			s.retries() // not before: the ACK of this script may come late
			wait(fd, event.StateClose)
		},
		want: []string{client + toClose},
		ends: []string{"client timed_out unknown by connect"},
	},
	{
		name: "retransmissions run out in FIN_WAIT1",
		run: func(s *script) {
			s.retries()
			fd, c := s.connected()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.ExpectRepeat()
			s.none(event.StateFinWait1)
		},
		want: []string{client + "ESTABLISHED>FIN_WAIT1 FIN_WAIT1>CLOSE"},
		ends: []string{"client timed_out local by connect"},
	},
	{
		name: "retransmissions run out in LAST_ACK",
		run: func(s *script) {
			s.retries()
			fd, c := s.connected()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.ExpectRepeat()
			s.none(event.StateLastAck)
		},
		want: []string{client + passive},
		ends: []string{"client timed_out peer by connect"},
	},
	{
		name: "retransmissions run out in LAST_ACK after ICMP",
		run: func(s *script) {
			s.retries()
			fd, c := s.connected()
			c.Send(peer.FIN | peer.ACK)
			c.ExpectAck()
			s.close(fd)
			c.Expect(peer.FIN | peer.ACK)
			c.Unreachable(1)
			s.none(event.StateLastAck)
		},
		want: []string{client + passive},
		ends: []string{"client timed_out peer by connect"},
	},
	{
		name: "keep-alive not answered",
		run: func(s *script) {
			fd, c := s.connected(option(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1), option(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1),
				option(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1), option(unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 1))
			c.ExpectRepeat() // the probe
			c.Expect(peer.RST | peer.ACK)
			wait(fd, event.StateClose)
		},
		want: []string{client + toClose},
		ends: []string{"client reset_keepalive local by connect"},
	},
}
