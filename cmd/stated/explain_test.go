// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// until runs stated until its output has all of the wanted, and returns it.
func until(t *testing.T, wanted []string, args ...string) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		out, stderr, _ := runStated(t, args...)
		missing := ""
		for _, want := range wanted {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), want) { // lines are wrapped
				missing = want
			}
		}
		if missing == "" {
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("stated %s: no %q in\n%s%s", strings.Join(args, " "), missing, out, stderr)
		}
	}
}

var listens = regexp.MustCompile(`LISTEN on (\S+)`)

// TestExplainLive asks about a program that leaks, by its number, by one of its
// descriptors, and by its address.
func TestExplainLive(t *testing.T) {
	requireRoot(t)
	argv := python(t)
	if argv == nil {
		notInstalled(t, "python3")
	}
	p := plant(t, false, append(argv, "data_unread")...)
	pid := strconv.Itoa(p.pid)
	out := until(t, []string{
		"leaks/leak.py data_unread, user root", "descriptors.", "3 CLOSE_WAIT, came in at port", "3 are stuck for 1.0ms or longer. 3 data_unread",
		"6B came that the process has not read", "No thread waits on it", "Next: the handler is stuck", "gdb -p " + pid, "And 1 more that is stuck",
	}, "explain", pid, "--min-age", "1ms", "--examples", "2")
	addr := listens.FindStringSubmatch(out)
	if addr == nil {
		t.Fatalf("no listener in\n%s", out)
	}
	fd := strings.Trim(string(p.holders[1][1]), "[]")
	out = until(t, []string{"holds it as descriptor " + fd + ":"}, "explain", pid+"/"+fd, "--min-age", "1ms")
	if n := strings.Count(out, "holds it"); n != 1 {
		t.Errorf("%d sockets are told of, not one:\n%s", n, out)
	}
	until(t, []string{"3 CLOSE_WAIT", "1 LISTEN", "7 TCP sockets"}, "explain", addr[1])
	for arg, says := range map[string]string{
		pid + "/0":            "no TCP socket, but \"pipe:",
		pid + "/9999":         "has no descriptor 9999",
		"203.0.113.9:9":       "no TCP socket of this host has 203.0.113.9:9",
		"[2001:db8::dead]:80": "no TCP socket of this host has [2001:db8::dead]:80",
	} {
		if out, stderr, code := runStated(t, "explain", arg); code != 1 || !strings.Contains(stderr, says) || out != "" {
			t.Errorf("explain %s: exit code %d, %q, want %q", arg, code, stderr, says)
		}
	}
}

var waiting = regexp.MustCompile(`fd (\d+)\b.*thread (\d+) waits in sendto`)

// TestLeaksSayWhoWaits: a thread, an epoll set, nobody.
func TestLeaksSayWhoWaits(t *testing.T) {
	requireRoot(t)
	argv := python(t)
	if argv == nil {
		notInstalled(t, "python3")
	}
	p := plant(t, false, append(argv, "waited")...)
	fds := make([]string, len(p.holders))
	for i, h := range p.holders {
		fds[i] = strings.Trim(string(h[1]), "[]")
	}
	args := []string{"leaks", "--netns", fmt.Sprintf("/proc/%d/ns/net", p.pid), "--min-age", "0s", "-o"}
	out := until(t, []string{"waits in sendto", "watched by epoll", "3 sockets leaked"}, append(args, "wide")...)
	m := waiting.FindStringSubmatch(out)
	if m == nil || m[1] != fds[0] {
		t.Fatalf("not said of descriptor %s:\n%s", fds[0], out)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%s", p.pid, m[2])); err != nil || m[2] == strconv.Itoa(p.pid) {
		t.Errorf("thread %s of process %d: %v", m[2], p.pid, err)
	}
	schema := printedSchema(t)
	out, _, _ = runStated(t, append(args, "json")...)
	validLines(t, schema, out)
	for _, want := range []string{`"fd":` + fds[0] + `,"wait":"call","wait_thread":` + m[2] + `,"wait_call":"sendto"`,
		`"fd":` + fds[1] + `,"wait":"watched"`, `"fd":` + fds[2] + `,"wait":"none"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	out, _, _ = runStated(t, append(args, "json", "--by", "none")...)
	validLines(t, schema, out)
	for _, want := range []string{`"stated.socket.wait":"call","stated.socket.wait_thread":` + m[2], `"stated.socket.wait":"watched"`, `"stated.socket.wait":"none"`} {
		if strings.Count(out, want) != 1 {
			t.Errorf("not once %s in %s", want, out)
		}
	}
	out, _, code := runStated(t, append(args, "json", "--by", "container")...)
	validLines(t, schema, out)
	if code != 4 || !strings.Contains(out, `"stated.leak.sockets":3`) || !strings.Contains(out, `"stated.leak.container":"`) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestParseSubject: what is written wrongly is told how to write.
func TestParseSubject(t *testing.T) {
	for arg, says := range map[string]string{
		"::1:80":             "write [::1]:80",
		"2001:db8::1:443":    "write [2001:db8::1]:443",
		"::1":                "has no port: write [::1]:443",
		"[::1:80]":           "has no port: write [::1:80]:443",
		"1:2:3:4:5:6:7:8":    "has no port: write [1:2:3:4:5:6:7:8]:443",
		"10.0.0.5":           "has no port: write 10.0.0.5:443",
		"10.0.0.5:99999":     "a port is 1 to 65535",
		"10.0.0.5:0":         "a port is 1 to 65535",
		":0":                 "a port is 1 to 65535",
		":70000":             "a port is 1 to 65535",
		":http":              "no address with a port",
		"[::1]:65536":        "a port is 1 to 65535",
		"10.0.0.5:":          "no address with a port",
		"10.0.0.5:http":      "no address with a port",
		"2001:db8::1:beef":   "has no port: write [2001:db8::1:beef]:443",
		"localhost.local:80": "no address with a port",
	} {
		if _, err := parseSubject(arg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", arg, err, says)
		}
	}
}

// TestParseSubjectOfSS: what ss shows can be asked about.
func TestParseSubjectOfSS(t *testing.T) {
	for arg, want := range map[string]string{
		"10.0.0.5:80":              "10.0.0.5:80",
		"127.0.0.53%lo:53":         "127.0.0.53:53",
		"0.0.0.0%eth0:80":          "0.0.0.0:80",
		"[fe80::1]%eth0:80":        "[fe80::1]:80",
		"[fe80::1%eth0]:80":        "[fe80::1]:80",
		"[fe80::1]%eth0.5@if7:80":  "[fe80::1]:80",
		"[::ffff:10.0.0.5]:80":     "10.0.0.5:80",
		"*:8080":                   "[::]:8080",
		"[::ffff:10.0.0.5%eth0]:1": "10.0.0.5:1",
	} {
		if got, err := parseSubject(arg); err != nil || got.addr.String() != want {
			t.Errorf("%s: %+v, %v; want %s", arg, got, err, want)
		}
	}
}

// TestExplainOwn asks about sockets of this very process: a queue that takes one
// more than its backlog, and is full; and an end that has shut down sending, and
// waits for the answer.
func TestExplainOwn(t *testing.T) {
	requireRoot(t)
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	until(t, []string{"1 connection waits in its queue, 1 may. The queue is full"}, "explain", fmt.Sprintf("%d/%d", os.Getpid(), fd))
	if out := until(t, []string{"It is half-closed"}, "explain", conn.LocalAddr().String(), "--min-age", "0s"); strings.Contains(out, "(int)close") {
		t.Errorf("told to close what waits for an answer:\n%s", out)
	}
	port := name.(*syscall.SockaddrInet4).Port
	until(t, []string{"The queue is full", "It is half-closed", conn.LocalAddr().String()}, "explain", fmt.Sprintf(":%d", port), "--min-age", "0s", "--examples", "9")
	if _, stderr, code := runStated(t, "explain", ":1"); code != 1 || !strings.Contains(stderr, "no TCP socket of this host has port 1 at either end") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
