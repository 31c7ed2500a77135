// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"io"
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
//
// Without iterators sock_diag shows the sockets, each with its first holder from
// /proc, and there is no KindHolder. Order is kept in another way: see names.
func (p *Probe) Snapshot() error {
	if p.names != nil {
		return p.snapshotByDiag()
	}
	var errs []error
	if it := p.iters[bpfProgStIterFile]; it != nil {
		if err := runIter(it.Open); err != nil {
			errs = append(errs, fmt.Errorf("list the descriptors of sockets: %w", err))
		}
	}
	if it := p.iters[bpfProgStIterTcp]; it != nil {
		p.finder.each(func() error { return runIter(it.Open) }, func(name string, err error) {
			errs = append(errs, fmt.Errorf("list the sockets of %s: %w", name, err))
		})
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
