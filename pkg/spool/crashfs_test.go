// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
)

var errCrash = errors.New("the machine is off")

// crashFS is a file system in memory that forgets like a real one. What was not
// synced survives a crash wholly, in part, or not at all, each write for
// itself; so does the making and removing of names before their folder was
// synced.
type crashFS struct {
	rng     *rand.Rand
	names   map[string]*inode // as programs see it
	durable map[string]*inode // as the disk has it
	ops     int               // that change something
	crashAt int               // the operation in which the machine goes off; 0 never
	failAt  int               // from this operation on there is no space ...
	failFor int               // ... for so many operations
}

type inode struct {
	data    []byte
	synced  []byte
	pending []write // since synced
}

type write struct {
	off      int64
	data     []byte
	truncate bool
}

func newCrashFS(seed uint64) *crashFS {
	return &crashFS{rng: rand.New(rand.NewPCG(seed, 1)), names: make(map[string]*inode), durable: make(map[string]*inode)}
}

// op counts an operation and says whether it fails.
func (c *crashFS) op() error {
	c.ops++
	switch {
	case c.crashAt != 0 && c.ops >= c.crashAt:
		return errCrash
	case c.failAt != 0 && c.ops >= c.failAt && c.ops < c.failAt+c.failFor:
		return syscall.ENOSPC
	}
	return nil
}

// afterCrash is what is found when the machine is on again.
func (c *crashFS) afterCrash(seed uint64) *crashFS {
	next := newCrashFS(seed)
	names := make([]string, 0, len(c.names)+len(c.durable))
	for name := range c.names {
		names = append(names, name)
	}
	for name := range c.durable {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		node := c.durable[name]
		if next.rng.IntN(2) == 0 {
			node = c.names[name]
		}
		if node == nil {
			continue
		}
		data := node.survive(next.rng)
		next.names[name] = &inode{data: data, synced: slices.Clone(data)}
		next.durable[name] = next.names[name]
	}
	return next
}

// survive applies some of what was not synced.
func (n *inode) survive(rng *rand.Rand) []byte {
	data := slices.Clone(n.synced)
	mode := rng.IntN(4)
	for _, w := range n.pending {
		switch mode {
		case 0:
			continue
		case 1:
		default:
			if rng.IntN(3) == 0 {
				continue
			}
			if !w.truncate && rng.IntN(3) == 0 { // torn: a part of it, what is before may be zero
				from := rng.IntN(len(w.data) + 1)
				to := from + rng.IntN(len(w.data)-from+1)
				w = write{off: w.off + int64(from), data: w.data[from:to]}
			}
		}
		data = w.apply(data)
	}
	return data
}

func (w write) apply(data []byte) []byte {
	if w.truncate {
		if int64(len(data)) < w.off {
			return append(data, make([]byte, w.off-int64(len(data)))...)
		}
		return data[:w.off]
	}
	if len(w.data) == 0 {
		return data
	}
	if end := w.off + int64(len(w.data)); int64(len(data)) < end {
		data = append(data, make([]byte, end-int64(len(data)))...)
	}
	copy(data[w.off:], w.data)
	return data
}

func (c *crashFS) MkdirAll(string) error { return nil }

func (c *crashFS) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

func (c *crashFS) List(dir string) ([]string, error) {
	var names []string
	for name := range c.names {
		if filepath.Dir(name) == dir {
			names = append(names, filepath.Base(name))
		}
	}
	return names, nil
}

func (c *crashFS) Open(name string, create bool) (File, error) {
	node := c.names[name]
	if node == nil {
		if !create {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		if err := c.op(); err != nil {
			return nil, err
		}
		node = new(inode)
		c.names[name] = node
	}
	return &crashFile{fs: c, node: node}, nil
}

func (c *crashFS) Remove(name string) error {
	if err := c.op(); err != nil {
		return err
	}
	if c.names[name] == nil {
		return fmt.Errorf("remove %s: %w", name, fs.ErrNotExist)
	}
	delete(c.names, name)
	return nil
}

func (c *crashFS) SyncDir(dir string) error {
	if err := c.op(); err != nil {
		return err
	}
	clear(c.durable)
	for name, node := range c.names {
		c.durable[name] = node
	}
	return nil
}

type crashFile struct {
	fs     *crashFS
	node   *inode
	closed bool
}

func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	if f.closed {
		return 0, fs.ErrClosed
	}
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *crashFile) change(w write) {
	f.node.data = w.apply(f.node.data)
	f.node.pending = append(f.node.pending, w)
}

func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	if f.closed {
		return 0, fs.ErrClosed
	}
	w := write{off: off, data: slices.Clone(p)}
	err := f.fs.op()
	if err != nil {
		w.data = w.data[:f.fs.rng.IntN(len(p)+1)]
	}
	f.change(w)
	return len(w.data), err
}

func (f *crashFile) Size() (int64, error) { return int64(len(f.node.data)), nil }

func (f *crashFile) Truncate(size int64) error {
	if f.closed {
		return fs.ErrClosed
	}
	if err := f.fs.op(); err != nil {
		return err
	}
	f.change(write{off: size, truncate: true})
	return nil
}

func (f *crashFile) Sync() error {
	if f.closed {
		return fs.ErrClosed
	}
	if err := f.fs.op(); err != nil {
		return err
	}
	f.node.synced, f.node.pending = slices.Clone(f.node.data), nil
	return nil
}

func (f *crashFile) Close() error {
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}
