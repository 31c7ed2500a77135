// SPDX-License-Identifier: Apache-2.0

// Package diag lists the TCP sockets of a network namespace by
// NETLINK_SOCK_DIAG, which needs neither BPF nor BTF (sock_diag(7)). It is what
// stated looks with where the kernel has no iterator over sockets.
package diag

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// Batch is what one datagram of the kernel told. Each socket was as told at some
// moment between Begun and Got: the kernel looks at it without its lock, when it
// fills a datagram, and may fill one ahead.
type Batch struct {
	Begun   int64 // nanoseconds since boot, when the list was asked for
	Got     int64 // and when this part of it was read
	Sockets []event.Sighting
}

// attempts is how often a list is asked for that the kernel did not tell whole.
const attempts = 4

// Lister lists sockets. Its zero value is ready, and safe for several goroutines.
type Lister struct {
	Patience time.Duration // with a kernel that does not answer; 0: ten seconds

	mu    sync.Mutex
	stuck map[uint32]int // lists that wait still, by namespace
}

const (
	patience = 10 * time.Second
	maxStuck = 64 // namespaces in which a list waits; then none is asked for
)

// ErrSilent says that a list came to a socket whose lock a process keeps.
var ErrSilent = errors.New("the kernel does not answer, for a process keeps the lock of a socket there")

// List calls each with the TCP sockets in one of the states that are in the
// network namespace of the calling thread, which netns is the number of; mini
// sockets are in TIME_WAIT and SYN_RECV, as an iterator has them. The batch is
// valid during the call. Where the kernel says that its answer lacks something it
// is asked again, and each is given sockets twice. It does not say so of sockets
// that come, go or change their bucket meanwhile (inet_diag counts no generation):
// such a one may be missing or be told twice, as with an iterator. An error of
// each ends the list and is returned. errors.ErrUnsupported: this kernel has no
// tcp_diag. ErrSilent: it waits for the lock of a socket, to read its tcp_info, and
// that may be for ever.
//
// Facts that sock_diag does not know are zero: the error of a socket, who waits
// for it, what else keeps its file open, and the MPTCP connection of a subflow.
func (l *Lister) List(netns uint32, states event.StateSet, each func(*Batch) error) error {
	runtime.LockOSThread() // the socket belongs to the thread's namespace
	defer runtime.UnlockOSThread()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := errPartial
		for n := 0; n < attempts && errors.Is(err, errPartial); n++ {
			err = l.list(netns, family, states, each)
		}
		switch {
		case family == unix.AF_INET6 && errors.Is(err, errors.ErrUnsupported):
			return nil // a kernel without IPv6
		case err != nil:
			return fmt.Errorf("ask for the TCP sockets by sock_diag: %w", err)
		}
	}
	return nil
}

// errPartial says that the kernel's answer lacks something.
var errPartial = errors.New("the kernel's answer was interrupted each time")

// sequence is the number of the request, which answers carry.
const sequence = 0x57a7ed

// request is a struct nlmsghdr and a struct inet_diag_req_v2
// (include/uapi/linux/inet_diag.h) that asks for all, with their tcp_info.
func request(family uint8, states uint32) []byte {
	native := binary.NativeEndian
	msg := native.AppendUint32(make([]byte, 0, headerLen+requestLen), headerLen+requestLen)
	msg = native.AppendUint16(msg, unix.SOCK_DIAG_BY_FAMILY)
	msg = native.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	msg = native.AppendUint32(native.AppendUint32(msg, sequence), 0) // the port is the kernel's to choose
	msg = append(msg, family, unix.IPPROTO_TCP, 1<<(attrInfo-1), 0)
	msg = native.AppendUint32(msg, states)
	return msg[:cap(msg)] // any address
}

// list asks once.
func (l *Lister) list(netns uint32, family uint8, states event.StateSet, each func(*Batch) error) error {
	if !l.willing(netns) {
		return ErrSilent
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return unsupported(err)
	}
	asked := uint32(states)
	if states.Has(event.StateTimeWait) {
		asked |= 1 << event.StateFinWait2 // a mini socket is asked for by its substate
	}
	// not the pseudo state of what is bound only, which no iterator shows
	asked &^= 1<<event.StateBoundInactive | 1<<event.StateNewSynRecv
	// Who is root in the namespace may send to our port, too: root of a container
	// that has its own. The kernel refuses that when we are connected to it
	// (netlink_getsockbyportid).
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return err
	}
	k := newKernel(fd)
	d := decoder{netns: netns, states: states, begun: Now()}
	for k.write(request(family, asked)); ; k.read() {
		a, err := k.answer(cmp.Or(l.Patience, patience))
		switch {
		case errors.Is(err, ErrSilent):
			l.abandon(netns, k)
			return err
		case err == nil && !fromKernel(a.from): // sent before we were connected
			continue
		}
		done, err := d.take(&a, err, each)
		if done || err != nil {
			k.close()
			return err
		}
	}
}

// willing reports whether no list waits in the namespace, and not too many do.
func (l *Lister) willing(netns uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stuck[netns] == 0 && len(l.stuck) < maxStuck
}

// abandon leaves a list alone until the kernel lets it end.
func (l *Lister) abandon(netns uint32, k *kernel) {
	add := func(n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.stuck == nil {
			l.stuck = make(map[uint32]int)
		}
		if l.stuck[netns] += n; l.stuck[netns] == 0 {
			delete(l.stuck, netns)
		}
	}
	add(1)
	go func() {
		k.close()
		add(-1)
	}()
}

// take hands out what an answer tells, and reports whether it is the last.
func (d *decoder) take(a *answer, err error, each func(*Batch) error) (done bool, _ error) {
	switch {
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN), a.flags&unix.MSG_TRUNC != 0:
		return false, errPartial
	case err != nil:
		return false, err
	}
	d.got = a.at
	d.sockets = d.sockets[:0]
	if done, err = d.datagram(a.data); err != nil {
		return false, unsupported(err)
	}
	if len(d.sockets) > 0 {
		if err := each(&Batch{Begun: d.begun, Got: d.got, Sockets: d.sockets}); err != nil {
			return false, err
		}
	}
	if done && d.partial {
		return false, errPartial
	}
	return done, nil
}

func fromKernel(from unix.Sockaddr) bool {
	sender, ok := from.(*unix.SockaddrNetlink)
	return ok && sender.Pid == 0
}

// unsupported names what a kernel without inet_diag or tcp_diag answers.
func unsupported(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("%w: the kernel has no tcp_diag (CONFIG_INET_TCP_DIAG)", errors.ErrUnsupported)
	}
	return err
}

// Now is CLOCK_BOOTTIME in nanoseconds, as events are stamped.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("clock_gettime(CLOCK_BOOTTIME): %v", err)) // since 2.6.39
	}
	return ts.Nano()
}
