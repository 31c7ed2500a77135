// SPDX-License-Identifier: Apache-2.0

package syslog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"

	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// datagrams sends one message per datagram (RFC 5426; unix_dgram).
type datagrams struct {
	dialer *transport.Dialer
	conn   net.Conn
}

func (d *datagrams) send(ctx context.Context, batch *messages) (unfit []int, err error) {
	for i := 0; i < batch.len(); i++ {
		err := d.write(ctx, batch.at(i))
		if errors.Is(err, syscall.EMSGSIZE) {
			unfit = append(unfit, i)
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return unfit, nil
}

// write tries a second time over a new socket: over UDP the error may be the
// ICMP answer to an earlier datagram, and a unix socket may have been made anew.
func (d *datagrams) write(ctx context.Context, b []byte) error {
	fresh := d.conn == nil
	for {
		if d.conn == nil {
			var err error
			if d.conn, err = d.dialer.Dial(ctx); err != nil {
				return err
			}
		}
		stop := transport.Guard(ctx, d.conn.SetWriteDeadline)
		_, err := d.conn.Write(b)
		stop()
		if err == nil || errors.Is(err, syscall.EMSGSIZE) {
			return err
		}
		d.close()
		if fresh || ctx.Err() != nil || d.dialer.Network == "udp" {
			return err
		}
		fresh = true
	}
}

func (d *datagrams) close() {
	if d.conn != nil {
		d.conn.Close()
		d.conn = nil
	}
}

// stream sends messages with octet counting over a connection. The collector
// sends nothing; a goroutine reads all the same, to notice its end.
type stream struct {
	dialer *transport.Dialer
	conn   net.Conn
	ended  chan struct{} // closed by the reader
	out    []byte
}

func (s *stream) send(ctx context.Context, batch *messages) ([]int, error) {
	s.out = s.out[:0]
	for i := 0; i < batch.len(); i++ {
		m := batch.at(i)
		s.out = strconv.AppendInt(s.out, int64(len(m)), 10)
		s.out = append(append(s.out, ' '), m...)
	}
	if s.conn != nil {
		select {
		case <-s.ended:
			s.close()
		default:
		}
	}
	if s.conn == nil {
		conn, err := s.dialer.Dial(ctx)
		if err != nil {
			return nil, err
		}
		s.conn, s.ended = conn, make(chan struct{})
		go func(ended chan struct{}) {
			io.Copy(io.Discard, conn)
			close(ended)
		}(s.ended)
	}
	stop := transport.Guard(ctx, s.conn.SetWriteDeadline)
	_, err := s.conn.Write(s.out)
	stop()
	if err == nil {
		err = transport.Drained(ctx, s.conn)
	}
	if err == nil {
		select {
		case <-s.ended:
			err = errors.New("the collector closed the connection")
		default:
		}
	}
	if err != nil {
		s.close() // in the middle of a message, perhaps
		return nil, fmt.Errorf("write to %s: %w", s.dialer.Address, err)
	}
	return nil, nil
}

func (s *stream) close() {
	if s.conn != nil {
		s.conn.Close()
		<-s.ended
		s.conn = nil
	}
}
