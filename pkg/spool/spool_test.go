// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func open(t testing.TB, dir string, o Options) (*Spool, *Reader) {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r, err := s.Reader("r")
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

func fill(t testing.TB, s *Spool, blocks, per int) {
	t.Helper()
	for range blocks {
		var lines []byte
		for i := range per {
			lines = fmt.Appendf(lines, "{\"n\":%d}\n", s.Stats().Next+uint64(i))
		}
		if err := s.Append(lines, per); err != nil {
			t.Fatal(err)
		}
	}
}

func drain(t testing.TB, r *Reader) (records int, missing []Entry) {
	t.Helper()
	for {
		e, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return records, missing
		case err != nil:
			t.Fatal(err)
		case e.Missing > 0:
			missing = append(missing, e)
		default:
			if want := fmt.Sprintf("{\"n\":%d}", e.Seq); string(e.Line) != want {
				t.Fatalf("%d is %s", e.Seq, e.Line)
			}
			records++
		}
	}
}

// On the host's file system: what was read and committed does not come again,
// the rest does, and zstd prints all of it.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s, r := open(t, dir, Options{SegmentBytes: 4096})
	fill(t, s, 100, 10)
	for range 400 {
		e, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		r.Commit(e.End())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(dir + "/*.seg")
	if err != nil || len(names) < 2 {
		t.Fatalf("segments %v, %v", names, err)
	}
	lines := 0
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		dec, err := zstd.NewReader(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(dec)
		if err != nil {
			t.Fatal(err)
		}
		dec.Close()
		lines += bytes.Count(plain, []byte{'\n'})
	}
	if lines != 1000 {
		t.Errorf("%d lines in the segments", lines)
	}
	_, r = open(t, dir, Options{SegmentBytes: 4096})
	if n, missing := drain(t, r); n != 600 || missing != nil {
		t.Errorf("%d records, missing %v", n, missing)
	}
}

// What somebody cuts off a segment is told to be missing, once something follows.
func TestCutSegment(t *testing.T) {
	dir := t.TempDir()
	s, r := open(t, dir, Options{SegmentBytes: 4096})
	fill(t, s, 1, 10)
	at := s.Stats().Bytes
	fill(t, s, 1, 10)
	segment := filepath.Join(dir, segmentName(0))
	if err := os.Truncate(segment, at+10); err != nil {
		t.Fatal(err)
	}
	if n, missing := drain(t, r); n != 10 || missing != nil {
		t.Errorf("%d records, missing %+v", n, missing)
	}
	fill(t, s, 1, 10)
	if n, missing := drain(t, r); n != 10 || len(missing) != 1 || missing[0].Seq != 10 || missing[0].Missing != 10 || !missing[0].Damaged {
		t.Errorf("%d records, missing %+v", n, missing)
	}
	fill(t, s, 1, 10)
	if err := os.Truncate(segment, 0); err != nil {
		t.Fatal(err)
	}
	for s.Stats().Segments == 1 {
		fill(t, s, 1, 10)
	}
	n, missing := drain(t, r)
	if len(missing) != 1 || missing[0].Seq != 30 || !missing[0].Damaged || 30+uint64(n)+missing[0].Missing != s.Stats().Next {
		t.Errorf("%d records, missing %+v of %d", n, missing, s.Stats().Next)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{})
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "another stated") {
		t.Errorf("second Open: %v", err)
	}
}

// A bad block in the middle is skipped, and its records are told.
func TestBadBlock(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, Options{SegmentBytes: 1 << 20})
	fill(t, s, 1, 10)
	at := s.Stats().Bytes + 60
	fill(t, s, 5, 10)
	s.Close()
	names, _ := filepath.Glob(dir + "/*.seg")
	text, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	text[at] ^= 1
	if err := os.WriteFile(names[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
	_, r := open(t, dir, Options{SegmentBytes: 1 << 20})
	n, missing := drain(t, r)
	if n != 50 || len(missing) != 1 || missing[0].Seq != 10 || missing[0].Missing != 10 || !missing[0].Damaged {
		t.Errorf("%d records, missing %+v", n, missing)
	}
}

// A reader that waits gets each record while another goroutine appends them.
func TestWait(t *testing.T) {
	s, r := open(t, t.TempDir(), Options{SegmentBytes: 2048})
	const blocks, per = 200, 3
	done := make(chan int)
	go func() {
		n := 0
		for n < blocks*per {
			_, err := r.Next()
			if errors.Is(err, io.EOF) {
				r.Wait(context.Background())
				continue
			}
			if err != nil {
				break
			}
			n++
		}
		done <- n
	}()
	fill(t, s, blocks, per)
	if n := <-done; n != blocks*per {
		t.Errorf("%d records", n)
	}
}

func BenchmarkAppend(b *testing.B) {
	s, _ := open(b, b.TempDir(), Options{DropOldest: true})
	line := []byte(`{"schema":"stated/1","timestamp":"2026-11-23T16:00:00.123456789Z","event.name":"tcp.connection","network.local.address":"10.0.0.7"}` + "\n")
	lines := bytes.Repeat(line, 1000)
	b.SetBytes(int64(len(lines)))
	for b.Loop() {
		if err := s.Append(lines, 1000); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzOpen: whatever is in the files, the spool opens, a reader comes to the
// end with numbers that only grow, and what is appended then is delivered.
func FuzzOpen(f *testing.F) {
	whole := newCrashFS(1)
	s, err := Open("/s", Options{FS: whole})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := s.Reader("r"); err != nil {
		f.Fatal(err)
	}
	for range 3 {
		if err := s.Append([]byte("a\nb\n"), 2); err != nil {
			f.Fatal(err)
		}
	}
	segment, cursor := whole.names["/s/"+segmentName(0)].data, whole.names["/s/r.cursor"].data
	f.Add(segment, segment, cursor)
	f.Add(segment[:len(segment)-1], []byte{}, cursor[:cursorLine])
	f.Add([]byte{}, segment, []byte(formatCursor(4, 9)))
	f.Fuzz(func(t *testing.T, first, last, cursor []byte) {
		files := newCrashFS(1)
		files.names["/s/"+segmentName(0)] = &inode{data: bytes.Clone(first)} // the fuzzer's memory is not ours to write
		files.names["/s/"+segmentName(6)] = &inode{data: bytes.Clone(last)}
		files.names["/s/r.cursor"] = &inode{data: bytes.Clone(cursor)}
		s, err := Open("/s", Options{FS: files})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Reader("r")
		if err != nil {
			t.Fatal(err)
		}
		pos := r.Acked()
		read := func() (last string) {
			for {
				e, err := r.Next()
				if errors.Is(err, io.EOF) {
					return last
				}
				if err != nil || e.Seq != pos || e.End() <= pos {
					t.Fatalf("%+v after %d, %v", e, pos, err)
				}
				pos, last = e.End(), string(e.Line)
			}
		}
		read()
		if s.Stats().Next > 1<<63 {
			return // a header said so; 2^63 records are never reached
		}
		if err := s.Append([]byte("last\n"), 1); err != nil {
			t.Fatal(err)
		}
		if got := read(); got != "last" {
			t.Fatalf("the last record is %q", got)
		}
	})
}

// What was dropped last is told after the next Open, too.
func TestDropThenClose(t *testing.T) {
	dir := t.TempDir()
	s, r := open(t, dir, Options{})
	fill(t, s, 1, 2)
	s.Drop(5)
	drain(t, r)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, r = open(t, dir, Options{})
	fill(t, s, 1, 1)
	if _, missing := drain(t, r); len(missing) != 1 || missing[0].Missing != 5 || missing[0].Damaged {
		t.Errorf("missing: %+v", missing)
	}
}
