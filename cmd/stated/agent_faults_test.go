// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

// TestAgentFaults has collectors of every kind fail in every way, all at once,
// over some ten minutes' worth of traffic, with a reload and a kill of the agent
// amid it. One sink is well, and must not notice. In the end each collector has
// each record that reached the spool, but for those that it refused by name.
func TestAgentFaults(t *testing.T) {
	requireRoot(t)
	sinktest.Collectors(t)
	load := newSpace(t)
	dir := t.TempDir()
	all := patients(t, dir)
	witness, config := filepath.Join(dir, "witness.jsonl"), filepath.Join(dir, "stated.yaml")
	text := fmt.Sprintf(`
filter: {netns: "%d"}
drain: 60s
spool: {dir: %s/spool, max_bytes: 4294967296, keep_bytes: 2147483648}
sinks:
  - {name: witness, records: [tcp.connection, tcp.state_change], file: {path: %s}}
`, load.inode, dir, witness)
	for i, s := range all {
		text += fmt.Sprintf("  - {name: s%d, %s}\n", i, s.config)
	}
	writeConfig(t, config, text)
	d := startDaemon(t, config)
	for _, s := range all {
		waitFor(t, "records at "+s.name, func() bool { return len(s.stored()) > 0 })
	}

	lines := &lineCounter{path: witness}
	memory := 0
	for phase := range 4 {
		for _, s := range all {
			s.suffer(phase)
		}
		before := lines.count(t)
		waitFor(t, "the sink that is well", func() bool { return lines.count(t) > before+15_000 })
		memory = max(memory, residentKB(t, d.cmd.Process.Pid))
		switch phase {
		case 1:
			d.cmd.Process.Signal(syscall.SIGHUP)
			d.says(t, "configuration applied")
		case 2:
			d.cmd.Process.Kill()
			d.end()
			d = startDaemon(t, config)
		}
	}
	for _, s := range all {
		s.heal()
	}
	before := lines.count(t)
	waitFor(t, "the sink that is well", func() bool { return lines.count(t) > before+5_000 })
	load.quiet.Store(true)
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}

	kept, holes := inSpool(t, dir+"/spool", 2)
	if _, _, told := delivered(t, witness); told != holes {
		t.Errorf("%d records never reached the spool, and its sink was told of %d", holes, told)
	}
	t.Logf("%d records of 2 runs reached the spool; the agent took %d MB at most", len(kept), memory>>10)
	if memory > 200<<10 {
		t.Errorf("%d MB", memory>>10)
	}
	for i, s := range append(all, &ill{name: "well", config: "tcp.state_change", stored: func() map[string]int { return sinktest.UIDs(t, witness) }}) {
		got := s.stored()
		rejected := sinktest.UIDs(t, fmt.Sprintf("%s/spool/s%d.rejected.jsonl", dir, i))
		lost, twice, wanted := 0, 0, 0
		for uid, event := range kept {
			if event == "tcp.state_change" && !strings.Contains(s.config, event) {
				continue
			}
			wanted++
			if got[uid] == 0 && rejected[uid] == 0 {
				lost++
			}
			twice += max(0, got[uid]-1)
		}
		t.Logf("%-25s %6d records: %d lost, %d refused, %d delivered twice", s.name, wanted, lost, len(rejected), twice)
		if lost > 0 || wanted == 0 {
			t.Errorf("%s: %d lost", s.name, lost)
		}
		for uid := range rejected {
			if s.may == nil || !s.may(uid) {
				t.Errorf("%s: %s is among the rejected", s.name, uid)
			}
		}
		if s.may != nil && len(rejected) == 0 {
			t.Errorf("%s: it refused nothing", s.name)
		}
	}
}

// spooled is what the tests ask of records.
type spooled struct {
	UID     string `json:"log.record.uid"`
	Event   string `json:"event.name"`
	Run     string `json:"stated.run.id"`
	Seq     int    `json:"stated.seq"`
	Stage   string `json:"stated.gap.stage"`
	Missing int    `json:"stated.gap.records"`
}

func eachRecord(t *testing.T, lines iter.Seq[[]byte], do func(r spooled)) {
	t.Helper()
	for line := range lines {
		var r spooled
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		do(r)
	}
}

// inSpool returns the event of each record that the spool of so many runs
// holds, by uid, and how many are missing there.
func inSpool(t *testing.T, dir string, runs int) (kept map[string]string, holes int) {
	t.Helper()
	kept = make(map[string]string)
	last := make(map[string]int)
	eachRecord(t, bytes.Lines(spoolLines(t, dir)), func(r spooled) {
		if r.Seq <= last[r.Run] {
			t.Errorf("run %s: record %v follows %v", r.Run, r.Seq, last[r.Run])
		}
		holes += r.Seq - last[r.Run] - 1
		last[r.Run] = r.Seq
		kept[r.UID] = r.Event
	})
	if len(last) != runs {
		t.Errorf("the spool has records of %d runs, want %d", len(last), runs)
	}
	return kept, holes
}

// delivered is what a sink has in a file of records: how many different ones,
// the last one's number, and how many it was told to be missing. What was told
// before and after a kill of the agent counts once.
func delivered(t *testing.T, path string) (records, last, missing int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	eachRecord(t, sinktest.WholeLines(text), func(r spooled) {
		id := r.UID
		if r.Stage == "spool" {
			id = r.UID[strings.LastIndexByte(r.UID, '-'):] // its place in the spool
		}
		switch {
		case seen[id]:
		case r.Stage == "spool":
			missing += r.Missing
		default:
			records++
			last = max(last, r.Seq)
		}
		seen[id] = true
	})
	return records, last, missing
}

// TestAgentSpoolFull: a collector that is down for longer than the spool can
// hold, and a spool whose disk is full, cost records; every sink is told of each
// one that it misses, and the sink that is well misses none for the other's sake.
func TestAgentSpoolFull(t *testing.T) {
	requireRoot(t)
	sinktest.Collectors(t)
	load := newSpace(t)
	dir := t.TempDir()
	disk := newDisk(t, filepath.Join(dir, "disk"), 64<<20)
	relp := sinktest.StartRsyslog(t, docs, sinktest.NewAuthority(t))
	well := filepath.Join(dir, "well.jsonl")
	writeConfig(t, dir+"/stated.yaml", fmt.Sprintf(`
filter: {netns: "%d"}
drain: 60s
listen: %s/socket
spool: {dir: %s/spool, segment_bytes: 65536, max_bytes: 524288, keep_bytes: 0}
sinks:
  - {name: well, records: [tcp.connection, tcp.state_change], file: {path: %s}}
  - {name: down, records: [tcp.connection, tcp.state_change], syslog: {network: relp, address: %s}}
`, load.inode, dir, disk.dir, well, relp.Ports["relp"]))
	d := startDaemon(t, dir+"/stated.yaml")
	waitFor(t, "records", func() bool { return len(sinktest.UIDs(t, relp.Out)) > 0 })
	lines := &lineCounter{path: well}
	more := func(n int) {
		t.Helper()
		before := lines.count(t)
		waitFor(t, "the sink that is well", func() bool {
			// where the machine is slow, it must not fall behind by all that the spool holds
			load.quiet.Store(backlog(t, dir+"/socket", "well") > 500)
			return lines.count(t) > before+n
		})
		load.quiet.Store(false)
	}

	relp.Kill()
	more(20_000) // ten times what the spool holds
	if _, last, missing := delivered(t, well); missing != 0 {
		t.Errorf("the sink that is well misses %d of %d for the sake of the other", missing, last)
	}
	disk.fill()
	d.says(t, "the spool takes no records")
	if status, _ := getUnix(t, dir+"/socket", "/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %d", status)
	}
	lost := regexp.MustCompile(`(?m)^stated_events_lost_total\{stage="spool"\} [1-9]`)
	waitFor(t, "what waits in memory to be too much", func() bool {
		_, page := getUnix(t, dir+"/socket", "/metrics")
		return lost.MatchString(page)
	})
	disk.free()
	d.says(t, "the spool works again")
	relp.Start(t)
	more(5_000)
	load.quiet.Store(true)
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}
	_, made, _ := delivered(t, well)
	for name, path := range map[string]string{"well": well, "down": relp.Out} {
		records, last, missing := delivered(t, path)
		t.Logf("%s has %d records and was told that %d are missing: %d of %d", name, records, missing, records+missing, made)
		if last != made || records+missing != made || missing == 0 {
			t.Errorf("%s: the last one is %d", name, last)
		}
	}
}

// backlog is how many records in the spool a sink has not taken yet.
func backlog(t *testing.T, socket, sink string) (n float64) {
	t.Helper()
	_, page := getUnix(t, socket, "/metrics")
	_, rest, _ := strings.Cut(page, "stated_sink_backlog_records{sink=\""+sink+"\"} ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatalf("no backlog of %s: %v", sink, err)
	}
	return n
}

// lineCounter counts the lines of a file that grows, each once.
type lineCounter struct {
	path  string
	at    int64
	lines int
}

func (c *lineCounter) count(t *testing.T) int {
	t.Helper()
	f, err := os.Open(c.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.ReadAt(buf, c.at)
		c.at += int64(n)
		for _, b := range buf[:n] {
			if b == '\n' {
				c.lines++
			}
		}
		if err != nil {
			return c.lines
		}
	}
}

// residentKB is VmRSS of /proc/PID/status.
func residentKB(t *testing.T, pid int) (kb int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}
