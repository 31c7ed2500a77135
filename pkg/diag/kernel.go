// SPDX-License-Identifier: Apache-2.0

package diag

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// kernel asks the kernel on a goroutine of its own, which may wait for ever. It has
// one call under way at most.
type kernel struct {
	calls   chan func() answer
	answers chan answer
	ended   chan bool
	fd      int
	buf     []byte
}

type answer struct {
	data  []byte // until the next call
	flags int
	from  unix.Sockaddr
	at    int64 // nanoseconds since boot
	err   error
}

// newKernel takes over the descriptor.
func newKernel(fd int) *kernel {
	k := &kernel{
		calls: make(chan func() answer, 1), answers: make(chan answer, 1), ended: make(chan bool), fd: fd,
		buf: make([]byte, 32<<10), // what the kernel fills at most (netlink_dump)
	}
	go func() {
		defer close(k.ended)
		defer unix.Close(fd)
		for call := range k.calls {
			k.answers <- call()
		}
	}()
	return k
}

// write asks, for which the kernel fills the first answer already, and reads that.
func (k *kernel) write(b []byte) {
	k.calls <- func() answer {
		if _, err := unix.Write(k.fd, b); err != nil {
			return answer{err: err}
		}
		return k.receive()
	}
}

func (k *kernel) read() { k.calls <- k.receive }

func (k *kernel) receive() answer {
	for {
		n, _, flags, from, err := unix.Recvmsg(k.fd, k.buf, nil, 0)
		if !errors.Is(err, unix.EINTR) {
			return answer{k.buf[:max(n, 0)], flags, from, Now(), err}
		}
	}
}

// answer waits for that of the call. After ErrSilent there is no other.
func (k *kernel) answer(patience time.Duration) (answer, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a := <-k.answers:
		return a, a.err
	case <-timer.C:
		return answer{}, ErrSilent
	}
}

// close ends it when its call has been answered.
func (k *kernel) close() {
	close(k.calls)
	<-k.ended
}
