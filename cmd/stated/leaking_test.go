// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// planted is a program that leaks in a network namespace of its own. It ends
// with the test.
type planted struct {
	pid     int // of the program, on the host
	pidns   bool
	holders [][2]json.RawMessage
}

// plant runs a program until it has said who must hold its leaks. With pidns it
// is the first process of a pid namespace.
func plant(t *testing.T, pidns bool, argv ...string) *planted {
	t.Helper()
	args := []string{"-n", "sh", "-c", `ip link set lo up && exec "$@"`, "sh"}
	if pidns {
		args = append([]string{"-p", "-f", "--kill-child", "--mount-proc"}, args...)
	}
	cmd := exec.Command("unshare", append(args, argv...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &planted{pid: cmd.Process.Pid, pidns: pidns}
	t.Cleanup(func() {
		stdin.Close()
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		io.Copy(io.Discard, stdout)
		cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("%q said nothing: %v", argv, err)
	}
	if err := json.Unmarshal(line, &p.holders); err != nil {
		t.Fatalf("%q: %v in %s", argv, err, line)
	}
	if pidns {
		path := fmt.Sprintf("/proc/%d/task/%[1]d/children", p.pid)
		children, _ := os.ReadFile(path) // no text is no number
		var err error
		if p.pid, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return p
}

// onHost returns the number that the host has for a process of the program's pid
// namespace.
func (p *planted) onHost(t *testing.T, pid string) string {
	t.Helper()
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, path := range all {
		dir := filepath.Dir(filepath.Dir(path))
		if its, err := os.Readlink(path); err != nil || its != namespace {
			continue
		}
		status, _ := os.ReadFile(dir + "/status")
		for line := range strings.Lines(string(status)) {
			if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok && strings.HasSuffix(strings.TrimSpace(numbers), "\t"+pid) {
				return filepath.Base(dir)
			}
		}
	}
	t.Fatalf("no process %s in the namespace of %d", pid, p.pid)
	return ""
}

// want lists a line for each socket that must be found. Descriptors that the
// program does not know are found by their inodes alone.
func (p *planted) want(t *testing.T, verdict string) (lines []string) {
	for _, h := range p.holders {
		pid := string(h[0])
		if p.pidns {
			pid = p.onHost(t, pid)
		}
		lines = append(lines, fmt.Sprintf("%s %s %s", verdict, pid, h[1]))
	}
	slices.Sort(lines)
	return lines
}

// found lists the same of what stated finds. Each descriptor is compared with
// what /proc says of it.
func (p *planted) found(t *testing.T, known bool) (lines []string) {
	t.Helper()
	out, stderr, code := runStated(t, "leaks", "--netns", fmt.Sprintf("/proc/%d/ns/net", p.pid), "--min-age", "1ms", "--by", "none", "-o", "json")
	if code != 0 && code != 4 || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for line := range strings.Lines(out) {
		var s struct {
			Verdict string `json:"stated.leak.verdict"`
			Inode   string `json:"stated.socket.inode"`
			PID     int    `json:"process.pid"`
			Holders []struct {
				PID int   `json:"pid"`
				FDs []int `json:"fds"`
			} `json:"stated.leak.holders"`
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if s.Verdict == "not_accepted" {
			fds := "[]"
			if !known {
				fds = "null"
			}
			lines = append(lines, fmt.Sprintf("%s %d %s", s.Verdict, s.PID, fds))
			continue
		}
		for _, h := range s.Holders {
			for _, fd := range h.FDs {
				link := fmt.Sprintf("/proc/%d/fd/%d", h.PID, fd)
				if target, err := os.Readlink(link); target != "socket:["+s.Inode+"]" {
					t.Errorf("%s is %q, %v; reported as inode %s", link, target, err, s.Inode)
				}
			}
			fds, _ := json.Marshal(h.FDs)
			if !known {
				fds = []byte("null")
			}
			lines = append(lines, fmt.Sprintf("%s %d %s", s.Verdict, h.PID, fds))
		}
	}
	slices.Sort(lines)
	return lines
}

// leakers are the programs by language: how to run them, nil where it is not
// installed.
func leakers(t *testing.T) map[string][]string {
	t.Helper()
	dir := t.TempDir()
	build := func(out string, argv ...string) []string {
		if _, err := exec.LookPath(argv[0]); err != nil {
			return nil
		}
		if text, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, text)
		}
		return []string{out}
	}
	script := func(names ...string) []string {
		for i, name := range names[:len(names)-1] {
			if path, err := exec.LookPath(name); err == nil {
				names[i] = path
				return []string{path, filepath.Join("testdata/leaks", names[len(names)-1])}
			}
		}
		return nil
	}
	goleak, cleak := filepath.Join(dir, "goleak"), filepath.Join(dir, "leak")
	return map[string][]string{
		"python": python(t), "node": script("node", "leak.js"), "java": script("java", "Leak.java"),
		"go": build(goleak, "go", "build", "-o", goleak, "./testdata/leaks/goleak"),
		"c":  build(cleak, "gcc", "-Wall", "-Werror", "-o", cleak, "testdata/leaks/leak.c"),
	}
}

// python is the interpreter itself, as what stands in PATH may be a script that
// runs it as a child.
func python(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		return nil
	}
	return []string{strings.TrimSpace(string(out)), "testdata/leaks/leak.py"}
}

// TestLeakingPrograms: real programs that leak, one for each verdict and each
// way a descriptor can go, all of them before stated began. Every socket is
// found, with its holders, and the verdict is right.
func TestLeakingPrograms(t *testing.T) {
	requireRoot(t)
	programs := leakers(t)
	for _, tt := range []struct {
		language, way, verdict string
		pidns                  bool
	}{
		{"python", "body", "eof_unread", false},
		{"python", "not_accepted", "not_accepted", false},
		{"python", "drained", "drained", false},
		{"python", "data_unread", "data_unread", false},
		{"python", "eof_unread", "eof_unread", false},
		{"python", "inherited", "eof_unread", false},
		{"python", "passed", "eof_unread", false},
		{"python", "hidden", "hidden", false},
		{"python", "drained", "drained", true},
		{"python", "inherited", "eof_unread", true},
		{"python", "correct", "", false},
		{"node", "drained", "drained", false},
		{"node", "data_unread", "data_unread", false},
		{"node", "correct", "", false},
		{"go", "body", "eof_unread", false},
		{"go", "not_accepted", "not_accepted", false},
		{"go", "not_accepted", "not_accepted", true},
		{"go", "correct", "", false},
		{"c", "shut_down", "shut_down", false},
		{"c", "exec", "drained", false},
		{"java", "drained", "drained", false},
		{"java", "data_unread", "data_unread", false},
		{"java", "correct", "", false},
	} {
		name := tt.language + " " + tt.way
		if tt.pidns {
			name += " in a pid namespace"
		}
		t.Run(name, func(t *testing.T) {
			argv := programs[tt.language]
			if argv == nil {
				notInstalled(t, tt.language)
			}
			p := plant(t, tt.pidns, append(slices.Clone(argv), tt.way)...)
			if tt.verdict == "" {
				p.neverFound(t)
				return
			}
			if len(p.holders) != 3 {
				t.Fatalf("%d planted", len(p.holders))
			}
			want := p.want(t, tt.verdict)
			known := !strings.HasSuffix(want[0], "null")
			var got []string
			for deadline := time.Now().Add(10 * time.Second); !slices.Equal(got, want); {
				if time.Now().After(deadline) {
					t.Fatalf("found\n%s\nplanted\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				got = p.found(t, known) // the last FIN may be on its way
			}
		})
	}
}

// neverFound looks again and again while the program works as it should.
func (p *planted) neverFound(t *testing.T) {
	t.Helper()
	for range 3 {
		// A second is longer than a machine under load keeps it from closing.
		out, stderr, code := runStated(t, "leaks", "--netns", fmt.Sprintf("/proc/%d/ns/net", p.pid), "--min-age", "1s")
		if code != 0 || !strings.HasPrefix(out, "no leaks") {
			t.Fatalf("exit code %d: %s%s", code, out, stderr)
		}
	}
	if out, _, _ := runStated(t, "ls", "--all", "--netns", fmt.Sprintf("/proc/%d/ns/net", p.pid)); strings.Count(out, "\n") < 2 {
		t.Errorf("the program was not looked at:\n%s", out)
	}
}
