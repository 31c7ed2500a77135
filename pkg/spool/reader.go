// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/stated-tcp/stated/pkg/block"
)

// Entry is a record, or the news that some are missing.
type Entry struct {
	Seq     uint64
	Line    []byte // without its newline, valid until the next call of Next; nil where records are missing
	Missing uint64 // how many, from Seq on
	Damaged bool   // they are missing because what was on disk is damaged, not because they were dropped
}

// End returns the sequence number behind the entry: what Commit takes.
func (e Entry) End() uint64 { return e.Seq + max(1, e.Missing) }

// Reader hands out the records in order. Next and Wait belong to one goroutine.
type Reader struct {
	s      *Spool
	name   string
	cursor *cursor
	acked  atomic.Uint64 // what Commit said

	pos    uint64 // of the next record
	blocks *block.Reader
	tail   *tail
	lines  []byte // of the block that is handed out, from pos on
	told   block.Damage
	grown  <-chan struct{} // closed when there is more than Next saw
}

// Reader returns the reader of a name, at its cursor, or at the oldest record
// where it has none. All readers must be there before the first Append, which
// may remove what they have not read.
func (s *Spool) Reader(name string) (*Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers[name] != nil {
		return nil, fmt.Errorf("the spool has a reader %q already", name)
	}
	oldest := s.next
	if len(s.segments) > 0 {
		oldest = s.segments[0].first
	}
	c, err := openCursor(s.fs, s.path(name+".cursor"), oldest)
	if err != nil {
		return nil, err
	}
	if c.torn {
		s.stats.Errors["cursor"]++
	}
	if c.turn == 0 { // so that it is told what is dropped before its first Commit
		if err := c.save(oldest); err != nil {
			return nil, errors.Join(err, c.file.Close())
		}
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("sync the folder of the cursor: %w", err), c.file.Close())
	}
	blocks, err := block.NewReader(eof{})
	if err != nil {
		return nil, errors.Join(err, c.file.Close())
	}
	r := &Reader{s: s, name: name, cursor: c, pos: c.next.Load(), blocks: blocks}
	r.acked.Store(r.pos)
	s.readers[name] = r
	return r, nil
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// tail is a segment as far as it is whole.
type tail struct {
	s      *Spool
	seg    *segment
	file   File
	offset int64
	short  bool // the file ends here, before the segment does: somebody has cut it
}

func (t *tail) Read(p []byte) (int, error) {
	t.s.mu.Lock()
	rest, removed := t.seg.size-t.offset, t.seg.removed
	t.s.mu.Unlock()
	if rest <= 0 || removed {
		return 0, io.EOF
	}
	n, err := t.file.ReadAt(p[:min(int64(len(p)), rest)], t.offset)
	t.offset += int64(n)
	t.short = n == 0 && errors.Is(err, io.EOF)
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// exhausted reports whether all of the segment was read, and whether nothing
// more will come of it. grown is closed when the spool has more.
func (t *tail) exhausted() (now, forever bool, grown <-chan struct{}) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	now = t.seg.removed || t.short || t.offset >= t.seg.size
	return now, now && (t.seg.removed || t.seg.sealed), t.s.grown
}

// Next returns the next record, io.EOF when there is none yet.
func (r *Reader) Next() (Entry, error) {
	for len(r.lines) == 0 {
		h, lines, err := r.blocks.Next()
		if errors.Is(err, io.EOF) {
			if err := r.advance(); err != nil {
				return Entry{}, err
			}
			if first := r.tail.seg.first; first > r.pos {
				return r.missing(first), nil
			}
			continue
		}
		if err != nil {
			return Entry{}, fmt.Errorf("read the spool: %w", err)
		}
		if h.End() <= r.pos {
			continue
		}
		for seq := h.First; seq < r.pos; seq++ {
			_, lines, _ = bytes.Cut(lines, []byte{'\n'})
		}
		r.lines = lines
		if h.First > r.pos {
			return r.missing(h.First), nil
		}
	}
	line, rest, _ := bytes.Cut(r.lines, []byte{'\n'})
	r.lines = rest
	e := Entry{Seq: r.pos, Line: line}
	r.pos++
	return e, nil
}

// missing tells that the records from pos to next are not there.
func (r *Reader) missing(next uint64) Entry {
	d := r.blocks.Damage()
	e := Entry{Seq: r.pos, Missing: next - r.pos, Damaged: d != r.told}
	r.told = d
	r.pos = next
	return e
}

// advance goes on where a segment seems to end: in it when it has grown, in the
// one that has pos, or in the next. io.EOF says that there is nothing yet.
func (r *Reader) advance() error {
	if r.tail != nil {
		now, forever, grown := r.tail.exhausted()
		if !now {
			return nil
		}
		if r.grown = grown; !forever {
			return io.EOF
		}
	}
	next := r.find()
	if next == nil {
		return io.EOF
	}
	f, err := r.s.fs.Open(r.s.path(segmentName(next.first)), false)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && r.s.gone(next) {
			return r.advance()
		}
		return fmt.Errorf("open a segment of the spool: %w", err)
	}
	if r.tail != nil {
		r.tail.file.Close() // it was only read
	}
	r.tail = &tail{s: r.s, seg: next, file: f}
	r.blocks.Reset(r.tail)
	return nil
}

// find returns the segment that has pos, or else the next one, and never one
// that was read already.
func (r *Reader) find() *segment {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.grown = r.s.grown
	for i, seg := range r.s.segments {
		if (r.tail == nil || seg.first > r.tail.seg.first) && (seg.end > r.pos || i == len(r.s.segments)-1) {
			return seg
		}
	}
	return nil
}

func (s *Spool) gone(seg *segment) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return seg.removed
}

// Wait returns when there may be more than when Next last said io.EOF, or ctx
// is done.
func (r *Reader) Wait(ctx context.Context) {
	select {
	case <-r.grown:
	case <-ctx.Done():
	}
}

// Commit says that all below next are acknowledged. It is durable after the
// next Maintain of the spool; until then they may be handed out again after a
// crash. It may be called from any goroutine.
func (r *Reader) Commit(next uint64) { r.acked.Store(next) }

// Acked returns what Commit said last, or the cursor that was found.
func (r *Reader) Acked() uint64 { return r.acked.Load() }

// Backlog returns how many records are not acknowledged.
func (r *Reader) Backlog() uint64 {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.s.next - min(r.s.next, r.acked.Load())
}

// Close keeps the cursor and forgets the reader: what it has not read may go.
func (r *Reader) Close() error {
	r.s.mu.Lock()
	delete(r.s.readers, r.name)
	r.s.mu.Unlock()
	return errors.Join(r.cursor.save(r.acked.Load()), r.release())
}

func (r *Reader) release() error {
	var err error
	if r.tail != nil {
		err = r.tail.file.Close()
		r.tail = nil
	}
	r.blocks.Close()
	return errors.Join(err, r.cursor.file.Close())
}

// saveCursors makes durable what was committed.
func (s *Spool) saveCursors() error {
	s.mu.Lock()
	readers := make([]*Reader, 0, len(s.readers))
	for _, r := range s.readers {
		readers = append(readers, r)
	}
	s.mu.Unlock()
	for _, r := range readers {
		next := r.acked.Load()
		if next == r.cursor.next.Load() {
			continue
		}
		if err := r.cursor.save(next); err != nil {
			s.fail("cursor")
			return err
		}
	}
	s.mu.Lock()
	next, told := s.next, len(s.segments) > 0 && s.segments[len(s.segments)-1].end >= s.next
	s.mu.Unlock()
	if told || s.place == nil || next == s.place.next.Load() {
		return nil
	}
	if err := s.place.save(next); err != nil {
		s.fail("cursor")
		return err
	}
	return nil
}
