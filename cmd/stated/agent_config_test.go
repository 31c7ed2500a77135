// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/stated-tcp/stated/pkg/agent"
)

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
