// SPDX-License-Identifier: Apache-2.0

// Command churn makes and ends TCP connections on loopback for a while, as
// fast as it can, and prints how many and what they cost: the load of
// .ci/bench. The client closes first, so a connection has eleven changes of
// state at its two ends, the listener's aside.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	span := flag.Duration("for", 5*time.Second, "how long")
	flag.Parse()
	n, err := churn(*span)
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

// churn runs both ends in one thread: on loopback the handshake and the FINs
// are done within the system calls, so nothing waits.
func churn(span time.Duration) (n int, err error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(l)
	// 127.0.0.0/8 is ours: other source addresses mean other local ports, so
	// that those in TIME_WAIT do not run out
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
	for end := time.Now().Add(span); time.Now().Before(end); n++ {
		from := [4]byte{127, byte(1 + n>>14), byte(n >> 8 & 0x3f), byte(1 + n&0x7f)}
		if err := one(l, at, from); err != nil {
			return n, fmt.Errorf("connection %d: %w", n, err)
		}
	}
	return n, nil
}

func one(l int, at unix.Sockaddr, from [4]byte) error {
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	if err := unix.SetsockoptInt(c, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	if err := unix.Bind(c, &unix.SockaddrInet4{Addr: from}); err != nil {
		return err
	}
	if err := unix.Connect(c, at); err != nil {
		return err
	}
	a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.Shutdown(c, unix.SHUT_WR); err != nil {
		unix.Close(a)
		return err
	}
	return unix.Close(a)
}
