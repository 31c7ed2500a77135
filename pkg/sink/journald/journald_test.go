// SPDX-License-Identifier: Apache-2.0

package journald

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/flat"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

func listen(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// receive reads one entry, from the datagram or the file that came with it.
func receive(t *testing.T, conn *net.UnixConn) (entry map[string]string, byFile bool) {
	t.Helper()
	buf, oob := make([]byte, 1<<20), make([]byte, 128)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	body := buf[:n]
	if oobn > 0 {
		byFile = true
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fds[0]), "entry")
		defer f.Close()
		if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_WRITE == 0 {
			t.Errorf("seals %#x, %v", seals, err)
		}
		if body, err = io.ReadAll(io.NewSectionReader(f, 0, 1<<30)); err != nil {
			t.Fatal(err)
		}
	}
	entry = map[string]string{}
	for in := bufio.NewReader(bytes.NewReader(body)); ; {
		line, err := in.ReadString('\n')
		if err == io.EOF && line == "" {
			return entry, byFile
		}
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			var size uint64
			binary.Read(in, binary.LittleEndian, &size)
			b := make([]byte, size+1)
			if _, err := io.ReadFull(in, b); err != nil || b[size] != '\n' {
				t.Fatalf("%s: %v", name, err)
			}
			value = string(b[:size])
		}
		if len(name) > 64 || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			t.Errorf("no name of a field: %q", name)
		}
		entry[name] = value
	}
}

// fields is what the journal must have of a record.
func fields(t *testing.T, r sink.Record) map[string]string {
	t.Helper()
	want := map[string]string{"SYSLOG_IDENTIFIER": "stated", "MESSAGE_ID": messageIDs[r.Event], "PRIORITY": map[int]string{9: "6", 13: "4", 17: "3"}[r.Severity]}
	s := flat.Scan(r.Line)
	for s.Next() {
		name := strings.NewReplacer(".", "_").Replace(strings.ToUpper(strings.TrimPrefix(string(s.Key), "stated.")))
		if name != "MESSAGE" {
			name = "STATED_" + name
		}
		want[name] = string(s.Value.Text(nil))
	}
	return want
}

func TestFakeSocket(t *testing.T) {
	sinktest.WatchLeaks(t)
	path := filepath.Join(t.TempDir(), "socket")
	conn := listen(t, path)
	s, err := New(Config{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Records(8)
	received := make(chan map[string]string, 16)
	go func() {
		defer close(received)
		for range batch {
			entry, _ := receive(t, conn)
			received <- entry
		}
	}()
	if err := sinktest.Send(t.Context(), s, batch); err != nil {
		t.Fatal(err)
	}
	for _, r := range batch {
		if got, want := <-received, fields(t, r); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	}
}

func TestLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn := listen(t, path)
	s, err := New(Config{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := sinktest.Long(20 << 20)
	if err := sinktest.Send(t.Context(), s, []sink.Record{r}); err != nil {
		t.Fatal(err)
	}
	entry, byFile := receive(t, conn)
	if !byFile || len(entry["MESSAGE"]) != 20<<20 {
		t.Errorf("by file: %v, %d bytes", byFile, len(entry["MESSAGE"]))
	}
}

// TestRestart: a socket that nobody reads, one that is gone, and a new one.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn := listen(t, path)
	s, err := New(Config{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := sinktest.Send(ctx, s, sinktest.Records(5000)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("journald does not read: %v", err)
	}
	conn.Close()
	os.Remove(path)
	if err := sinktest.Send(t.Context(), s, sinktest.Records(1)); err == nil {
		t.Error("there is no journald, and nobody says so")
	}
	conn = listen(t, path)
	batch := sinktest.Records(1)
	if err := sinktest.Send(t.Context(), s, batch); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	os.Remove(path)
	conn = listen(t, path)
	if err := sinktest.Send(t.Context(), s, batch); err != nil {
		t.Fatalf("journald was restarted between two batches: %v", err)
	}
	if entry, _ := receive(t, conn); entry["STATED_LOG_RECORD_UID"] != batch[0].UID {
		t.Errorf("entry %v", entry)
	}
	s.Close()
	if s.Close() != nil || s.Send(t.Context(), batch) == nil {
		t.Error("a closed sink takes records")
	}
}

func TestRejects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	listen(t, path)
	s, err := New(Config{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Records(3)
	batch[1].Line = []byte(`{"torn`)
	var rejected *sink.Rejected
	if err := sinktest.Send(t.Context(), s, batch); !errors.As(err, &rejected) || fmt.Sprint(rejected.Indexes) != "[1]" {
		t.Errorf("got %v", err)
	}
	if _, err := New(Config{Socket: "relative"}); err == nil {
		t.Error("a relative path is taken")
	}
}

const conf = `[Journal]
Storage=volatile
Audit=no
ReadKMsg=no
RateLimitIntervalSec=0
ForwardToSyslog=no
ForwardToWall=no
`

// TestJournald sends to the real one, in a mount namespace of its own.
func TestJournald(t *testing.T) {
	daemon := "/lib/systemd/systemd-journald"
	if _, err := os.Stat(daemon); err != nil || os.Getuid() != 0 {
		if os.Getenv("STATED_COLLECTORS") != "" {
			t.Fatalf("want root and %s (Debian: systemd): %v", daemon, err)
		}
		t.Skipf("want root and %s (Debian: systemd)", daemon)
	}
	confFile := filepath.Join(t.TempDir(), "journald.conf")
	if err := os.WriteFile(confFile, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		`mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && { [ ! -e /etc/systemd/journald.conf ] || mount --bind "$1" /etc/systemd/journald.conf; } && exec "$2"`,
		"sh", confFile, daemon)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		t.Logf("journald said: %s", &said)
	})
	root := fmt.Sprintf("/proc/%d/root/run", cmd.Process.Pid)
	s, err := New(Config{Socket: root + "/systemd/journal/socket"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Records(200)
	all := append(batch, sinktest.Long(700_000)) // journald's own limit of a field's size is 768 MiB
	sinktest.Insist(t, s, all)
	var got map[string]map[string]any
	sinktest.Await(t, "all records are in the journal", func() bool {
		got = journal(root + "/log/journal")
		return len(got) == len(all)
	})
	store := sinktest.NewStore()
	for _, r := range batch { // it keeps text
		store.Add(r.UID, sinktest.Typed(r.Event, func(key string) (string, bool) {
			name := "MESSAGE"
			if key != "message" {
				name = string(appendName(nil, []byte(key)))
			}
			value, ok := got[r.UID][name].(string)
			return value, ok
		}))
	}
	sinktest.Stored(t, store, batch)
	for _, r := range all {
		for name, want := range fields(t, r) {
			if v := got[r.UID][name]; v != want && !(len(want) > 4096 && v == nil) { // journalctl leaves out large ones
				t.Errorf("record %s: %s is %.200v, want %.200q", r.UID, name, v, want)
			}
		}
	}
}

// journal reads all entries with a uid that journalctl shows.
func journal(dir string) map[string]map[string]any {
	out, _ := exec.Command("journalctl", "-D", dir, "-o", "json", "-t", "stated", "--no-pager").Output()
	entries := map[string]map[string]any{}
	for line := range bytes.Lines(out) {
		var entry map[string]any
		if json.Unmarshal(line, &entry) == nil {
			if uid, ok := entry["STATED_LOG_RECORD_UID"].(string); ok {
				entries[uid] = entry
			}
		}
	}
	return entries
}
