// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/sink"
)

// Dialer makes connections to one address.
type Dialer struct {
	Network string // as net.Dial wants it
	Address string
	TLS     *tls.Config // nil: none
}

// NewDialer checks a host:port address; secure is nil for a connection in the
// clear.
func NewDialer(network, address string, secure *TLS) (*Dialer, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: want host:port: %w", address, err)
	}
	if host == "" || port == "" || port == "0" {
		return nil, fmt.Errorf("address %q: want host:port, with both", address)
	}
	d := &Dialer{Network: network, Address: address}
	if secure != nil {
		d.TLS, err = secure.Config(host)
	}
	return d, err
}

// Dial connects, and shakes hands where TLS is wanted, within ctx.
func (d *Dialer) Dial(ctx context.Context) (net.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, d.Network, d.Address)
	if err != nil {
		return nil, Cause(ctx, fmt.Errorf("connect to the collector: %w", err))
	}
	if d.TLS == nil {
		return raw, nil
	}
	conn := tls.Client(raw, d.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, Cause(ctx, fmt.Errorf("shake hands with the collector at %s: %w", d.Address, err))
	}
	return conn, nil
}

// Guard makes what set, such as a net.Conn's SetDeadline, limits end with ctx,
// until stop is called.
func Guard(ctx context.Context, set func(time.Time) error) (stop func()) {
	deadline, _ := ctx.Deadline() // the zero time is none
	set(deadline)
	after := context.AfterFunc(ctx, func() { set(time.Unix(1, 0)) })
	return func() { after() }
}

// Cause adds ctx's error to err when ctx has ended: what the network then says
// is only the consequence. A connection's own deadline, which Guard takes from
// ctx, may come a moment before ctx's.
func Cause(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

// Refused is the error for a batch of n records of which the collector says
// that it, or something in it, is not to be had: split it until the culprit is
// alone, and then give that one up.
func Refused(n int, err error) error {
	if n > 1 {
		return &sink.TooLarge{Err: err}
	}
	return &sink.Rejected{Indexes: []int{0}, Err: err}
}

// Drained waits until the peer's TCP has acknowledged all that was written to
// conn (tcp(7), SIOCOUTQ), which the peer's program need not have read. It
// returns at once for anything but TCP.
func Drained(ctx context.Context, conn net.Conn) error {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		left, broken, err := queued(raw)
		if err != nil {
			return fmt.Errorf("ask what the collector has not acknowledged: %w", err)
		}
		if broken != 0 {
			return fmt.Errorf("wait for the collector's TCP: %w", broken)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return Cause(ctx, fmt.Errorf("%d bytes not acknowledged by the collector's TCP", left))
		case <-time.After(wait):
		}
	}
}

func queued(raw syscall.RawConn) (left int, broken syscall.Errno, err error) {
	ctlErr := raw.Control(func(fd uintptr) {
		var soErr int
		if left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err != nil {
			return
		}
		soErr, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		broken = syscall.Errno(soErr)
		if err != nil || left > 0 || broken != 0 {
			return
		}
		// Nothing is queued once the connection has been reset, either; and a
		// peer that has closed its side may not have read what came last.
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO); err == nil && info.State != unix.BPF_TCP_ESTABLISHED {
			broken = syscall.ECONNRESET
		}
	})
	if ctlErr != nil {
		err = ctlErr
	}
	return left, broken, err
}
