// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// model is what must be true of a spool whatever happens: a record that was
// durable is delivered or told to be missing, in order, and not twice but where
// a crash took the cursor.
type model struct {
	t       *testing.T
	what    string
	opts    Options
	rng     *rand.Rand
	fs      *crashFS
	spool   *Spool
	readers map[string]*modelReader

	ids     int                     // given to records so far
	seqOf   map[int]uint64          // of a record, when it was appended
	idsAt   map[uint64]map[int]bool // a number may be used again when what had it was not durable
	waiting []int                   // appended, not durable
	durable map[int]bool
	given   map[int]bool // up by Drop
	dups    int
}

type modelReader struct {
	*Reader
	pos       uint64       // end of the last entry of this life
	begun     bool         // in this life
	life      map[int]bool // delivered in this life
	last      int
	delivered map[int]bool
	missing   []Entry
	committed uint64 // said in this life
	saved     uint64 // made durable for sure
}

func newModel(t *testing.T, what string, seed uint64, o Options) *model {
	m := &model{t: t, what: what, opts: o, rng: rand.New(rand.NewPCG(seed, 2)), fs: newCrashFS(seed),
		readers: map[string]*modelReader{"a": {}, "b": {}}, seqOf: make(map[int]uint64), idsAt: make(map[uint64]map[int]bool),
		durable: make(map[int]bool), given: make(map[int]bool)}
	for _, r := range m.readers {
		r.delivered = make(map[int]bool)
	}
	return m
}

func (m *model) fatalf(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s: %s", m.what, fmt.Sprintf(format, args...))
}

// open begins a life, when the disk is not full any more.
func (m *model) open() error {
	err := m.tryOpen()
	for range m.fs.failFor {
		if err == nil || errors.Is(err, errCrash) {
			break
		}
		if m.spool != nil {
			m.spool.Close()
		}
		err = m.tryOpen()
	}
	return err
}

func (m *model) tryOpen() error {
	o := m.opts
	o.FS = m.fs
	s, err := Open("/s", o)
	m.spool, m.waiting = s, nil
	if err != nil {
		return err
	}
	for _, name := range []string{"a", "b"} {
		r := m.readers[name]
		if r.Reader, err = s.Reader(name); err != nil {
			return err
		}
		if r.Acked() < r.saved {
			m.fatalf("reader %s: cursor %d, after %d was made durable", name, r.Acked(), r.saved)
		}
		r.begun, r.life, r.last, r.committed = false, make(map[int]bool), -1, r.Acked()
	}
	return nil
}

func (m *model) append() error {
	var lines []byte
	n := 1 + m.rng.IntN(4)
	first := m.ids
	for i := range n {
		lines = fmt.Appendf(lines, "%d %s\n", first+i, strings.Repeat("x", m.rng.IntN(60)))
	}
	m.ids += n
	seq := m.spool.Stats().Next
	for i := range n { // also when it fails: it may be there after a crash
		m.seqOf[first+i] = seq + uint64(i)
		if m.idsAt[seq+uint64(i)] == nil {
			m.idsAt[seq+uint64(i)] = make(map[int]bool)
		}
		m.idsAt[seq+uint64(i)][first+i] = true
	}
	err := m.spool.Append(lines, n)
	switch {
	case errors.Is(err, errCrash):
		return err
	case err != nil:
		m.spool.Drop(uint64(n))
		for i := range n {
			m.given[first+i] = true
		}
		if errors.Is(err, ErrFull) == m.opts.DropOldest && m.fs.failAt == 0 {
			m.fatalf("append: %v", err)
		}
		return nil
	}
	for i := range n {
		m.waiting = append(m.waiting, first+i)
	}
	if m.opts.SyncAlways {
		m.settle()
	}
	return nil
}

func (m *model) settle() {
	for _, id := range m.waiting {
		m.durable[id] = true
	}
	m.waiting = nil
}

func (m *model) sync() error {
	err := m.spool.Sync()
	if err == nil {
		m.settle()
	}
	return err
}

func (m *model) maintain() error {
	said := map[string]uint64{}
	for name, r := range m.readers {
		said[name] = r.committed
	}
	err := m.spool.Maintain()
	if err == nil {
		for name, r := range m.readers {
			r.saved = said[name]
		}
	}
	return err
}

// read takes up to n entries and checks each.
func (m *model) read(name string, n int) error {
	r := m.readers[name]
	for range n {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if r.begun && e.Seq != r.pos {
			m.fatalf("reader %s: %d follows %d", name, e.Seq, r.pos)
		}
		if !r.begun && e.Seq != r.Acked() {
			m.fatalf("reader %s: begins with %d, its cursor is %d", name, e.Seq, r.Acked())
		}
		r.begun, r.pos = true, e.End()
		if e.Missing > 0 {
			r.missing = append(r.missing, e)
			continue
		}
		var id int
		if _, err := fmt.Sscanf(string(e.Line), "%d ", &id); err != nil || !m.idsAt[e.Seq][id] {
			m.fatalf("reader %s: %d is %q", name, e.Seq, e.Line)
		}
		if r.life[id] || id <= r.last {
			m.fatalf("reader %s: record %d after %d", name, id, r.last)
		}
		if r.delivered[id] {
			m.dups++
		}
		r.life[id], r.last, r.delivered[id] = true, id, true
	}
	return nil
}

// step does something.
func (m *model) step() error {
	name := []string{"a", "b"}[m.rng.IntN(2)]
	switch p := m.rng.IntN(20); {
	case p < 9:
		return m.append()
	case p < 11:
		return m.sync()
	case p < 15:
		return m.read(name, 1+m.rng.IntN(6))
	case p < 17:
		if r := m.readers[name]; r.begun {
			r.Commit(r.pos)
			r.committed = r.pos
		}
		return nil
	case p < 19:
		return m.maintain()
	}
	if err := m.spool.Close(); err == nil {
		m.settle() // Close has made all durable
		for _, r := range m.readers {
			r.saved = r.committed
		}
	} else if m.fs.failAt == 0 {
		return err
	}
	return m.open()
}

// finish reads to the end and holds the spool to its promise.
func (m *model) finish() {
	for name, r := range m.readers {
		if err := m.read(name, 1<<30); err != nil {
			m.fatalf("read: %v", err)
		}
		for id := range m.durable {
			if r.delivered[id] {
				continue
			}
			told := false
			for _, e := range r.missing {
				told = told || m.seqOf[id] >= e.Seq && m.seqOf[id] < e.End()
			}
			if !told || !m.opts.DropOldest {
				m.fatalf("reader %s: record %d (%d) was durable and is gone; told: %v", name, id, m.seqOf[id], told)
			}
		}
	}
	if s := m.spool.Stats(); s.Bytes > m.opts.MaxBytes {
		m.fatalf("%d bytes, the limit is %d", s.Bytes, m.opts.MaxBytes)
	}
}

const steps = 60

// run does the steps; true is a crash on the way.
func (m *model) run() bool {
	err := m.open()
	for range steps {
		if err != nil {
			break
		}
		err = m.step()
		if m.fs.failAt != 0 && !errors.Is(err, errCrash) {
			err = nil // no space: the caller goes on
		}
	}
	if err != nil && !errors.Is(err, errCrash) {
		m.fatalf("%v", err)
	}
	return err != nil
}

var modelOptions = map[string]Options{
	"never full":  {SegmentBytes: 400, MaxBytes: 1 << 30},
	"sync always": {SegmentBytes: 400, MaxBytes: 1 << 30, SyncAlways: true, KeepBytes: 1000},
	"drop oldest": {SegmentBytes: 400, MaxBytes: 1600, DropOldest: true},
	"refuse":      {SegmentBytes: 400, MaxBytes: 1600},
}

func TestCrashAtEveryOperation(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for name, o := range modelOptions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			crashes, dups := 0, 0
			for seed := range seeds {
				whole := newModel(t, fmt.Sprintf("seed %d", seed), seed, o)
				whole.run()
				whole.finish()
				for at := 1; at <= whole.fs.ops; at++ {
					m := newModel(t, fmt.Sprintf("seed %d, crash at operation %d", seed, at), seed, o)
					m.fs.crashAt = at
					if !m.run() {
						m.fatalf("no crash")
					}
					// again while it is opened, then to the end
					m.fs = m.fs.afterCrash(seed*1000 + uint64(at))
					m.fs.crashAt = 1 + m.rng.IntN(12)
					m.run()
					m.fs = m.fs.afterCrash(seed*1000 + uint64(at) + 1)
					m.run()
					m.finish()
					crashes++
					dups += m.dups
				}
			}
			t.Logf("%d crashes, %d records twice", crashes, dups)
			if crashes < 50 || dups == 0 {
				t.Errorf("%d crashes, %d records twice: the test does not test", crashes, dups)
			}
		})
	}
}

// With the disk full for a while nothing is lost but what Append refused.
func TestDiskFullAtEveryOperation(t *testing.T) {
	for name, o := range modelOptions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(2) {
				whole := newModel(t, "whole", seed, o)
				whole.run()
				for at := 6; at <= whole.fs.ops; at++ { // the readers are there
					m := newModel(t, fmt.Sprintf("seed %d, full from operation %d", seed, at), seed, o)
					m.fs.failAt, m.fs.failFor = at, 1+m.rng.IntN(8)
					m.run()
					m.finish()
				}
			}
		})
	}
}
