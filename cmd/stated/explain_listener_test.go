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
		ls[6] = "NEW_SYN_RECV" // by the kernel's own name
		until(t, []string{"SYN_RECV", "half-open"}, ls...)
		until(t, []string{"its listener is stated.test[" + pid + "]"}, append([]string{"explain", conn.LocalAddr().String()}, flags...)...)
	}
}

// TestExplainAnyAddress: who listens on all addresses answers at each, here, and is
// shown beside the connections.
func TestExplainAnyAddress(t *testing.T) {
	requireRoot(t)
	_, port := listen(t, 5, syscall.SOL_SOCKET, syscall.SO_REUSEADDR)
	dual, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer dual.Close()
	at := func(addr string, port int) string { return fmt.Sprintf("%s:%d", addr, port) }
	until(t, []string{at("0.0.0.0", port) + " It listens on every IPv4 address."}, "explain", at("127.0.0.1", port))
	dualPort := dual.Addr().(*net.TCPAddr).Port
	until(t, []string{at("[::]", dualPort) + " It listens on every IPv6 address"}, "explain", at("127.0.0.1", dualPort))
	until(t, []string{at("[::]", dualPort)}, "explain", at("[::1]", dualPort))
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP.To4(); ip != nil {
			until(t, []string{at("0.0.0.0", port)}, "explain", at(ip.String(), port))
		}
	}
	conn, err := net.Dial("tcp", at("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	until(t, []string{"3 TCP sockets", "1 LISTEN on " + at("0.0.0.0", port)}, "explain", at("127.0.0.1", port))
	if out, stderr, code := runStated(t, "explain", at("203.0.113.9", port)); code != 1 {
		t.Errorf("a peer's address: %d, %s%s", code, out, stderr)
	}
}
