// SPDX-License-Identifier: Apache-2.0

// Command churn makes and ends TCP connections on loopback for a while, as
// fast as it can, and prints how many and what they cost: the load of
// .ci/bench. The client closes first, so a connection has ten changes of
// state at its two ends, the listener's aside. With -carry each carries some data,
// so that there is something else to do than to begin and to end. With -get the other
// end is a web server, which is asked for / by each connection and closes first.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	span := flag.Duration("for", 5*time.Second, "how long")
	carry := flag.Int("carry", 0, "`bytes` that each connection carries")
	get := flag.String("get", "", "IPv4 `ADDRESS:PORT` of a web server to ask, one connection for each answer")
	flag.Parse()
	n, err := run(*span, *carry, *get)
	if err != nil {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
	cpu := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	fmt.Printf("%d %.0f %.2f\n", n, float64(n)/span.Seconds(), float64(cpu.Microseconds())/float64(n))
}

func run(span time.Duration, carry int, server string) (int, error) {
	if server == "" {
		return churn(span, carry)
	}
	at, err := netip.ParseAddrPort(server)
	if err != nil || !at.Addr().Is4() {
		return 0, fmt.Errorf("-get %q: an IPv4 address and a port are needed", server)
	}
	to := &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	return repeat(span, func(from [4]byte) error { return ask(to, from) })
}

// repeat calls f for as long. 127.0.0.0/8 is ours: other source addresses mean
// other local ports, so that those in TIME_WAIT do not run out.
func repeat(span time.Duration, f func(from [4]byte) error) (n int, err error) {
	for end := time.Now().Add(span); time.Now().Before(end); n++ {
		if err := f([4]byte{127, byte(1 + n>>14), byte(n >> 8 & 0x3f), byte(1 + n&0x7f)}); err != nil {
			return n, fmt.Errorf("connection %d: %w", n, err)
		}
	}
	return n, nil
}

// churn runs both ends in one thread: on loopback the handshake and the FINs
// are done within the system calls, so nothing waits.
func churn(span time.Duration, carry int) (n int, err error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	if err := unix.Listen(l, 128); err != nil {
		return 0, err
	}
	at, err := unix.Getsockname(l)
	if err != nil {
		return 0, err
	}
	return repeat(span, func(from [4]byte) error { return one(l, at, from, carry) })
}

func connect(at unix.Sockaddr, from [4]byte) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err == nil {
		if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from}); err == nil {
			if err = unix.Connect(fd, at); err == nil {
				return fd, nil
			}
		}
	}
	unix.Close(fd)
	return -1, err
}

func ask(at unix.Sockaddr, from [4]byte) error {
	c, err := connect(at, from)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	if _, err := unix.Write(c, []byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return err
	}
	for answered := false; ; answered = true {
		var answer [4096]byte
		switch n, err := unix.Read(c, answer[:]); {
		case err != nil:
			return err
		case n == 0 && !answered:
			return errors.New("no answer")
		case n == 0:
			return nil
		}
	}
}

func one(l int, at unix.Sockaddr, from [4]byte, carry int) error {
	c, err := connect(at, from)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	if err := send(c, a, carry); err != nil {
		return err
	}
	return unix.Shutdown(c, unix.SHUT_WR)
}

// send brings n bytes from one end to the other, a block at a time, as what is in
// flight has to be read before there is room for more.
func send(from, to, n int) error {
	var block [16 << 10]byte
	for n > 0 {
		sent, err := unix.Write(from, block[:min(n, len(block))])
		if err != nil {
			return err
		}
		for left := sent; left > 0; {
			got, err := unix.Read(to, block[:])
			if err != nil {
				return err
			}
			left -= got
		}
		n -= sent
	}
	return nil
}
