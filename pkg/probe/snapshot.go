// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Snapshot has the kernel tell every TCP socket of the host: first who holds
// descriptors (KindHolder), then each network namespace's sockets
// (KindSnapshot), then one KindSnapshotEnd. They arrive through Read among the
// other events, in causal order for each socket, so Read must go on meanwhile.
//
// A namespace that cannot be entered is an error in the result; the others are
// shown all the same. One that dies meanwhile is not.
func (p *Probe) Snapshot() error {
	var errs []error
	if it := p.iters[bpfProgStIterFile]; it != nil {
		if err := runIter(it.Open); err != nil {
			errs = append(errs, fmt.Errorf("list the descriptors of sockets: %w", err))
		}
	}
	if it := p.iters[bpfProgStIterTcp]; it != nil {
		for _, ns := range namespaces() {
			err := inNamespace(ns, func() error { return runIter(it.Open) })
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("list the sockets of %s: %w", ns, err))
			}
		}
	}
	boot, _ := Now()
	p.snapshotDone.Store(boot)
	return errors.Join(errs...)
}

// runIter drives an iterator to its end. The programs write to the ring buffer,
// not to the file, so a read returns nothing until all is done; on a huge host,
// or when the ring buffer fills, the kernel asks to be called again
// (bpf_seq_read in kernel/bpf/bpf_iter.c).
func runIter(open func() (io.ReadCloser, error)) error {
	f, err := open()
	if err != nil {
		return err
	}
	defer f.Close()
	var buf [4096]byte
	for {
		_, err := f.Read(buf[:])
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, unix.EAGAIN):
			time.Sleep(time.Millisecond) // the ring buffer is half full: let it be read
			continue
		case err == nil:
			continue
		}
		return err
	}
}

// namespaces returns a path for each network namespace that a process lives in
// or that has a name, the current one first.
func namespaces() []string {
	const self = "/proc/thread-self/ns/net"
	seen := make(map[uint64]bool)
	var paths []string
	add := func(path string) {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			paths = append(paths, path)
		}
	}
	add(self)
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/self/task/[0-9]*/ns/net", "/run/netns/*", "/run/docker/netns/*"} {
		matches, _ := filepath.Glob(pattern) // the pattern is well-formed
		for _, path := range matches {
			add(path)
		}
	}
	return paths
}

// inNamespace runs f on a thread of its own in the network namespace. The
// thread ends with it: it is never unlocked.
func inNamespace(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter (needs CAP_SYS_ADMIN): %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
