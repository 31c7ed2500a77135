// SPDX-License-Identifier: Apache-2.0

// Package file writes records as JSON Lines to standard output or to a file
// that it rotates. Send returns when the records are on disk.
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
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/block"
	"github.com/stated-tcp/stated/pkg/sink"
)

// Config says where and how. Rotated files have the time of their end behind
// their name: stated.jsonl.20261125T010203.123456789Z.
type Config struct {
	Path        string        `yaml:"path"`         // empty: standard output, to which nothing of what follows applies
	RotateBytes int64         `yaml:"rotate_bytes"` // begin a new file at that size; 0: never
	RotateEvery time.Duration `yaml:"rotate_every"` // begin a new file when the first record is that old; 0: never
	Keep        int           `yaml:"keep"`         // rotated files; 0: all
	Zstd        bool          `yaml:"zstd"`         // write checksummed zstd frames: `zstd -dc` reads them
	NoSync      bool          `yaml:"no_sync"`      // leave it to the system when data goes to disk
}

const stampFormat = "20060102T150405.000000000Z"

// Sink is a sink.Sink. Reopen may be called from any goroutine, the rest
// belongs to one.
type Sink struct {
	cfg    Config
	file   *os.File
	size   int64
	lines  uint64
	since  time.Time // when its first record was written
	enc    *block.Encoder
	buf    []byte
	out    []byte
	half   []byte // rest of the line in which a write to standard output stopped
	stdout io.Writer
	reopen atomic.Bool
	closed bool
	now    func() time.Time
}

// New makes the sink and opens the file, so that a wrong path is told at once.
func New(cfg Config) (*Sink, error) {
	s := &Sink{cfg: cfg, stdout: os.Stdout, now: time.Now}
	if cfg.Path == "" {
		return s, nil
	}
	if cfg.Zstd {
		enc, err := block.NewEncoder()
		if err != nil {
			return nil, err
		}
		s.enc = enc
	}
	return s, s.open()
}

// Reopen has the next Send open the path anew: after somebody else, like
// logrotate(8), has renamed the file.
func (s *Sink) Reopen() { s.reopen.Store(true) }

// open opens the file to append, and cuts off what a crash left half written:
// it was not acknowledged and comes again.
func (s *Sink) open() error {
	f, err := os.OpenFile(s.cfg.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open the file of records: %w", err)
	}
	if err := lock(f); err != nil {
		f.Close()
		return fmt.Errorf("open the file of records: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", s.cfg.Path)
	}
	if err == nil {
		s.size, s.since = st.Size(), s.now()
		if s.cfg.Zstd {
			err = s.wholeBlocks(f)
		} else {
			err = s.wholeLines(f)
		}
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("open the file of records: %w", err)
	}
	s.file = f
	return nil
}

// lock is held until the file is closed, however that comes: another writer
// would cut off what this one is writing, and write over it.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s is being written by another sink or process: give each a file of its own", f.Name())
	}
	return nil // or there are no locks on that file system
}

func (s *Sink) wholeLines(f *os.File) error {
	end := s.size
	chunk := make([]byte, 64<<10)
	for at := s.size; at > 0; {
		n := min(at, int64(len(chunk)))
		at -= n
		if _, err := f.ReadAt(chunk[:n], at); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(chunk[:n], '\n'); i >= 0 {
			end = at + int64(i) + 1
			break
		}
		end = at
	}
	return s.cut(f, end)
}

func (s *Sink) wholeBlocks(f *os.File) error {
	blocks, err := block.NewReader(io.NewSectionReader(f, 0, s.size))
	if err != nil {
		return err
	}
	defer blocks.Close()
	end := int64(0)
	for {
		h, _, err := blocks.Next()
		if errors.Is(err, io.EOF) {
			if end == 0 && s.size > 0 {
				return fmt.Errorf("%s is not one of stated's: choose another path", s.cfg.Path)
			}
			return s.cut(f, end)
		}
		if err != nil {
			return err
		}
		end, s.lines = blocks.Offset(), h.End()
	}
}

func (s *Sink) cut(f *os.File, end int64) error {
	if end == s.size {
		return nil
	}
	s.size = end
	return f.Truncate(end)
}

// Send implements sink.Sink.
func (s *Sink) Send(ctx context.Context, batch []sink.Record) error {
	if err := ctx.Err(); err != nil || len(batch) == 0 {
		return err
	}
	if s.closed {
		return errors.New("the file sink is closed")
	}
	s.buf = s.buf[:0]
	for _, r := range batch {
		s.buf = append(append(s.buf, r.Line...), '\n')
	}
	if s.cfg.Path == "" {
		return s.print(s.buf)
	}
	if err := s.ready(); err != nil {
		return err
	}
	if s.cfg.Zstd {
		return s.writeBlocks()
	}
	return s.write(s.buf)
}

// writeBlocks writes the lines as blocks, none larger than a block may be.
func (s *Sink) writeBlocks() error {
	s.out = s.out[:0]
	lines := s.lines
	for rest := s.buf; len(rest) > 0; {
		part := rest
		if len(part) > block.MaxLines {
			end := bytes.LastIndexByte(part[:block.MaxLines], '\n') + 1
			if end == 0 {
				return &sink.TooLarge{Err: fmt.Errorf("a record is longer than %d bytes", block.MaxLines)}
			}
			part = part[:end]
		}
		rest = rest[len(part):]
		h := block.Header{First: lines, Count: uint32(bytes.Count(part, []byte{'\n'}))}
		s.out = s.enc.Append(s.out, h, part)
		lines = h.End()
	}
	if err := s.write(s.out); err != nil {
		return err
	}
	s.lines = lines
	return nil
}

// write appends all of b or nothing.
func (s *Sink) write(b []byte) error {
	if s.size == 0 {
		s.since = s.now()
	}
	_, err := s.file.WriteAt(b, s.size)
	if err == nil && !s.cfg.NoSync {
		err = s.file.Sync()
	}
	if err != nil {
		// A full disk comes to an end; half a line must not stay.
		if cutErr := s.file.Truncate(s.size); cutErr != nil {
			err = errors.Join(err, cutErr)
			s.Reopen() // which cuts it, too
		}
		return fmt.Errorf("write the file of records: %w", err)
	}
	s.size += int64(len(b))
	return nil
}

// print writes to standard output, where nothing can be taken back: a line that
// was begun is completed first.
func (s *Sink) print(b []byte) error {
	if len(s.half) > 0 {
		n, err := s.stdout.Write(s.half)
		s.half = s.half[n:]
		if err != nil {
			return fmt.Errorf("write to standard output: %w", err)
		}
	}
	n, err := s.stdout.Write(b)
	if err == nil {
		return nil
	}
	if n > 0 && b[n-1] != '\n' {
		rest := b[n:]
		s.half = bytes.Clone(rest[:bytes.IndexByte(rest, '\n')+1])
	}
	return fmt.Errorf("write to standard output: %w", err)
}

// ready opens, rotates and opens anew as is needed.
func (s *Sink) ready() error {
	if s.reopen.Swap(false) && s.file != nil {
		s.file.Close() // synced, or told
		s.file = nil
	}
	if s.file == nil {
		if err := s.open(); err != nil {
			s.reopen.Store(true)
			return err
		}
	}
	old := s.cfg.RotateEvery > 0 && s.now().Sub(s.since) >= s.cfg.RotateEvery
	big := s.cfg.RotateBytes > 0 && s.size >= s.cfg.RotateBytes
	if s.size == 0 || !old && !big {
		return nil
	}
	return s.rotate()
}

func (s *Sink) rotate() error {
	name := s.cfg.Path + "." + s.now().UTC().Format(stampFormat)
	if err := os.Rename(s.cfg.Path, name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("rotate the file of records: %w", err)
	}
	s.file.Close() // synced, or told
	s.file, s.lines = nil, 0
	if err := s.open(); err != nil {
		return err
	}
	return s.prune()
}

// prune removes the oldest rotated files.
func (s *Sink) prune() error {
	if s.cfg.Keep == 0 {
		return nil
	}
	entries, err := os.ReadDir(filepath.Dir(s.cfg.Path))
	if err != nil {
		return fmt.Errorf("list rotated files: %w", err)
	}
	var rotated []string
	for _, e := range entries {
		stamp, ok := strings.CutPrefix(e.Name(), filepath.Base(s.cfg.Path)+".")
		if _, err := time.Parse(stampFormat, stamp); ok && err == nil {
			rotated = append(rotated, e.Name())
		}
	}
	slices.Sort(rotated)
	for len(rotated) > s.cfg.Keep {
		if err := os.Remove(filepath.Join(filepath.Dir(s.cfg.Path), rotated[0])); err != nil {
			return fmt.Errorf("remove a rotated file: %w", err)
		}
		rotated = rotated[1:]
	}
	return nil
}

// Close implements sink.Sink.
func (s *Sink) Close() error {
	if s.closed || s.file == nil {
		s.closed = true
		return nil
	}
	s.closed = true
	return s.file.Close()
}
