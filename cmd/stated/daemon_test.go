// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// space is a network namespace with traffic on its loopback.
type space struct {
	inode uint64
	tid   int         // of the thread in it
	quiet atomic.Bool // no traffic
	stop  chan struct{}
	done  chan error
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{stop: make(chan struct{}), done: make(chan error, 1)}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		if err := s.enter(); err != nil {
			ready <- err
			return
		}
		ready <- nil
		s.done <- s.traffic()
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(s.stop)
		if err := <-s.done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// name gives the namespace a name, as ip-netns(8) does: namespaces of single
// threads are not looked into.
func (s *space) name(t *testing.T) {
	t.Helper()
	path := fmt.Sprintf("/run/netns/stated-test-%d", s.tid)
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	if err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", s.tid), path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
}

func (s *space) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return err
	}
	s.inode, s.tid = st.Ino, unix.Gettid()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// traffic makes connections until stop: each end's socket belongs to this
// thread, and so to the namespace.
func (s *space) traffic() error {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer l.Close()
	// the leak: one end is closed, the other is not
	c, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		return err
	}
	leaked, err := l.Accept()
	if err != nil {
		return err
	}
	defer leaked.Close()
	c.Close()
	for {
		select {
		case <-s.stop:
			return nil
		default:
		}
		if s.quiet.Load() {
			time.Sleep(time.Millisecond)
			continue
		}
		c, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
		if err != nil {
			return err
		}
		c.SetLinger(0) // no TIME_WAIT: ports must not run out
		a, err := l.Accept()
		if err != nil {
			return err
		}
		a.Write([]byte("hello"))
		c.Close()
		a.Close()
		time.Sleep(200 * time.Microsecond) // a load, not a flood: other tests run
	}
}

// daemon is a running agent.
type daemon struct {
	cmd    *exec.Cmd
	stderr chan string // lines
}

// startDaemon runs an agent, and waits until it watches.
func startDaemon(t *testing.T, config string) *daemon {
	t.Helper()
	d := launch(t, config)
	d.says(t, "msg=watching")
	return d
}

func launch(t *testing.T, config string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command(stated, "agent", "--config", config), stderr: make(chan string, 1000)}
	pipe, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.cmd.Process.Kill() })
	go func() {
		defer close(d.stderr)
		lines := bufio.NewScanner(pipe)
		for lines.Buffer(nil, 16<<20); lines.Scan(); {
			d.stderr <- lines.Text()
		}
		if err := lines.Err(); err != nil {
			d.stderr <- "its stderr cannot be read: " + err.Error()
		}
	}()
	return d
}

// says waits for a line on stderr.
func (d *daemon) says(t *testing.T, text string) {
	t.Helper()
	var all []string
	deadline := time.After(time.Minute)
	for {
		select {
		case line, ok := <-d.stderr:
			if !ok {
				t.Fatalf("it never said %q: %s", text, strings.Join(all, "\n"))
			}
			if all = append(all, line); strings.Contains(line, text) {
				return
			}
		case <-deadline:
			t.Fatalf("it does not say %q: %s\n%s", text, strings.Join(all, "\n"), d.stacks())
		}
	}
}

// end waits for the exit. The deadline, more than any drain, is for an agent that
// hangs: the error tells where.
func (d *daemon) end() error {
	_, err := d.last()
	return err
}

// last is end, and the lines that were not read before.
func (d *daemon) last() (lines []string, err error) {
	deadline := time.After(3 * time.Minute)
	for {
		select {
		case line, ok := <-d.stderr:
			if !ok {
				return lines, d.cmd.Wait()
			}
			lines = append(lines, line)
		case <-deadline:
			return lines, fmt.Errorf("it does not end: %s\n%s", strings.Join(lines, "\n"), d.stacks())
		}
	}
}

// stacks kills the agent and returns where its threads were in the kernel, and its
// goroutines in the program; and all other threads that are at work on a socket, as
// one of them may have the lock that the agent waits for.
func (d *daemon) stacks() string {
	var out strings.Builder
	own := fmt.Sprintf("/proc/%d/", d.cmd.Process.Pid)
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/*")
	for _, task := range tasks {
		stack, _ := os.ReadFile(filepath.Join(task, "stack")) // unreadable if it has ended
		if strings.HasPrefix(task, own) || bytes.Contains(stack, []byte("sock")) {
			stat, _ := os.ReadFile(filepath.Join(task, "stat"))
			out.Write(append(stat, stack...))
		}
	}
	d.cmd.Process.Signal(syscall.SIGQUIT)
	for deadline := time.After(10 * time.Second); ; {
		select {
		case line, ok := <-d.stderr:
			if !ok {
				return out.String()
			}
			out.WriteString(line + "\n")
		case <-deadline:
			d.cmd.Process.Kill()
			return out.String() + "and SIGQUIT did not end it"
		}
	}
}

func lineCount(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return bytes.Count(text, []byte{'\n'})
}

// waitFor waits for a condition; the deadline is for tests that hang.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func writeConfig(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// recordsOf parses lines and counts each record's uid.
func recordsOf(t *testing.T, lines []byte, each func(map[string]any)) map[string]int {
	t.Helper()
	uids := make(map[string]int)
	for line := range bytes.Lines(lines) {
		var r map[string]any
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		uid, _ := r["log.record.uid"].(string)
		if uid == "" {
			t.Fatalf("no uid: %s", line)
		}
		uids[uid]++
		if each != nil {
			each(r)
		}
	}
	return uids
}

func spoolLines(t *testing.T, dir string) []byte {
	t.Helper()
	names, err := filepath.Glob(dir + "/*.seg") // in the order of their numbers
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	var all []byte
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Reset(bytes.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(dec)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, plain...)
	}
	return all
}
