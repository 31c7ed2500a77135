// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Collectors is the folder that .ci/collectors filled; the test is skipped
// without STATED_COLLECTORS.
func Collectors(t *testing.T) string {
	t.Helper()
	root := os.Getenv("STATED_COLLECTORS")
	if root == "" {
		t.Skip("STATED_COLLECTORS is not set: .ci/collectors fills it with real collectors")
	}
	if _, err := os.Stat(filepath.Join(root, "complete")); err != nil {
		t.Fatalf("STATED_COLLECTORS: %v; run .ci/collectors", err)
	}
	return root
}

// Daemon is a real collector.
type Daemon struct {
	argv []string
	env  []string
	cmd  *exec.Cmd
	said bytes.Buffer
}

// StartDaemon runs a program until the test ends. It finds the libraries that
// .ci/collectors unpacked, and those in dirs.
func StartDaemon(t *testing.T, argv []string, dirs ...string) *Daemon {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/*-linux-gnu", "/lib/*-linux-gnu"} {
		found, _ := filepath.Glob(os.Getenv("STATED_COLLECTORS") + pattern)
		dirs = append(dirs, found...)
	}
	d := &Daemon{argv: argv, env: append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(dirs, ":"))}
	d.Start(t)
	t.Cleanup(func() {
		d.Kill()
		if t.Failed() {
			t.Logf("%s said: %s", argv[0], &d.said)
		}
	})
	return d
}

// Start starts it again after Kill.
func (d *Daemon) Start(t *testing.T) {
	t.Helper()
	d.cmd = exec.Command(d.argv[0], d.argv[1:]...)
	d.cmd.Env, d.cmd.Stdout, d.cmd.Stderr = d.env, &d.said, &d.said
	d.cmd.WaitDelay = patience // a child of its own may outlive it
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// Kill ends it without warning.
func (d *Daemon) Kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

// Stop asks it to end, and waits until it has.
func (d *Daemon) Stop() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	d.cmd.Wait()
}

// given are the ports that FreePort has returned: who asked may not listen yet.
var given sync.Map

// FreePort is an address on loopback that nobody listened on a moment ago, and that
// it has not returned before.
func FreePort(t *testing.T, network string) string {
	t.Helper()
	for {
		address := unused(t, network)
		if _, before := given.LoadOrStore(network+address, true); !before {
			return address
		}
	}
}

func unused(t *testing.T, network string) string {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Await calls done until it says true, and fails the test if it never does.
func Await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
