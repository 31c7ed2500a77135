// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

func records(from, n int) []sink.Record {
	out := make([]sink.Record, n)
	for i := range out {
		out[i].Line = fmt.Appendf(nil, `{"n":%d}`, from+i)
	}
	return out
}

func newSink(t *testing.T, cfg Config) *Sink {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func send(t *testing.T, s *Sink, from, n int) {
	t.Helper()
	batch := records(from, n)
	if err := s.Send(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	for _, r := range batch { // a line is the sink's during Send only
		copy(r.Line, "xxxxxxxxxx")
	}
}

// stored returns the lines of all files whose name begins with path, oldest
// first.
func stored(t *testing.T, path string) (lines []string) {
	return strings.Fields(string(text(t, path)))
}

// text is what is in these files.
func text(t *testing.T, path string) (all []byte) {
	t.Helper()
	names, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	names = append(names[1:], names[0]) // the one without a stamp is the newest
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(path, "zst") {
			dec, err := zstd.NewReader(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if text, err = io.ReadAll(dec); err != nil {
				t.Fatal(err)
			}
			dec.Close()
		}
		all = append(all, text...)
	}
	return all
}

// TestRecords: what is in the files is what was sent, and fits the schema.
func TestRecords(t *testing.T) {
	for _, cfg := range []Config{{Path: "a.jsonl", RotateBytes: 100_000}, {Path: "a.zst", Zstd: true}} {
		cfg.Path = filepath.Join(t.TempDir(), cfg.Path)
		s := newSink(t, cfg)
		var all []sink.Record
		for range 3 {
			batch := sinktest.Records(200)
			sinktest.Insist(t, s, batch)
			all = append(all, batch...)
		}
		s.Close()
		store := sinktest.NewStore()
		for line := range bytes.Lines(text(t, cfg.Path)) {
			r, err := sink.Parse(line)
			if err != nil {
				t.Fatal(err)
			}
			store.Add(r.UID, line)
		}
		sinktest.Stored(t, store, all)
		if n, twice := store.Len(); n != len(all) || twice > 0 {
			t.Errorf("%d records, %d of them twice", n, twice)
		}
	}
}

func want(t *testing.T, lines []string, n int) {
	t.Helper()
	if len(lines) != n {
		t.Fatalf("%d lines, want %d", len(lines), n)
	}
	for i, line := range lines {
		if line != fmt.Sprintf(`{"n":%d}`, i) {
			t.Fatalf("line %d is %s", i, line)
		}
	}
}

// Whatever a crash leaves at the end is cut off, and what comes again is whole.
func TestTornEnd(t *testing.T) {
	for _, cfg := range []Config{{Path: "a.jsonl"}, {Path: "a.zst", Zstd: true}} {
		cfg.Path = filepath.Join(t.TempDir(), cfg.Path)
		s := newSink(t, cfg)
		send(t, s, 0, 5)
		whole := s.size
		send(t, s, 5, 5)
		s.Close()
		text, err := os.ReadFile(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		for cut := whole; cut < int64(len(text)); cut++ {
			if err := os.WriteFile(cfg.Path, text[:cut], 0o600); err != nil {
				t.Fatal(err)
			}
			s := newSink(t, cfg)
			have := len(stored(t, cfg.Path))
			send(t, s, have, 10-have)
			s.Close()
			want(t, stored(t, cfg.Path), 10)
		}
	}
}

func TestRotation(t *testing.T) {
	for _, cfg := range []Config{{Path: "a.jsonl", RotateBytes: 100}, {Path: "a.zst", Zstd: true, RotateBytes: 100}, {Path: "b.jsonl", RotateEvery: time.Minute}} {
		cfg.Path = filepath.Join(t.TempDir(), cfg.Path)
		s := newSink(t, cfg)
		now := time.Unix(1e9, 0)
		s.now = func() time.Time { now = now.Add(20 * time.Second); return now }
		for i := range 20 {
			send(t, s, i*10, 10)
		}
		want(t, stored(t, cfg.Path), 200)
		names, _ := filepath.Glob(cfg.Path + "*")
		if len(names) < 3 {
			t.Errorf("%s: %d files", cfg.Path, len(names))
		}
		s.cfg.Keep, s.cfg.RotateBytes = 2, 1
		send(t, s, 200, 10)
		if names, _ := filepath.Glob(cfg.Path + "*"); len(names) != 3 {
			t.Errorf("%s: %d files, want the current and 2", cfg.Path, len(names))
		}
	}
}

// After logrotate has moved the file, Reopen makes a new one.
func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.jsonl")
	s := newSink(t, Config{Path: path})
	send(t, s, 0, 3)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	s.Reopen()
	send(t, s, 3, 3)
	want(t, stored(t, path), 6)
}

// A file has one writer: the second is told so, touches nothing, and gets it when
// the first is done.
func TestTwoWriters(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "a.jsonl"), filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	first := newSink(t, Config{Path: path, RotateBytes: 20})
	for i := range 10 {
		send(t, first, i, 1) // and rotates
		for _, other := range []string{path, link} {
			if s, err := New(Config{Path: other}); err == nil || !strings.Contains(err.Error(), "another sink or process") {
				t.Errorf("%s: %v", other, err)
				s.Close()
			}
		}
	}
	first.Reopen()
	send(t, first, 10, 1)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	send(t, newSink(t, Config{Path: path}), 11, 1)
	os.Remove(link)
	want(t, stored(t, path), 12)
}

// A disk that is full is an error, leaves no half line, and is survived.
func TestDiskFull(t *testing.T) {
	var limit syscall.Rlimit
	const fsize = 1 // RLIMIT_FSIZE: EFBIG stands in for ENOSPC; Go ignores SIGXFSZ
	if err := syscall.Getrlimit(fsize, &limit); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.jsonl")
	s := newSink(t, Config{Path: path})
	send(t, s, 0, 3)
	if err := syscall.Setrlimit(fsize, &syscall.Rlimit{Cur: 100, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	err := s.Send(t.Context(), records(3, 50))
	if restoreErr := syscall.Setrlimit(fsize, &limit); restoreErr != nil {
		t.Fatal(restoreErr)
	}
	if !errors.Is(err, syscall.EFBIG) {
		t.Fatalf("no room for the batch: %v", err)
	}
	want(t, stored(t, path), 3)
	send(t, s, 3, 50)
	want(t, stored(t, path), 53)
}

// Standard output that takes only a part gets the rest of the line first.
func TestHalfALine(t *testing.T) {
	s := newSink(t, Config{})
	out := &stingy{room: 20}
	s.stdout = out
	if err := s.Send(t.Context(), records(0, 10)); err == nil {
		t.Fatal("no error")
	}
	out.room = 1 << 20
	send(t, s, 0, 10)
	lines := strings.Fields(out.String())
	want(t, lines[:3], 3)
	want(t, lines[3:], 10)
}

type stingy struct {
	bytes.Buffer
	room int
}

func (w *stingy) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	w.Buffer.Write(p[:n])
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func TestContract(t *testing.T) {
	s := newSink(t, Config{Path: filepath.Join(t.TempDir(), "a.jsonl")})
	if err := s.Send(t.Context(), nil); err != nil {
		t.Errorf("empty batch: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Send(ctx, records(0, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := s.Send(t.Context(), records(0, 1)); err == nil {
		t.Error("Send after Close")
	}
	if _, err := New(Config{Path: "/nowhere/a"}); err == nil {
		t.Error("a path that cannot be")
	}
}
