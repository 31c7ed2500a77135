// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAgentKilled: killed -9 under load and started again, twice, the agent
// delivers every record that reached the spool, and each file is whole.
func TestAgentKilled(t *testing.T) {
	requireRoot(t)
	load := newSpace(t)
	dir := t.TempDir()
	out, config := filepath.Join(dir, "out.jsonl"), filepath.Join(dir, "stated.yaml")
	writeConfig(t, config, fmt.Sprintf(`
filter: {netns: "%d"}
spool: {dir: %s/spool, segment_bytes: 65536, keep_bytes: 536870912, sync: 100ms}
sinks:
  - name: a
    records: [tcp.state_change, tcp.connection]
    batch_records: 100
    file: {path: %s}
`, load.inode, dir, out))
	for range 2 {
		before := lineCount(out)
		d := startDaemon(t, config)
		waitFor(t, "records", func() bool { return lineCount(out) > before+2000 })
		if err := d.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		d.end()
	}
	before := lineCount(out)
	d := startDaemon(t, config)
	waitFor(t, "records", func() bool { return lineCount(out) > before+2000 })
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}

	kept, holes := inSpool(t, dir+"/spool", 3)
	if _, _, told := delivered(t, out); told != holes {
		t.Errorf("%d records never reached the spool, and the sink was told of %d", holes, told)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := recordsOf(t, text, nil)
	validLines(t, printedSchema(t), string(text))
	twice := 0
	for uid := range kept {
		if got[uid] == 0 {
			t.Errorf("record %s reached the spool and not the sink", uid)
		}
		twice += max(0, got[uid]-1)
	}
	if len(kept) < 3000 {
		t.Errorf("only %d records", len(kept))
	}
	t.Logf("%d records of 3 runs, %d delivered twice", len(kept), twice)
}

// TestAgentBlocks: with on_full: block and a spool that nobody empties, the agent
// is alive, ends when it is told to, and says little.
func TestAgentBlocks(t *testing.T) {
	requireRoot(t)
	load := newSpace(t)
	dir := t.TempDir()
	writeConfig(t, dir+"/stated.yaml", fmt.Sprintf(`
filter: {netns: "%d"}
listen: %s/socket
drain: 1s
spool: {dir: %s/spool, segment_bytes: 4096, max_bytes: 16384, keep_bytes: 0, on_full: block}
sinks:
  - {name: down, records: [tcp.connection, tcp.state_change], http: {preset: ndjson, url: "http://127.0.0.1:1"}}
`, load.inode, dir, dir))
	d := startDaemon(t, dir+"/stated.yaml")
	full := regexp.MustCompile(`(?m)^stated_events_lost_total\{stage="ringbuf"\} [1-9]`)
	waitFor(t, "the kernel's buffer to overflow", func() bool {
		_, page := getUnix(t, dir+"/socket", "/metrics")
		return full.MatchString(page)
	})
	if status, text := getUnix(t, dir+"/socket", "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d %s", status, text)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	lines, err := d.last()
	if err != nil {
		t.Error(err)
	}
	if len(lines) > 20 {
		t.Errorf("it wrote %d lines", len(lines))
	}
}

// TestAgentEndsEarly: SIGTERM ends an agent that only begins, too. The fifo holds it
// where it reads its configuration until the signal has come.
func TestAgentEndsEarly(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/stated.yaml", 0o600); err != nil {
		t.Fatal(err)
	}
	d := launch(t, dir+"/stated.yaml")
	fifo, err := os.OpenFile(dir+"/stated.yaml", os.O_WRONLY, 0) // waits for the agent
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	waitFor(t, "the signal to be taken", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
		return err == nil && strings.Contains(string(status), "ShdPnd:\t0000000000000000")
	})
	fmt.Fprintf(fifo, "spool: {dir: %s/spool}\nsinks: [{name: a, file: {path: %s/out}}]\n", dir, dir)
	fifo.Close()
	if err := d.end(); err != nil {
		t.Error(err)
	}
}

// TestAgentLeaks: a leak becomes a record, once while it does not change.
func TestAgentLeaks(t *testing.T) {
	requireRoot(t)
	load := newSpace(t)
	load.name(t)
	dir := t.TempDir()
	writeConfig(t, dir+"/stated.yaml", fmt.Sprintf(`
filter: {netns: "%d"}
leaks: {every: 1s, min_age: 1ms}
spool: {dir: %s/spool}
sinks:
  - {name: leaks, records: [tcp.leak], file: {path: %s/leaks}}
  - {name: others, file: {path: %s/others}}
`, load.inode, dir, dir, dir))
	d := startDaemon(t, dir+"/stated.yaml")
	waitFor(t, "the leak", func() bool { return lineCount(dir+"/leaks") > 0 })
	load.quiet.Store(true)
	text, err := os.ReadFile(dir + "/leaks")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	recordsOf(t, text, func(r map[string]any) {
		if r["event.name"] != "tcp.leak" || r["process.pid"] == nil {
			t.Errorf("%v", r)
		}
		found = found || r["process.pid"] == float64(os.Getpid()) && r["network.connection.state"] == "close_wait"
	})
	if !found {
		t.Errorf("not ours: %s", text)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}
}

// TestAgentSystemd: it says when it is ready, keeps the watchdog quiet, and
// says when it stops.
func TestAgentSystemd(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", dir+"/notify")
	t.Setenv("WATCHDOG_USEC", "200000")
	writeConfig(t, dir+"/stated.yaml", fmt.Sprintf("spool: {dir: %s/spool}\n", dir))
	d := startDaemon(t, dir+"/stated.yaml")
	hears := func(want string) {
		t.Helper()
		socket.SetReadDeadline(time.Now().Add(time.Minute))
		buf := make([]byte, 100)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				t.Fatalf("systemd never heard %s: %v", want, err)
			}
			if string(buf[:n]) == want {
				return
			}
		}
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		hears(want)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	hears("STOPPING=1")
	if err := d.end(); err != nil {
		t.Error(err)
	}
}

// TestAgentPrivileges: no thread of the running agent can do more than it
// needs, nor gain it back; a reload goes on with that, and a file that root
// could write only by force is an error at the start.
func TestAgentPrivileges(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	config := dir + "/stated.yaml"
	base := fmt.Sprintf("spool: {dir: %s/spool}\nsinks: [{name: a, file: {path: %s/out}}", dir, dir)
	writeConfig(t, config, base+"]\n")
	d := startDaemon(t, config)
	writeConfig(t, config, base+fmt.Sprintf(", {name: b, file: {path: %s/out2}}]\n", dir))
	d.cmd.Process.Signal(syscall.SIGHUP)
	d.says(t, "configuration applied")
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.cmd.Process.Pid))
	if err != nil || len(threads) < 3 {
		t.Fatal(threads, err)
	}
	const needed = 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"CapInh:\t0000000000000000\n", fmt.Sprintf("CapPrm:\t%016x\n", needed), fmt.Sprintf("CapEff:\t%016x\n", needed),
			fmt.Sprintf("CapBnd:\t%016x\n", needed), "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(string(text), line) {
				t.Errorf("%s has no %q:\n%s", thread, line, text)
			}
		}
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}

	theirs := dir + "/theirs"
	if err := errors.Join(os.Mkdir(theirs, 0o755), os.Chown(theirs, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := runStated(t, "agent", "--set", "spool.dir="+dir+"/spool", "--set", "sinks=[{name: a, file: {path: "+theirs+"/out}}]")
	if code != 1 || !strings.Contains(stderr, "let it belong to root") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestAgentOwn: the agent's own connections to a collector make no records,
// which would make more of them, unless they are asked for.
func TestAgentOwn(t *testing.T) {
	requireRoot(t)
	for own, want := range map[bool]bool{false: false, true: true} {
		dir := t.TempDir()
		var posts atomic.Int32
		collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			posts.Add(1)
		}))
		out, port := dir+"/out", collector.Listener.Addr().(*net.TCPAddr).Port
		writeConfig(t, dir+"/stated.yaml", fmt.Sprintf(`
filter: {own: %t, ports: [%d]}
spool: {dir: %s/spool}
sinks:
  - {name: file, records: [tcp.connection, tcp.state_change], file: {path: %s}}
  - {name: http, records: [tcp.connection, tcp.state_change], http: {preset: ndjson, url: %s}}
`, own, port, dir, out, collector.URL))
		d := startDaemon(t, dir+"/stated.yaml")
		if r, err := http.Get(collector.URL); err != nil { // something to begin with: it is posted
			t.Fatal(err)
		} else {
			r.Body.Close()
		}
		waitFor(t, "posts", func() bool { return posts.Load() > 3 })
		d.cmd.Process.Signal(syscall.SIGTERM)
		if err := d.end(); err != nil {
			t.Fatal(err)
		}
		collector.Close()
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		got := false
		recordsOf(t, text, func(r map[string]any) { got = got || r["process.pid"] == float64(d.cmd.Process.Pid) })
		if got != want {
			t.Errorf("own: %t: records of its own: %t", own, got)
		}
	}
}

// getUnix asks an HTTP server on a unix socket.
func getUnix(t *testing.T, socket, path string) (status int, body string) {
	t.Helper()
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	r, err := client.Get("http://stated" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

// TestAgentMetrics: the running agent tells what it sees, and answers only on
// its socket.
func TestAgentMetrics(t *testing.T) {
	requireRoot(t)
	newSpace(t)
	dir := t.TempDir()
	socket := dir + "/metrics"
	writeConfig(t, dir+"/stated.yaml", fmt.Sprintf("listen: %s\nleaks: {every: 1s, min_age: 1ms}\nspool: {dir: %s/spool}\nsinks: [{name: a, file: {path: %s/out}}]\n", socket, dir, dir))
	leakInto(t, 3)
	d := startDaemon(t, dir+"/stated.yaml")
	get := func(path string) (int, string) { return getUnix(t, socket, path) }
	var text string
	acked := regexp.MustCompile(`(?m)^stated_sink_acked_total\{sink="a"\} [1-9]`)
	self, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	leaked := regexp.MustCompile(`(?m)^stated_leak_sockets\{executable="` + regexp.QuoteMeta(strings.TrimSpace(string(self))) + `",state="close_wait"\} ([3-9]|\d\d)`)
	waitFor(t, "acknowledged records, and what leaks", func() bool {
		_, text = get("/metrics")
		return acked.MatchString(text) && leaked.MatchString(text)
	})
	for _, want := range []string{
		`stated_tcp_state_transitions_total{from="syn_sent",to="established"} `, `stated_tcp_connections{family="ipv4",role="listener",state="listen"} `,
		`stated_tcp_state_duration_seconds_count{state="established"} `, `stated_events_lost_total{stage="ringbuf"} `,
		`stated_sink_up{sink="a"} 1`, `stated_event_latency_seconds_count{sink="a"} `,
		`stated_reconcile_duration_seconds_count `, `stated_bpf_program_missed_total{program="st_set_state"} `, `stated_spool_oldest_age_seconds `,
		`stated_enrichment_misses_total{kind="process"} `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not on the page", want)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, text := get(path); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil && (os.Getenv("STATED_KERNEL_TEST") != "" || !errors.Is(err, exec.ErrNotFound)) {
		t.Errorf("promtool (Debian: prometheus) check metrics: %v: %s", err, out)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Error(err)
	}
}
