// SPDX-License-Identifier: Apache-2.0

// Package spool keeps records on disk until every reader has them: one queue
// with a durable cursor for each reader.
//
// The folder has segments, named by the sequence number of their first record,
// each a sequence of blocks (package block): `zstd -dc *.seg` prints all
// records. What is behind the last whole block of the newest segment is cut off
// when the spool is opened. Sequence numbers are never used twice; where some
// are missing, because they were dropped or their block is damaged, each reader
// is told how many.
package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stated-tcp/stated/pkg/block"
)

// ErrFull says that there is no room, and that nothing may be dropped for it.
var ErrFull = errors.New("the spool is full")

// Options for Open. The zero value is usable.
type Options struct {
	FS           FS    // nil: the host's
	SegmentBytes int64 // begin a new segment at that size; 0: 16 MiB
	MaxBytes     int64 // of all segments; 0: 1 GiB. At least four segments.
	KeepBytes    int64 // keep that much although every reader has it
	DropOldest   bool  // when full, drop the oldest segment rather than refuse
	SyncAlways   bool  // Append returns when its block is durable
	// Synced is told how long each sync of what was appended took, by the writer; may be nil.
	Synced func(time.Duration)
}

// Stats counts what a spool has and did. Errors are counted by operation.
type Stats struct {
	Bytes       int64
	Records     uint64 // in the segments, delivered ones included
	Next        uint64 // sequence number of the next record
	Appended    uint64
	Dropped     uint64 // by Drop
	DroppedOld  uint64 // records in segments removed before every reader had them
	TornBytes   int64  // cut off at Open
	TornRecords uint64 // in them, as far as was readable
	Segments    int
	Errors      map[string]uint64 // write, sync, create, remove, cursor
}

// Spool is the queue. Append, Drop, Sync, Maintain and Close belong to one
// goroutine, the writer; the others may be called from any.
type Spool struct {
	dir  string
	opts Options
	fs   FS
	lock io.Closer

	// the writer's alone
	enc    *block.Encoder
	out    []byte
	active File
	dirty  bool // active has what was not synced
	broken bool // active ends in something that could not be cut off

	// place has next where that is behind the last block: records were dropped,
	// and nothing came after them that would tell.
	place *cursor

	mu       sync.Mutex // guards what follows
	segments []*segment // oldest first, the last is active
	bytes    int64
	next     uint64
	readers  map[string]*Reader
	grown    chan struct{} // closed and replaced when there is more
	closed   bool
	stats    Stats
}

// Open opens the spool in dir, which is made if it is not there, and repairs
// what a crash left behind.
func Open(dir string, o Options) (_ *Spool, err error) {
	if o.FS == nil {
		o.FS = OS{}
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 16 << 20
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 30
	}
	if o.SegmentBytes < 0 || o.MaxBytes < 4*o.SegmentBytes {
		return nil, fmt.Errorf("open the spool: %d bytes are less than four segments of %d", o.MaxBytes, o.SegmentBytes)
	}
	s := &Spool{dir: dir, opts: o, fs: o.FS, readers: make(map[string]*Reader), grown: make(chan struct{}),
		stats: Stats{Errors: make(map[string]uint64)}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open the spool %s: %w", dir, err)
			s.Close()
		}
	}()
	if err := s.fs.MkdirAll(dir); err != nil {
		return nil, err
	}
	if s.lock, err = s.fs.Lock(dir); err != nil {
		return nil, err
	}
	if s.enc, err = block.NewEncoder(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	// made now, as a full disk is when it is needed; no reader has such a name
	if s.place, err = openCursor(s.fs, s.path("+next.cursor"), s.next); err != nil {
		return nil, err
	}
	if s.place.turn == 0 {
		if err := s.place.save(s.next); err != nil {
			return nil, err
		}
	}
	return s, s.fs.SyncDir(s.dir)
}

// load finds the segments and the cursors. The next sequence number is one that
// nobody has seen, also when what a reader had is not on disk any more.
func (s *Spool) load() error {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if first, ok := parseSegment(name); ok {
			s.segments = append(s.segments, &segment{first: first, end: first, sealed: true})
		}
	}
	slices.SortFunc(s.segments, func(a, b *segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	for i, seg := range s.segments {
		if err := s.measure(seg); err != nil {
			return err
		}
		if i > 0 {
			s.segments[i-1].end = seg.first
		}
	}
	if n := len(s.segments); n > 0 {
		if err := s.repair(s.segments[n-1]); err != nil {
			return err
		}
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".cursor") {
			continue
		}
		c, err := openCursor(s.fs, s.path(name), 0)
		if err != nil {
			return err
		}
		s.next = max(s.next, c.next.Load())
		if err := c.file.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Append adds a block of count lines, each with its newline, together of
// block.MaxLines bytes at most. An error means that nothing was added; ErrFull,
// that room must be made by a reader first.
func (s *Spool) Append(lines []byte, count int) error {
	if len(lines) > block.MaxLines {
		return fmt.Errorf("append to the spool: a block of %d bytes, at most %d fit", len(lines), block.MaxLines)
	}
	s.mu.Lock()
	first := s.next
	s.mu.Unlock()
	s.out = s.enc.Append(s.out[:0], block.Header{First: first, Count: uint32(count)}, lines)
	if err := s.room(int64(len(s.out))); err != nil {
		return err
	}
	if err := s.roll(); err != nil {
		return err
	}
	seg := s.last()
	if _, err := s.active.WriteAt(s.out, seg.size); err != nil {
		s.fail("write")
		s.trim(0) // what is only kept may be in the way
		if s.active.Truncate(seg.size) != nil {
			s.broken = true // readers stop at size; the next block goes elsewhere
		}
		return fmt.Errorf("write the spool: %w", err)
	}
	s.dirty = true
	if s.opts.SyncAlways {
		if err := s.Sync(); err != nil {
			s.active.Truncate(seg.size) // whether that works does not matter: readers stop at size
			return err
		}
	}
	s.mu.Lock()
	seg.size += int64(len(s.out))
	s.bytes += int64(len(s.out))
	s.next = first + uint64(count)
	seg.end = s.next
	s.stats.Appended += uint64(count)
	close(s.grown)
	s.grown = make(chan struct{})
	s.mu.Unlock()
	return nil
}

// Drop gives up count records that could not be appended: readers are told when
// they come to the next block, also after the next Open.
func (s *Spool) Drop(count uint64) {
	s.mu.Lock()
	s.next += count
	s.stats.Dropped += count
	s.mu.Unlock()
}

// Sync makes durable what was appended.
func (s *Spool) Sync() error {
	if s.active == nil || !s.dirty {
		return nil
	}
	begun := time.Now()
	if err := s.active.Sync(); err != nil {
		s.fail("sync")
		s.broken = true // another sync would succeed whatever this one lost
		return fmt.Errorf("sync the spool: %w", err)
	}
	if s.opts.Synced != nil {
		s.opts.Synced(time.Since(begun))
	}
	s.dirty = false
	return nil
}

func (s *Spool) fail(op string) {
	s.mu.Lock()
	s.stats.Errors[op]++
	s.mu.Unlock()
}

// Maintain makes the cursors durable and removes the segments that every reader
// has, but for KeepBytes.
func (s *Spool) Maintain() error { return s.trim(s.opts.KeepBytes) }

func (s *Spool) trim(keep int64) error {
	err := s.saveCursors()
	for err == nil {
		s.mu.Lock()
		done := len(s.segments) > 1 && s.bytes > keep && s.delivered() >= s.segments[0].end
		s.mu.Unlock()
		if !done {
			break
		}
		err = s.removeOldest()
	}
	return err
}

// delivered is up to where every reader has durably said to be done.
func (s *Spool) delivered() uint64 {
	least := s.next
	for _, r := range s.readers {
		least = min(least, r.cursor.next.Load())
	}
	return least
}

// room makes place for n bytes.
func (s *Spool) room(n int64) error {
	if s.size()+n <= s.opts.MaxBytes {
		return nil
	}
	if err := s.Maintain(); err != nil {
		return err
	}
	for s.size()+n > s.opts.MaxBytes {
		s.mu.Lock()
		removable := len(s.segments) > 1 && (s.opts.DropOldest || s.delivered() >= s.segments[0].end)
		s.mu.Unlock()
		if !removable {
			return ErrFull
		}
		if err := s.removeOldest(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spool) size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

func (s *Spool) removeOldest() error {
	s.mu.Lock()
	seg := s.segments[0]
	if seg.end > s.delivered() {
		s.stats.DroppedOld += seg.end - max(seg.first, s.delivered())
	}
	seg.removed = true
	s.segments = s.segments[1:]
	s.bytes -= seg.size
	s.mu.Unlock()
	if err := s.fs.Remove(s.path(segmentName(seg.first))); err != nil {
		s.fail("remove")
		return fmt.Errorf("remove a segment of the spool: %w", err)
	}
	return nil
}

// Stats returns the counts so far.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Errors = make(map[string]uint64, len(s.stats.Errors))
	for op, n := range s.stats.Errors {
		out.Errors[op] = n
	}
	out.Bytes, out.Next, out.Segments = s.bytes, s.next, len(s.segments)
	if len(s.segments) > 0 {
		out.Records = s.last().end - s.segments[0].first
	}
	return out
}

// Oldest returns the oldest record that is kept, delivered or not; io.EOF where
// there is none.
func (s *Spool) Oldest() ([]byte, error) {
	s.mu.Lock()
	if len(s.segments) == 0 {
		s.mu.Unlock()
		return nil, io.EOF
	}
	seg := s.segments[0]
	s.mu.Unlock()
	f, err := s.fs.Open(s.path(segmentName(seg.first)), false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blocks, err := block.NewReader(&tail{s: s, seg: seg, file: f})
	if err != nil {
		return nil, err
	}
	defer blocks.Close()
	_, lines, err := blocks.Next()
	if err != nil {
		return nil, err
	}
	line, _, _ := bytes.Cut(lines, []byte{'\n'})
	return line, nil
}

// Close makes everything durable and lets go of the folder. Readers must not be
// used any more.
func (s *Spool) Close() error {
	var errs []error
	if !s.closed {
		errs = append(errs, s.Sync(), s.saveCursors())
	}
	s.mu.Lock()
	s.closed = true
	for _, r := range s.readers {
		errs = append(errs, r.release())
	}
	s.readers = nil
	s.mu.Unlock()
	if s.active != nil {
		errs = append(errs, s.active.Close())
		s.active = nil
	}
	if s.place != nil {
		errs = append(errs, s.place.file.Close())
		s.place = nil
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	return errors.Join(errs...)
}
