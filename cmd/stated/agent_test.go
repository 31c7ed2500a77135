// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
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
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/agent"
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

// TestAgentReload: a sink that SIGHUP adds gets what is in the spool, one that
// it changes goes on where it was, and file sinks open their files anew.
func TestAgentReload(t *testing.T) {
	requireRoot(t)
	load := newSpace(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "stated.yaml")
	base := fmt.Sprintf(`
filter: {netns: "%d"}
spool: {dir: %s/spool, keep_bytes: 536870912, sync: never}
sinks:
  - {name: same, file: {path: %s/same}}
`, load.inode, dir, dir)
	writeConfig(t, config, base+fmt.Sprintf("  - {name: changed, file: {path: %s/changed1}}\n", dir))
	d := startDaemon(t, config)
	waitFor(t, "records", func() bool { return lineCount(dir+"/changed1") > 100 })
	if err := os.Rename(dir+"/same", dir+"/same1"); err != nil {
		t.Fatal(err)
	}
	writeConfig(t, config, base+"nonsense: 1\n")
	d.cmd.Process.Signal(syscall.SIGHUP)
	d.says(t, "the old one goes on")
	writeConfig(t, config, base+fmt.Sprintf("  - {name: changed, file: {path: %s/changed2}}\n  - {name: added, file: {path: %s/added, zstd: true}}\n", dir, dir))
	d.cmd.Process.Signal(syscall.SIGHUP)
	d.says(t, "configuration applied")
	waitFor(t, "records", func() bool { return lineCount(dir+"/changed2") > 100 && lineCount(dir+"/same") > 100 })
	load.quiet.Store(true)
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}
	kept := recordsOf(t, spoolLines(t, dir+"/spool"), nil)
	read := func(names ...string) (all []byte) {
		for _, name := range names {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, text...)
		}
		return all
	}
	dec, err := zstd.NewReader(bytes.NewReader(read("added")))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	added, err := io.ReadAll(dec)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"same": read("same1", "same"), "changed": read("changed1", "changed2"), "added": added} {
		got := recordsOf(t, text, func(r map[string]any) {
			if r["event.name"] != "tcp.connection" {
				t.Fatalf("%s got a %s", name, r["event.name"])
			}
		})
		if len(got) != len(kept) {
			t.Errorf("%s has %d records, the spool %d", name, len(got), len(kept))
		}
		for uid, n := range got {
			if n != 1 || kept[uid] != 1 {
				t.Fatalf("%s has %s %d times, the spool %d times", name, uid, n, kept[uid])
			}
		}
	}
}

// TestAgentReloadBad: a sink that a reload makes wrong goes on as it was, with its
// backlog, and the log says why; so it does when its collector is not there.
func TestAgentReloadBad(t *testing.T) {
	requireRoot(t)
	load := newSpace(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "stated.yaml")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	base := fmt.Sprintf("filter: {netns: \"%d\"}\nlisten: %s/socket\nspool: {dir: %s/spool, segment_bytes: 4096, keep_bytes: 0}\nsinks:\n  - {name: well, file: {path: %s/well}}\n", load.inode, dir, dir, dir)
	down := func(more string) string {
		return base + fmt.Sprintf("  - {name: down, http: {preset: ndjson, url: http://%s%s}}\n", address, more)
	}
	writeConfig(t, config, down(""))
	d := startDaemon(t, config)
	d.says(t, "connection refused")
	waitFor(t, "records", func() bool { return lineCount(dir+"/well") > 2000 })
	writeConfig(t, config, down(", token_file: /nope"))
	d.cmd.Process.Signal(syscall.SIGHUP)
	d.says(t, "/nope")
	load.quiet.Store(true)

	var got atomic.Int32
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	collector := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(bytes.NewReader(text))
			if err != nil {
				return
			}
			text, _ = io.ReadAll(z)
		}
		got.Add(int32(bytes.Count(text, []byte{'\n'})))
	})}
	go collector.Serve(l)
	defer collector.Close()
	waitFor(t, "the whole backlog", func() bool { return int(got.Load()) >= lineCount(dir+"/well") })
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}
	if n := lineCount(dir + "/well"); int(got.Load()) != n {
		t.Errorf("%d records, the sink that is well has %d", got.Load(), n)
	}
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
	lines := 0
	for range d.stderr {
		lines++
	}
	if err := d.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if lines > 20 {
		t.Errorf("it wrote %d lines", lines)
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
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
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

// directive returns what the unit says of it, in order.
func directive(t *testing.T, name string) (values []string) {
	t.Helper()
	unit, err := os.ReadFile("dist/stated.service")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(unit)) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values
}

// TestExampleUnit: a reload checks before it tells the agent, what the agent is
// started with; what does not pass is not started again, while what crashes is; and
// the default drain fits into the time that systemd gives.
func TestExampleUnit(t *testing.T) {
	start, reload := directive(t, "ExecStart"), directive(t, "ExecReload")
	if len(start) != 1 || len(reload) != 2 || reload[0] != start[0]+" --check-config" || !strings.Contains(reload[1], "kill -HUP") {
		t.Errorf("ExecStart=%q ExecReload=%q", start, reload)
	}
	// systemd.service(5): it is of the main process, and no other may fail first.
	prevent, first := directive(t, "RestartPreventExitStatus"), directive(t, "ExecStartPre")
	if want := fmt.Sprint(exitUsage, exitUnusable); len(prevent) != 1 || prevent[0] != want || len(first) > 0 {
		t.Errorf("RestartPreventExitStatus=%q, want %s; ExecStartPre=%q", prevent, want, first)
	}
	if environment := directive(t, "Environment"); !slices.Contains(environment, "GOTRACEBACK=crash") {
		t.Errorf("Environment=%q: a crash, which is to be started again, ends with 2", environment)
	}
	stop, err := strconv.Atoi(strings.Join(directive(t, "TimeoutStopSec"), ""))
	if drain := agent.DefaultConfig().Drain; err != nil || time.Duration(stop)*time.Second <= 2*drain {
		t.Errorf("TimeoutStopSec=%d with a drain of %v: %v", stop, drain, err)
	}
}

// sinks configures one of each.
func sinks(kinds ...string) string {
	var b strings.Builder
	b.WriteString("sinks:\n")
	for i, kind := range kinds {
		fmt.Fprintf(&b, "  - {name: s%d, %s}\n", i, kind)
	}
	return b.String()
}

func TestAgentConfig(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	for _, tc := range []struct {
		yaml, set, env string
		code           int
		says           string
	}{
		{"", "", "", 0, "no sinks"},
		{"spool:\n  dri: /x\n", "", "", 2, `line 2: unknown key "dri"`},
		{"\n\nmax_connections: many\n", "", "", 2, "line 3"},
		{"spool: {sync: sometimes}\n", "", "", 2, "spool.sync"},
		{"spool: {max_bytes: 10}\n", "", "", 2, "four times segment_bytes"},
		{"sinks: [{name: a}]\n", "", "", 2, "exactly one"},
		{"sinks: [{name: a, stdout: {}, file: {path: /x}}]\n", "", "", 2, "exactly one"},
		{"sinks: [{name: A, stdout: {}}]\n", "", "", 2, "lower case"},
		{"sinks: [{name: a, stdout: {}}, {name: a, stdout: {}}]\n", "", "", 2, "twice"},
		{"sinks: [{name: a, stdout: {}, records: [tcp.syn]}]\n", "", "", 2, "tcp.state_change"},
		{"sinks: [{name: a, stdout: {}, sample: {rate: 2}}]\n", "", "", 2, "rate"},
		{"filter: {ports: [99999]}\n", "", "", 2, "1 to 65535"},
		{"a: [\n", "", "", 2, "line"},
		{"spool: {sync: never}\n", "spool.sync=zz", "", 2, `"zz"`},
		{"spool: {sync: zz}\n", "spool.sync=1s", "STATED_SPOOL_SYNC=yy", 0, ""},
		{"", "", "STATED_SPOOL_ON_FULL=explode", 2, "on_full"},
		{"", "", "STATED_SPOL_DIR=/x", 0, "STATED_SPOL_DIR (STATED_SPOOL_DIR?)"},
		{"", "spool.nothing=1", "", 2, "unknown key"},
		{"spool:\n  max_bytes: 1GB\n", "", "", 2, `line 2: "1GB" is not a whole number`},
		{"", "drain=soon", "", 2, `setting "drain=soon": "soon" is not a time like 10s`},
		{"listen: [1]\nspool: 3\nsinks: x\n", "", "", 2, `line 1: a list is not a word; line 2: "3" is not a section; line 3: "x" is not a list`},
		{"sinks:\n  - {name: s0, stdout: {}, records: [foo], format: xml}\n", "", "", 2, "sink s0: format: \"xml\" is none of"},
		{"ring_bytes: 1000000\n", "", "", 2, "ring_bytes: 1000000: a power of two"},
		{"ring_bytes: 2048\n", "", "", 2, "ring_bytes: 2048: a power of two"},
		{"listen: 127.0.0.1:9465\n", "", "", 0, ""},
		{"listen: '[::1]:9465'\n", "", "", 0, ""},
		{"listen: /run/stated/metrics\n", "", "", 0, ""},
		{"listen: 0.0.0.0:9465\n", "", "", 2, "want a loopback address and port"},
		{"listen: :9465\n", "", "", 2, "want a loopback address and port"},
		{"listen: metrics.sock\n", "", "", 2, "or the path of a unix socket"},
		{"spool: {dir: spool}\n", "", "", 2, `spool.dir: "spool": want an absolute path`},
		{"filter: {netns: /run/netns/not-yet}\n", "", "", 1, "not-yet"},
		{sinks("file: {path: /nowhere/x}"), "", "", 0, "right: 1 sink"},
		{sinks("file: {path: /run/not/yet/there}"), "", "", 0, "right: 1 sink"},
		{sinks("file: {path: records.jsonl}"), "", "", 2, `sink s0: file: path: "records.jsonl": want an absolute path`},
		{sinks("file: {}"), "", "", 2, "want an absolute path"},
		{sinks("file: {path: /tmp}"), "", "", 2, "/tmp is no regular file"},
		{sinks("file: {path: /nowhere/x}", "file: {path: /nowhere/../nowhere//x}"), "", "", 2, "sink s1: file: path: /nowhere/x is the file of sink s0"},
		{"spool: {dir: /nowhere/s/}\n" + sinks("file: {path: /nowhere/s/x/../y}"), "", "", 2, "sink s0: file: path: /nowhere/s/y is in the spool"},
		{"spool: {dir: /nowhere/s}\n" + sinks("file: {path: /nowhere/s2}"), "", "", 0, ""},
		{sinks("http: {preset: bogus, url: http://localhost}"), "", "", 2, `sink s0: http: preset "bogus"`},
		{sinks("http: {preset: ndjson, url: not a url}"), "", "", 2, "want http://host or https://host"},
		{sinks("http: {preset: ndjson, url: https://localhost, tls: {ca_file: /not/there.pem}}"), "", "", 1, "/not/there.pem: no such file"},
		{sinks("otlp: {protocol: grpc, url: http://localhost:1}"), "", "", 0, ""},
		{sinks("otlp: {protocol: smtp, url: http://localhost}"), "", "", 2, "want http or grpc"},
		{sinks("syslog: {network: bogus, address: localhost:514}"), "", "", 2, `network "bogus"`},
		{sinks("forward: {address: localhost}"), "", "", 2, "want host:port"},
		{sinks("journald: {socket: x}"), "", "", 2, "want an absolute path"},
	} {
		writeConfig(t, bad, tc.yaml)
		args := []string{"agent", "--check-config", "--config", bad}
		if tc.set != "" {
			args = append(args, "--set", tc.set)
		}
		cmd := exec.Command(stated, args...)
		if tc.env != "" {
			cmd.Env = append(os.Environ(), tc.env)
		}
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tc.code || !strings.Contains(string(out), tc.says) {
			t.Errorf("%+v: exit code %d: %s", tc, code, out)
		}
	}
}
