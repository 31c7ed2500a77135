// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/recording"
	"github.com/stated-tcp/stated/pkg/render"
)

var stated string // the program, built by TestMain

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "stated")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		stated = filepath.Join(dir, "stated")
		if out, err := exec.Command("go", "build", "-o", stated, ".").CombinedOutput(); err != nil {
			panic(string(out))
		}
		return m.Run()
	}())
}

func requireRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("STATED_KERNEL_TEST") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: run the tests with sudo")
	}
}

func runStated(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(stated, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestUsageErrors(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("no recording"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"version", 0, ""},
		{"explain", 0, ""},
		{"explain CLOSE_WIAT", 2, "did you mean CLOSE_WAIT?"},
		{"explain 4194303", 1, "no process 4194303"},
		{"explain 0", 2, "process ids"},
		{"explain 1/x", 2, "4242/87"},
		{"explain 10.0.0.5", 2, "10.0.0.5:443"},
		{"explain ::1", 2, "[::1]:443"},
		{"explain 10.0.0.5:99999", 2, "a port is 1 to 65535"},
		{"explain 1 --examples -1", 2, "negative"},
		{"schema tcp.bogus", 2, "one of tcp.state_change, tcp.connection"},
		{"schema tcp.leak stated.gap", 2, "at most 1"},
		{"bogus", 2, "bogus"},
		{"trace bogus", 2, "behind --"},
		{"trace --port 99999", 2, "1 to 65535"},
		{"trace --pid 0", 2, "process ids"},
		{"trace --pid abc", 2, `"--pid" flag: "abc" is not a number (see`},
		{"trace --count 99999999999999999999", 2, "is too large a number (see"},
		{"trace --addr 10.0.0.0/99", 2, "CIDR"},
		{"trace --role boss", 2, "client, server"},
		{"trace -o xml", 2, "text, wide, json, ecs"},
		{"trace --names klingon", 2, "kernel, ss"},
		{"trace --netns /nowhere", 2, "no such file"},
		{"trace -- /nowhere/command", 127, "/nowhere/command"},
		{"trace -- /etc/passwd", 126, "/etc/passwd"},
		{"trace --no-such-flag", 2, "trace --help"},
		{"trace --color sometimes", 2, "auto, always, never"},
		{"trace --for -1s", 2, "negative"},
		{"trace --min-duration -1s", 2, "negative"},
		{"trace --open-after -1s", 2, "negative"},
		{"record --for -1s /nowhere/a.rec", 2, "negative"},
		{"ls --min-duration -1s", 2, "negative"},
		{"replay --min-duration -1s " + garbage, 2, "negative"},
		{"leaks --for -1s", 2, "negative"},
		{"explain 1 --min-age -1s", 2, "negative"},
		{"leaks --by moon", 2, "process, peer"},
		{"leaks --max -1", 2, "negative"},
		{"leaks --for 1s --ring-bytes 1000", 2, "a power of two"},
		{"leaks --for 1s --max-connections -3", 2, "at least 1"},
		{"trace --ring-bytes 1000", 2, "a power of two"},
		{"record --ring-bytes 8191 /nowhere/x", 2, "a power of two"},
		{"leaks --stacks", 2, "--watch"},
		{"leaks --for 1s --by stack", 2, "add --stacks"},
		{"leaks --min-duration 3s", 2, "--min-age"},
		{"leaks --compare a.rec", 2, "two recordings"},
		{"leaks --compare --by peer a.rec b.rec", 2, "--by does not go"},
		{"leaks --compare /nowhere /nowhere", 1, "no such file"},
		{"leaks --compare " + garbage + " " + garbage, 1, "not a stated recording"},
		{"leaks 4242", 2, "unknown command"},
		{"ls --sort size", 2, "state, age"},
		{"record", 2, "accepts 1 arg"},
		{"replay /nowhere", 1, "no such file"},
		{"replay " + garbage, 1, "not a stated recording"},
	} {
		_, stderr, code := runStated(t, strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(stderr, tc.says) {
			t.Errorf("stated %s: exit code %d, %s", tc.args, code, stderr)
		}
	}
}

// churn makes connections of a few kinds.
func churn(t *testing.T, n int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		a.Write([]byte("unread"))
		a.Close()
		c.Close()
	}
}

// TestReplayIsTheLiveRun: byte for byte, in every format, what was on the
// screen comes out of the recording. Where more is shown of processes than their
// names, of our own alone: of one that was there before, the kernel has not told,
// so the live run has it of /proc, which a replay must not read.
func TestReplayIsTheLiveRun(t *testing.T) {
	requireRoot(t)
	for _, flags := range []string{"", "--events", "-o wide", "-o json", "-o json --events", "-o ecs", "--events --state ESTABLISHED --role server"} {
		t.Run(flags, func(t *testing.T) {
			if strings.Contains(flags, "-o ") {
				flags += " --pid " + strconv.Itoa(os.Getpid())
			}
			path := filepath.Join(t.TempDir(), "a.rec")
			var live bytes.Buffer
			cmd := exec.Command(stated, append(strings.Fields("trace --record "+path), strings.Fields(flags)...)...)
			cmd.Stdout = &live
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stderr)
			for lines.Scan() && !strings.Contains(lines.Text(), "watching") {
			}
			churn(t, 50)
			time.Sleep(200 * time.Millisecond) // the last are on their way
			cmd.Process.Signal(os.Interrupt)
			for lines.Scan() {
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(live.String(), "\n"); n < 50 {
				t.Fatalf("%d lines of 50 connections", n)
			}
			replayed, stderrText, code := runStated(t, append([]string{"replay", path}, strings.Fields(flags)...)...)
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, stderrText)
			}
			if replayed != live.String() {
				t.Errorf("live:\n%.2000s\nreplayed:\n%.2000s", live.String(), replayed)
			}
			if strings.Contains(flags, "json") || strings.Contains(flags, "ecs") {
				for line := range strings.Lines(replayed) {
					if !json.Valid([]byte(line)) {
						t.Fatalf("no JSON: %s", line)
					}
				}
			}
		})
	}
}

// TestReplayOfACutRecording: what is there is shown, what is not is told.
func TestReplayOfACutRecording(t *testing.T) {
	whole, err := os.ReadFile("testdata/traffic.rec")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.rec")
	for _, tc := range []struct {
		rec  []byte
		says string
	}{
		{whole[:len(whole)-20], "no whole block, with at least "},
		{append(slices.Clone(whole), "cut"...), "the last 3 bytes are no whole block, with how many events is not known"},
	} {
		if err := os.WriteFile(path, tc.rec, 0o600); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := runStated(t, "replay", path)
		if code != 1 || !strings.Contains(stderr, tc.says) || !strings.Contains(stderr, "connections: ") {
			t.Errorf("exit code %d, not %q: %s", code, tc.says, stderr)
		}
	}
}

// TestSummaryOfFiltered counts connections that are wanted, and says that events
// are of all.
func TestSummaryOfFiltered(t *testing.T) {
	const path, events, rest = "testdata/traffic.rec", "241 events", "; 0 lost by the kernel\nconnections: 0 still open"
	if _, stderr, _ := runStated(t, "replay", path); !strings.HasPrefix(stderr, events+rest+"; ended: ") || !strings.Contains(stderr, "; not gone yet: 10 in TIME_WAIT") {
		t.Errorf("without a filter:\n%s", stderr)
	}
	if _, stderr, _ := runStated(t, "replay", "--comm", "nosuch", path); stderr != events+", those that the filter hides included"+rest+"\n" {
		t.Errorf("of what nobody owns:\n%s", stderr)
	}
}

// TestReplayKeepsTheFilter: a recording may have what the kernel side could not tell
// from what was wanted. A replay does not show it.
func TestReplayKeepsTheFilter(t *testing.T) {
	const path = "testdata/traffic.rec"
	recorded := func(want *filter.Filter) string {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		from, err := recording.NewReader(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "a.rec")
		to, err := recording.Create(name, header(render.Host{}, lifecycle.Options{}, want))
		if err != nil {
			t.Fatal(err)
		}
		var e event.Event
		for from.Read(&e) == nil {
			if err := to.Append(&e); err != nil {
				t.Fatal(err)
			}
		}
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
		return name
	}
	none := &filter.Filter{Filter: event.Filter{Comms: []string{"nosuch"}}}
	for _, flags := range []string{"", "--events", "--open-after 1ms", "--comm python3"} {
		stdout, stderr, code := runStated(t, append([]string{"replay", recorded(none)}, strings.Fields(flags)...)...)
		if stdout != "" || code != 0 {
			t.Errorf("replay %s, of what nobody owns: exit code %d, %s%s", flags, code, stderr, stdout)
		}
	}
	both, _, _ := runStated(t, "replay", "--state", "close-wait", "--role", "server", recorded(&filter.Filter{}))
	stdout, stderr, code := runStated(t, "replay", "--state", "close-wait", recorded(&filter.Filter{Roles: []lifecycle.Role{lifecycle.RoleServer}}))
	if stdout != both || both == "" || code != 0 {
		t.Errorf("exit code %d: %s\n%s\nwant:\n%s", code, stderr, stdout, both)
	}
}

// TestCommand: the command's children are followed, nobody else is, and its
// exit code is ours.
func TestCommand(t *testing.T) {
	requireRoot(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // noise of another process
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
					c.Close()
				}
				if c, err := l.Accept(); err == nil {
					c.Close()
				}
			}
		}
	}()
	// bash connects by itself, in a grandchild
	stdout, stderr, code := runStated(t, "trace", "-o", "json", "--", "bash", "-c",
		"(bash -c 'exec 3<>/dev/tcp/127.0.0.1/"+port+"; exec 3>&-; true'); exit 7")
	close(stop)
	<-done
	if code != 7 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if n := strings.Count(stdout, "\n"); n != 1 {
		t.Errorf("%d connections, want the one of bash:\n%s", n, stdout)
	}
	if !regexp.MustCompile(`connections: 0 still open; ended: 1 [a-z ]+(; not gone yet: 1 [a-zA-Z0-9_ ]+)?\n`).MatchString(stderr) {
		t.Errorf("the summary counts others:\n%s", stderr)
	}
	var record map[string]any
	if err := json.Unmarshal([]byte(stdout), &record); err != nil || record["process.executable.name"] != "bash" || record["stated.connection.role"] != "client" {
		t.Errorf("%v: %s", err, stdout)
	}
}

func TestClosedPipeEndsQuietly(t *testing.T) {
	requireRoot(t)
	cmd := exec.Command(stated, "trace", "--events", "--for", "20s")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil || strings.Contains(stderr.String(), "pipe") {
				t.Errorf("%v: %s", err, stderr.String())
			}
			return
		case <-time.After(10 * time.Millisecond):
			churn(t, 1)
		}
	}
}

// TestCommandWithoutConnection: that a command connected to nothing is said, but not
// where a condition may have hidden what it did.
func TestCommandWithoutConnection(t *testing.T) {
	requireRoot(t)
	const none = "the command made no TCP connection that got as far as SYN_SENT"
	for _, tt := range []struct {
		args []string
		said bool
	}{
		{[]string{"trace", "--", "true"}, true},
		{[]string{"trace", "--port", "1", "--", "true"}, false},
		{[]string{"trace", "--", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/1; true"}, false},
	} {
		_, stderr, code := runStated(t, tt.args...)
		said := tt.said && strings.Contains(stderr, " 0 lost") // else it is not known
		if code != 0 || strings.Contains(stderr, none) != said {
			t.Errorf("%q: exit code %d: %s", tt.args, code, stderr)
		}
	}
}
