// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/stated-tcp/stated/pkg/block"
)

// segment is a file of the spool.
type segment struct {
	first   uint64
	end     uint64 // behind its last record
	size    int64  // up to the last whole block
	sealed  bool
	removed bool
}

func (s *Spool) path(name string) string { return filepath.Join(s.dir, name) }

func segmentName(first uint64) string { return fmt.Sprintf("%020d.seg", first) }

func parseSegment(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, ".seg")
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, ok && err == nil && segmentName(first) == name
}

func (s *Spool) measure(seg *segment) error {
	f, err := s.fs.Open(s.path(segmentName(seg.first)), false)
	if err != nil {
		return err
	}
	seg.size, err = f.Size()
	s.bytes += seg.size
	return errors.Join(err, f.Close())
}

// repair cuts off what is behind the last whole block, and makes seg the one
// that is written.
func (s *Spool) repair(seg *segment) error {
	f, err := s.fs.Open(s.path(segmentName(seg.first)), false)
	if err != nil {
		return err
	}
	s.active = f
	blocks, err := block.NewReader(io.NewSectionReader(f, 0, seg.size))
	if err != nil {
		return err
	}
	defer blocks.Close()
	size := int64(0)
	for {
		h, _, err := blocks.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", segmentName(seg.first), err)
		}
		size, seg.end = blocks.Offset(), max(seg.end, h.End())
	}
	torn := blocks.Damage()
	s.stats.TornBytes, s.stats.TornRecords = torn.TornBytes, torn.TornLines
	s.next = seg.end + torn.TornLines
	if size < seg.size {
		if err := f.Truncate(size); err != nil {
			return fmt.Errorf("cut %s to its last whole block: %w", segmentName(seg.first), err)
		}
		s.bytes -= seg.size - size
		seg.size = size
	}
	// Also for what an earlier run wrote and did not sync: it is shown to readers.
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", segmentName(seg.first), err)
	}
	seg.sealed = false
	return nil
}

func (s *Spool) last() *segment {
	if len(s.segments) == 0 {
		return nil
	}
	return s.segments[len(s.segments)-1]
}

// roll begins a new segment where there is none, or the last is full or broken.
// The old one is durable before the new one is there: only the newest can be torn.
func (s *Spool) roll() error {
	seg := s.last()
	if seg != nil && !seg.sealed && !s.broken && seg.size < s.opts.SegmentBytes {
		return nil
	}
	if s.active != nil {
		s.Sync() // a failure is counted; what is lost by it, readers will tell
		s.mu.Lock()
		seg.sealed = true
		s.mu.Unlock()
		s.active.Close() // synced; there is nothing left to fail
		s.active = nil
	}
	s.mu.Lock()
	first := s.next
	s.mu.Unlock()
	name := s.path(segmentName(first))
	f, err := s.fs.Open(name, true)
	if err == nil {
		if err = s.fs.SyncDir(s.dir); err != nil {
			f.Close()
		}
	}
	if err != nil {
		s.fail("create")
		return fmt.Errorf("begin a segment of the spool: %w", err)
	}
	s.active, s.broken, s.dirty = f, false, false
	s.mu.Lock()
	if seg == nil || seg.first != first {
		s.segments = append(s.segments, &segment{first: first, end: first})
	} else {
		seg.sealed = false // empty, from a failed attempt
	}
	s.mu.Unlock()
	return nil
}
