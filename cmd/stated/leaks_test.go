// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// leakInto plants n sockets that this process should close and does not, and
// returns the port they came in at.
func leakInto(t *testing.T, n int) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close() })
		c.Close()
	}
	return l.Addr().(*net.TCPAddr).Port
}

// eventually runs stated until it says what is wanted, and returns its output:
// the last FIN may still be on its way.
func eventually(t *testing.T, code int, args ...string) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		out, stderr, got := runStated(t, args...)
		if got == code {
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("stated %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, stderr)
		}
	}
}

func TestLeaks(t *testing.T) {
	requireRoot(t)
	port := strconv.Itoa(leakInto(t, 3))
	for _, way := range []string{"--classic=false", "--classic"} {
		t.Run(way, func(t *testing.T) { testLeaks(t, port, way) })
	}
}

func testLeaks(t *testing.T, port, way string) {
	out := eventually(t, 4, "leaks", way, "--lport", port, "--min-age", "1ms", "--max", "2", "-o", "json")
	var leak struct {
		Sockets int    `json:"stated.leak.sockets"`
		PID     int    `json:"process.pid"`
		Verdict string `json:"stated.leak.verdict"`
		Path    string `json:"process.executable.path"`
		Used    int    `json:"stated.leak.fd.used"`
		Port    int    `json:"network.local.port"`
	}
	if err := json.Unmarshal([]byte(out), &leak); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	exe, _ := os.Executable()
	if leak.Sockets != 3 || leak.PID != os.Getpid() || leak.Verdict != "eof_unread" || leak.Path != exe || leak.Used < 3 || strconv.Itoa(leak.Port) != port {
		t.Errorf("%+v", leak)
	}
	if text := eventually(t, 0, "leaks", way, "--lport", port, "--min-age", "1ms", "--max", "3"); !strings.Contains(text, "3 sockets leaked") {
		t.Errorf("tolerated, but not shown:\n%s", text)
	}
	if each := eventually(t, 4, "leaks", way, "--lport", port, "--min-age", "1ms", "--by", "none", "-o", "json"); strings.Count(each, "\n") != 3 {
		t.Errorf("not a record for each socket:\n%s", each)
	}
	if text := eventually(t, 0, "leaks", way, "--lport", port, "--min-age", "1h"); !strings.HasPrefix(text, "no leaks") {
		t.Errorf("too young, but found:\n%s", text)
	}
	if text := eventually(t, 0, "leaks", way, "--lport", port, "--min-age", "1ms", "--pid", "1"); !strings.HasPrefix(text, "no leaks") {
		t.Errorf("of another process, but found:\n%s", text)
	}
}

// TestLeaksWatched: with events, ages are exact and growth is told.
func TestLeaksWatched(t *testing.T) {
	requireRoot(t)
	port := leakInto(t, 1)
	cmd := exec.Command(stated, "leaks", "--for", "60s", "--lport", strconv.Itoa(port), "--min-age", "1ms", "-o", "json")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	if n, err := stderr.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "watching") {
		t.Fatalf("%q %v", buf[:n], err)
	}
	again := leakInto(t, 1) // another port: not asked for
	a, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", again))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	time.Sleep(1100 * time.Millisecond) // growth is told from a second on
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 4 {
		t.Fatalf("exit code %d: %s", code, out.String())
	}
	if !strings.Contains(out.String(), `"stated.leak.sockets":1,`) || !strings.Contains(out.String(), `"stated.leak.growth_per_hour":0.0`) {
		t.Error(out.String())
	}
}

// TestLeaksAgain: in a file, each look begins with its time.
func TestLeaksAgain(t *testing.T) {
	requireRoot(t)
	cmd := exec.Command(stated, "leaks", "--watch", "--lport", strconv.Itoa(leakInto(t, 1)), "--min-age", "1ms", "--max", "1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	var times []time.Time
	for scan := bufio.NewScanner(out); len(times) < 2 && scan.Scan(); {
		at, isTime := strings.CutPrefix(strings.TrimSuffix(scan.Text(), " --"), "-- looked at ")
		if !isTime {
			if len(times) == 0 {
				t.Fatalf("it begins with %q", scan.Text())
			}
			continue
		}
		when, err := time.Parse("2006-01-02 15:04:05 -07:00", at)
		if since := time.Since(when); err != nil || since < 0 || since > time.Minute {
			t.Errorf("%q: %v ago, %v", at, since, err)
		}
		times = append(times, when)
	}
	if len(times) < 2 || !times[1].After(times[0]) {
		t.Errorf("looked at %v", times)
	}
}

// ssLine is what `ss -tanpe` says of a socket.
var (
	ssCookie = regexp.MustCompile(`\bsk:([0-9a-f]+)`)
	ssPID    = regexp.MustCompile(`pid=(\d+),fd=(\d+)`)
)

var ssStates = map[string]string{
	"ESTAB": "established", "SYN-SENT": "syn_sent", "SYN-RECV": "syn_received", "FIN-WAIT-1": "fin_wait_1", "FIN-WAIT-2": "fin_wait_2",
	"TIME-WAIT": "time_wait", "CLOSE-WAIT": "close_wait", "LAST-ACK": "last_ack", "LISTEN": "listen", "CLOSING": "closing",
}

// TestLsAgreesWithSs: the same sockets, states and holders as ss has, in a
// network namespace where nothing else happens.
func TestLsAgreesWithSs(t *testing.T) {
	requireRoot(t)
	script := `ip link set lo up
python3 -c '
import socket, os, time
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(9)
keep = [l]
def pair():
    c = socket.create_connection(l.getsockname()); a, _ = l.accept(); keep.extend((c, a)); return c, a
pair()
c, a = pair(); c.close()
c, a = pair(); c.shutdown(1)
c, a = pair(); c.send(b"unread")
c, a = pair(); c.close(); a.close()
c = socket.create_connection(l.getsockname()); keep.append(c)
six = socket.socket(socket.AF_INET6); six.bind(("::", 0)); six.listen(1); keep.append(six)
if os.fork() == 0: time.sleep(600)
print(flush=True); time.sleep(600)' &
exec sleep 600`
	cmd := exec.Command("unshare", "-n", "bash", "-c", script)
	ready, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	t.Cleanup(func() {
		exec.Command("pkill", "-KILL", "--ns", pid, "--nslist", "net", ".").Run()
		cmd.Wait()
	})
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		t.Fatalf("the load did not start: %v", err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		theirs, ours, classic := ssSockets(t, pid), lsSockets(t, pid), lsSockets(t, pid, "--classic")
		if slices.Equal(theirs, ours) && slices.Equal(theirs, classic) && len(ours) >= 10 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("ss has\n%s\nand ls\n%s\nand by sock_diag\n%s", strings.Join(theirs, "\n"), strings.Join(ours, "\n"), strings.Join(classic, "\n"))
		}
	}
}

func ssSockets(t *testing.T, pid string) (list []string) {
	t.Helper()
	out, err := exec.Command("nsenter", "-n", "-t", pid, "ss", "-tanpeHO").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		cookie := ssCookie.FindStringSubmatch(line)
		if len(f) < 5 || ssStates[f[0]] == "" || cookie == nil {
			t.Fatalf("cannot read %q", line)
		}
		var holders []string
		for _, m := range ssPID.FindAllStringSubmatch(line, -1) {
			holders = append(holders, m[1]+"/"+m[2])
		}
		id, _ := strconv.ParseUint(cookie[1], 16, 64)
		queues := f[1] + " " + f[2]
		switch {
		case f[0] == "TIME-WAIT":
			queues = "0 0"
		case f[0] == "CLOSE-WAIT" && f[1] == "1":
			queues = "0 " + f[2] // the FIN, which ss counts
		}
		slices.Sort(holders)
		list = append(list, fmt.Sprint(id, " ", ssStates[f[0]], " ", queues, " ", holders))
	}
	slices.Sort(list)
	return list
}

func lsSockets(t *testing.T, pid string, flags ...string) (list []string) {
	t.Helper()
	out, stderr, code := runStated(t, append([]string{"ls", "--all", "-o", "json", "--netns", "/proc/" + pid + "/ns/net"}, flags...)...)
	if code != 0 {
		t.Fatal(stderr)
	}
	for line := range strings.Lines(out) {
		var s struct {
			Cookie  string `json:"stated.socket.cookie"`
			State   string `json:"network.connection.state"`
			RX      int    `json:"stated.tcp.rx_queue_bytes"`
			TX      int    `json:"stated.tcp.tx_queue_bytes"`
			Queue   int    `json:"stated.listener.queue"`
			Limit   int    `json:"stated.listener.queue_limit"`
			Holders []struct {
				PID int   `json:"pid"`
				FDs []int `json:"fds"`
			} `json:"stated.socket.holders"`
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		var holders []string
		for _, h := range s.Holders {
			for _, fd := range h.FDs {
				holders = append(holders, fmt.Sprintf("%d/%d", h.PID, fd))
			}
		}
		slices.Sort(holders)
		list = append(list, fmt.Sprint(s.Cookie, " ", s.State, " ", s.RX+s.Queue, " ", s.TX+s.Limit, " ", holders))
	}
	slices.Sort(list)
	return list
}

// TestCheck: every hook has a row, and each tier says why what is missing is.
func TestCheck(t *testing.T) {
	requireRoot(t)
	out, stderr, code := runStated(t, "check", "--classic")
	if code != 0 || !strings.Contains(out, "ok       sock_diag\n") || strings.Contains(out, "it is known from its next") {
		t.Errorf("%s%s", out, stderr)
	}
	out, stderr, code = runStated(t, "check")
	if code != 0 || strings.Contains(out, "sock_diag") {
		t.Fatal(stderr, out)
	}
	for _, word := range []string{"core\n", "causes\n", "scan\n", "trampolines\n", "stated can work here"} {
		if !strings.Contains(out, word) {
			t.Errorf("no %q in\n%s", word, out)
		}
	}
	if strings.Contains(out, "missing") != strings.Contains(out, "why: ") {
		t.Errorf("something is missing, and nothing says why:\n%s", out)
	}
	if strings.Contains(out, "ok       tracepoint syscalls/") != strings.Contains(out, "in each system call") {
		t.Errorf("what a tracepoint of a system call costs the others is not told where it is used, or where it is not:\n%s", out)
	}
}
