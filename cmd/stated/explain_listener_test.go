// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// listen makes a listener of this process with an option of TCP or of sockets.
func listen(t *testing.T, backlog, level, option int) (fd, port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.SetsockoptInt(fd, level, option, 20), syscall.Bind(fd, &syscall.SockaddrInet4{}), syscall.Listen(fd, backlog)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, name.(*syscall.SockaddrInet4).Port
}

// TestHalfOpenLive: with TCP_DEFER_ACCEPT a client that says nothing stays so.
func TestHalfOpenLive(t *testing.T) {
	requireRoot(t)
	_, port := listen(t, 5, syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT)
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pid := strconv.Itoa(os.Getpid())
	for _, look := range []string{"", "--classic"} {
		flags := strings.Fields(look)
		ls := append([]string{"ls", "--pid", pid, "--lport", strconv.Itoa(port), "--state", "SYN_RECV"}, flags...)
		until(t, []string{"SYN_RECV", "half-open, listener stated.test[" + pid + "]"}, ls...)
		until(t, []string{"its listener is stated.test[" + pid + "]"}, append([]string{"explain", conn.LocalAddr().String()}, flags...)...)
	}
}
