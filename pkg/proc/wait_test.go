// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// variants are what libc uses where the first call does not exist.
var variants = map[string]string{"poll": "ppoll", "select": "pselect6", "epoll_wait": "epoll_pwait"}

// TestWaits has a Python program wait in each way for descriptor 3.
func TestWaits(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	const park = "sys.stdin.read()"
	for name, c := range map[string]struct {
		code, call string
		kind       WaitKind
	}{
		"nothing": {park, "", WaitNone},
		"recv":    {"s.recv(1)", "recvfrom", WaitCall},
		"dup":     {"socket.socket(fileno=os.dup(3)).recv(1)", "recvfrom", WaitCall},
		"poll":    {"p=select.poll(); p.register(0); p.register(3,1); p.unregister(0); p.poll()", "poll", WaitPoll},
		"select":  {"select.select([3],[],[])", "select", WaitPoll},
		"epoll":   {"e=select.epoll(); e.register(3,1); e.poll()", "epoll_wait", WaitPoll},
		"nested":  {"e=select.epoll(); e.register(3,1); f=select.epoll(); f.register(e.fileno(),1); f.poll()", "epoll_wait", WaitPoll},
		"watched": {"e=select.epoll(); e.register(3,1); " + park, "", WaitWatched},
		"thread":  {"threading.Thread(target=lambda: s.recv(1), daemon=True).start(); " + park, "recvfrom", WaitCall},
		"other":   {"a,b=socket.socketpair(); select.select([a],[],[])", "", WaitNone},
	} {
		t.Run(name, func(t *testing.T) {
			fd, _ := conn(t)
			f := os.NewFile(uintptr(mustDup(t, fd)), "")
			defer f.Close()
			cmd := exec.Command(python, "-c", "import os,sys,socket,select,threading\ns=socket.socket(fileno=3); s.setblocking(True)\n"+c.code)
			cmd.ExtraFiles = []*os.File{f}
			if _, err := cmd.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { cmd.Process.Kill(); cmd.Wait() }()
			r := New(Options{})
			var w Wait
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if w, err = r.Waits(uint32(cmd.Process.Pid), 3); err != nil {
					continue // before its exec
				}
				same := w.Call == c.call || c.call != "" && strings.Contains(variants[c.call], w.Call)
				if w.Kind == c.kind && same && (w.TID != 0) == (c.call != "") {
					return
				}
			}
			t.Errorf("%+v, %v, want %v in %s", w, err, c.kind, c.call)
		})
	}
	if w, err := New(Options{}).Waits(uint32(os.Getpid()), 0); err == nil {
		t.Errorf("no socket: %+v", w)
	}
}

func BenchmarkWaiters(b *testing.B) {
	r := New(Options{})
	for b.Loop() {
		if _, err := r.Waiters(uint32(os.Getpid())); err != nil {
			b.Fatal(err)
		}
	}
}
