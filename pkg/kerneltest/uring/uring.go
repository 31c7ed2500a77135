// SPDX-License-Identifier: Apache-2.0

// Package uring accepts, connects, reads and closes sockets by io_uring, for
// tests of who owns a socket that no system call made. It knows no more of
// io_uring than that.
package uring

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations and flags of include/uapi/linux/io_uring.h.
const (
	opAccept  = 13
	opConnect = 16
	opClose   = 19
	opRead    = 22
	opWrite   = 23

	sqeFixedFile = 1 << 0
	sqeAsync     = 1 << 4

	acceptMultishot = 1 << 0 // in the ioprio field, since 5.19

	enterGetEvents    = 1
	featSingleMmap    = 1
	registerFiles     = 2
	offRings, offSQEs = 0, 0x10000000
	cqeMore           = 1 << 1
)

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		_                                                           uint64
	}
	cq struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		_                                                           uint64
	}
}

// sqe is struct io_uring_sqe, as far as it is used here.
type sqe struct {
	op, flags uint8
	ioprio    uint16
	fd        int32
	off, addr uint64
	len       uint32
	opFlags   uint32
	userData  uint64
	_         uint16
	_         uint16
	fileIndex uint32
	_         [2]uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// Ring is one io_uring. It is for one goroutine.
type Ring struct {
	fd    int
	p     params
	rings []byte
	sqes  []byte
}

// New makes a ring. The error is the kernel's: ENOSYS before 5.1, EPERM where
// kernel.io_uring_disabled forbids it.
func New() (*Ring, error) {
	r := new(Ring)
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 8, uintptr(unsafe.Pointer(&r.p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r.fd = int(fd)
	if r.p.features&featSingleMmap == 0 {
		unix.Close(r.fd)
		return nil, fmt.Errorf("io_uring_setup: %w: rings of two mappings", unix.ENOTSUP)
	}
	size := max(int(r.p.sq.array+4*r.p.sqEntries), int(r.p.cq.cqes+16*r.p.cqEntries))
	var err error
	if r.rings, err = unix.Mmap(r.fd, offRings, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		unix.Close(r.fd)
		return nil, fmt.Errorf("mapping an io_uring: %w", err)
	}
	if r.sqes, err = unix.Mmap(r.fd, offSQEs, int(r.p.sqEntries)*int(unsafe.Sizeof(sqe{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		r.Close()
		return nil, fmt.Errorf("mapping an io_uring: %w", err)
	}
	return r, nil
}

// Close ends the ring and what still waits in it.
func (r *Ring) Close() {
	unix.Munmap(r.rings)
	if r.sqes != nil {
		unix.Munmap(r.sqes)
	}
	unix.Close(r.fd)
}

func (r *Ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }

// submit hands one entry to the kernel.
func (r *Ring) submit(e sqe) error {
	tail := r.word(r.p.sq.tail)
	at := *tail & *r.word(r.p.sq.ringMask)
	*(*sqe)(unsafe.Pointer(&r.sqes[uintptr(at)*unsafe.Sizeof(e)])) = e
	*r.word(r.p.sq.array + 4*at) = at
	atomic.StoreUint32(tail, *tail+1)
	return r.enter(1, 0, 0)
}

func (r *Ring) enter(submit, wait, flags uintptr) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, wait, flags, 0, 0)
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
	}
}

// Wait returns the next completion's result: what the system call of the same
// name would return, or its errno as the error. more says that the same
// submission will complete again.
func (r *Ring) Wait() (result int, more bool, _ error) {
	head := r.word(r.p.cq.head)
	for *head == atomic.LoadUint32(r.word(r.p.cq.tail)) {
		if err := r.enter(0, 1, enterGetEvents); err != nil {
			return 0, false, err
		}
	}
	c := *(*cqe)(unsafe.Pointer(&r.rings[r.p.cq.cqes+16*(*head&*r.word(r.p.cq.ringMask))]))
	atomic.StoreUint32(head, *head+1)
	if c.res < 0 {
		return 0, false, unix.Errno(-c.res)
	}
	return int(c.res), c.flags&cqeMore != 0, nil
}

// do submits an entry and waits for it.
func (r *Ring) do(e sqe) (int, error) {
	if err := r.submit(e); err != nil {
		return 0, err
	}
	n, _, err := r.Wait()
	return n, err
}

// How is how the kernel is asked to do an operation.
type How uint8

const (
	Inline How = iota // by the task that submits, or by its task work once it can be done
	Worker            // by a worker thread of the ring (IOSQE_ASYNC)
)

func (h How) flags() uint8 {
	if h == Worker {
		return sqeAsync
	}
	return 0
}

// SubmitAccept asks for one connection of the listener; Wait returns its descriptor.
func (r *Ring) SubmitAccept(listener int, how How) error {
	return r.submit(sqe{op: opAccept, flags: how.flags(), fd: int32(listener), opFlags: unix.SOCK_CLOEXEC})
}

// SubmitAcceptMultishot asks for all connections of the listener: Wait returns one each time.
// Before 5.19 the kernel answers EINVAL.
func (r *Ring) SubmitAcceptMultishot(listener int) error {
	return r.submit(sqe{op: opAccept, ioprio: acceptMultishot, fd: int32(listener), opFlags: unix.SOCK_CLOEXEC})
}

// RegisterFixed makes a table of n descriptors that only the ring knows.
func (r *Ring) RegisterFixed(n int) error {
	files := make([]int32, n)
	for i := range files {
		files[i] = -1
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerFiles, uintptr(unsafe.Pointer(&files[0])), uintptr(n), 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_register: %w", errno)
	}
	return nil
}

// SubmitAcceptFixed asks for one connection, which no descriptor of the process
// gets: it is number slot of the ring's own table. Before 5.15: EINVAL.
func (r *Ring) SubmitAcceptFixed(listener, slot int) error {
	return r.submit(sqe{op: opAccept, fd: int32(listener), fileIndex: uint32(slot) + 1})
}

// Connect connects the socket to an IPv4 address.
func (r *Ring) Connect(fd int, to *unix.SockaddrInet4, how How) error {
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr}
	p := (*[2]byte)(unsafe.Pointer(&sa.Port))
	p[0], p[1] = byte(to.Port>>8), byte(to.Port)
	_, err := r.do(sqe{op: opConnect, flags: how.flags(), fd: int32(fd), addr: uint64(uintptr(unsafe.Pointer(&sa))), off: uint64(unsafe.Sizeof(sa))})
	runtime.KeepAlive(&sa)
	return err
}

// Read reads from a descriptor, or with fixed from a slot of the ring's table.
func (r *Ring) Read(fd int, fixed bool, b []byte) (int, error) {
	return r.move(opRead, fd, fixed, b)
}

// Write writes to it.
func (r *Ring) Write(fd int, fixed bool, b []byte) (int, error) {
	return r.move(opWrite, fd, fixed, b)
}

func (r *Ring) move(op uint8, fd int, fixed bool, b []byte) (int, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&b[0])
	e := sqe{op: op, fd: int32(fd), addr: uint64(uintptr(unsafe.Pointer(&b[0]))), len: uint32(len(b))}
	if fixed {
		e.flags |= sqeFixedFile
	}
	return r.do(e)
}

// CloseFD closes a descriptor, or with fixed a slot of the ring's table.
func (r *Ring) CloseFD(fd int, fixed bool) error {
	e := sqe{op: opClose, fd: int32(fd)}
	if fixed {
		e.fd, e.fileIndex = 0, uint32(fd)+1
	}
	_, err := r.do(e)
	return err
}
