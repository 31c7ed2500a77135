// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// WaitKind says how the threads of a process stand to a socket.
type WaitKind uint8

const (
	WaitUnknown WaitKind = iota // see Detail
	WaitNone                    // no thread waits on it, and no epoll set has it
	WaitWatched                 // in an epoll set on which no thread waits right now
	WaitPoll                    // a thread waits in poll, select or epoll_wait for this among others
	WaitCall                    // a thread waits in a call on this descriptor: recv, accept, ...
)

func (k WaitKind) String() string {
	return [...]string{"unknown", "none", "watched", "poll", "call"}[k]
}

// Wait is what one look at the threads of a process gave. It is a sample: a
// thread that runs is not waiting, and may the next moment. A runtime that
// polls for its own threads (Go, Node, Java NIO) waits on every socket it has,
// whether or not anybody in the program reads it.
type Wait struct {
	Kind   WaitKind
	TID    uint32 // of the waiting thread, if any
	Call   string // that it waits in: recvfrom, epoll_wait
	Events uint32 // EPOLL* or POLL* bits waited for, 0 unknown; only 0x40000000 (ONESHOT) and the like: disarmed
	Detail string // for WaitUnknown: why
}

// How much is looked at.
const (
	maxPollFDs = 1 << 16
	maxThreads = 1 << 14
	maxSet     = 64 << 20 // bytes of fdinfo, about 80 for each member
)

// Waiters is what one look at all threads of a process gave, for any number of
// its sockets. Safe for concurrent use.
type Waiters struct {
	best    map[uint64]Wait // by inode of the socket
	sockets map[int]uint64  // inode by descriptor
	unknown string          // why WaitNone cannot be said
}

// On says whether a thread waits on a descriptor, which must be a socket.
func (w *Waiters) On(fd int) (Wait, error) {
	ino := w.sockets[fd]
	if ino == 0 {
		return Wait{}, fmt.Errorf("look who waits on descriptor %d: it is no socket, or may not be read", fd)
	}
	if best, ok := w.best[ino]; ok {
		return best, nil
	}
	if w.unknown != "" {
		return Wait{Detail: w.unknown}, nil
	}
	return Wait{Kind: WaitNone}, nil
}

func (w *Waiters) offer(ino uint64, wait Wait) {
	old := w.best[ino]
	if wait.Kind < old.Kind || ino == 0 {
		return
	}
	if wait.Kind == old.Kind {
		old.Events |= wait.Events
		wait = old
	}
	w.best[ino] = wait
}

// Waits says whether a thread of the process waits on its descriptor fd, which
// must be a socket. For many sockets of one process ask Waiters once.
func (r *Resolver) Waits(pid uint32, fd int) (Wait, error) {
	w, err := r.Waiters(pid)
	if err != nil {
		return Wait{}, err
	}
	return w.On(fd)
}

// Waiters looks what the threads of a process wait for. It reads /proc/PID/task/TID/syscall
// (CAP_SYS_PTRACE; fs/proc/base.c, proc_pid_syscall), the process's memory for
// poll and select, and fdinfo of epoll sets (fs/eventpoll.c, ep_show_fdinfo).
// Requests in an io_uring are not shown by the kernel: where the process has a
// ring, WaitUnknown stands for WaitNone.
func (r *Resolver) Waiters(pid uint32) (*Waiters, error) {
	d, err := r.procDir(pid)
	if err != nil {
		return nil, fmt.Errorf("look who waits in process %d: %w", pid, err)
	}
	defer d.close()
	w := &Waiters{best: make(map[uint64]Wait), sockets: make(map[int]uint64)}
	l := look{w: w, d: d, sets: make(map[int]map[uint64]uint32), nested: make(map[int]map[int]bool)}
	if err := l.descriptors(); err != nil {
		return nil, fmt.Errorf("look who waits in process %d: %w", pid, err)
	}
	if l.foreign() {
		w.unknown = "the program is of another architecture or word size: its system calls are numbered differently"
	} else if err := l.threads(); err != nil {
		return nil, fmt.Errorf("look who waits in process %d: %w", pid, err)
	}
	return w, nil
}

// look is one look in progress.
type look struct {
	w      *Waiters
	d      dir
	sets   map[int]map[uint64]uint32 // epoll descriptor -> sockets in it, with events
	nested map[int]map[int]bool      // epoll descriptor -> those that it is in
}

// foreign reports whether the program is not one of our own ABI. Where it cannot
// be read, it is taken for ours.
func (l *look) foreign() bool {
	b, _, _ := l.d.file("exe", 20)
	if len(b) < 20 {
		return false
	}
	data := elf.ELFDATA2LSB
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		data = elf.ELFDATA2MSB
	}
	return elf.Class(b[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(b[elf.EI_DATA]) != data || elf.Machine(binary.NativeEndian.Uint16(b[18:])) != machine
}

// descriptors finds the sockets, and the epoll sets that they are in.
func (l *look) descriptors() error {
	var epolls []int
	err := l.d.each("fd", func(name string) bool {
		fd, err := strconv.Atoi(name)
		if err != nil {
			return true
		}
		var buf [64]byte
		n, _ := unix.Readlinkat(l.d.fd, "fd/"+name, buf[:])
		switch link := string(buf[:max(n, 0)]); link {
		case "anon_inode:[io_uring]":
			l.w.unknown = "it has an io_uring, whose requests the kernel does not show"
		case "anon_inode:[eventpoll]":
			epolls = append(epolls, fd)
		default:
			if ino := inode(link, "socket:["); ino != 0 {
				l.w.sockets[fd] = ino
			}
		}
		return true
	})
	for _, fd := range epolls {
		info, more, err := l.d.file("fdinfo/"+strconv.Itoa(fd), maxSet)
		if err != nil || more {
			l.w.unknown = "an epoll set could not be read"
			continue
		}
		l.readSet(fd, string(info))
	}
	for range 4 { // EP_MAX_NESTS
		for set, outers := range l.nested {
			for outer := range outers {
				l.add(outer, l.sets[set])
			}
		}
	}
	for _, members := range l.sets {
		for ino, events := range members {
			l.w.offer(ino, Wait{Kind: WaitWatched, Events: events})
		}
	}
	return err
}

func (l *look) add(set int, members map[uint64]uint32) {
	if l.sets[set] == nil {
		l.sets[set] = make(map[uint64]uint32)
	}
	for ino, events := range members {
		l.sets[set][ino] |= events
	}
}

// readSet reads "tfd: 3 events: 19 data: 3 pos:0 ino:95871 sdev:9" lines. The
// number is the one it was added under and may be another file's by now: a
// socket is known by its inode, which is hexadecimal here.
func (l *look) readSet(set int, info string) {
	members := make(map[uint64]uint32)
	for line := range strings.Lines(info) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "tfd:" || f[2] != "events:" {
			continue
		}
		events, _ := strconv.ParseUint(f[3], 16, 32)
		tfd, err := strconv.Atoi(f[1])
		if err != nil {
			continue
		}
		ino := l.w.sockets[tfd]
		for _, word := range f[4:] {
			if v, ok := strings.CutPrefix(word, "ino:"); ok { // since 4.13
				ino, _ = strconv.ParseUint(v, 16, 64)
			}
		}
		members[ino] |= uint32(events)
		if l.nested[tfd] == nil {
			l.nested[tfd] = make(map[int]bool)
		}
		l.nested[tfd][set] = true
	}
	l.add(set, members)
}

func (l *look) threads() error {
	n := 0
	return l.d.each("task", func(tid string) bool {
		if n++; n > maxThreads {
			l.w.unknown = "too many threads"
			return false
		}
		l.thread(tid)
		return true
	})
}

// thread looks at what one thread does.
func (l *look) thread(tid string) {
	b, _, err := l.d.file("task/"+tid+"/syscall", 512)
	if errors.Is(err, ErrGone) {
		return
	}
	if err != nil {
		l.w.unknown = "the system calls of its threads may not be read (CAP_SYS_PTRACE)"
		return
	}
	f := strings.Fields(string(b))
	if len(f) < 7 {
		return // "running", or stopped outside of a system call
	}
	nr, err := strconv.ParseInt(f[0], 10, 64)
	c, ok := waitCalls[nr]
	if err != nil || !ok {
		return
	}
	var args [6]uint64
	for i := range args {
		args[i], _ = strconv.ParseUint(f[i+1], 0, 64)
	}
	id, _ := strconv.ParseUint(tid, 10, 32)
	wait := Wait{Kind: WaitPoll, TID: uint32(id), Call: c.name}
	switch c.how {
	case onFD:
		wait.Kind = WaitCall
		l.w.offer(l.w.sockets[int(int32(args[0]))], wait)
	case onEpoll:
		for ino, events := range l.sets[int(int32(args[0]))] {
			wait.Events = events
			l.w.offer(ino, wait)
		}
	case onPoll:
		l.polled(wait, args[0], args[1])
	case onSelect:
		l.selected(wait, args)
	}
}

// polled reads an array of struct pollfd: int fd, short events, short revents.
func (l *look) polled(wait Wait, addr, n uint64) {
	if n > maxPollFDs {
		l.w.unknown = "a thread polls too many descriptors"
		return
	}
	for b := l.memory(addr, int(n)*8); len(b) >= 8; b = b[8:] {
		wait.Events = uint32(binary.NativeEndian.Uint16(b[4:]))
		l.w.offer(l.w.sockets[int(int32(binary.NativeEndian.Uint32(b)))], wait)
	}
}

// selected reads the three sets; the kernel writes them only when it returns
// (fs/select.c, core_sys_select).
func (l *look) selected(wait Wait, args [6]uint64) {
	words := int(min(args[0], maxPollFDs)+63) / 64
	for i, events := range []uint32{unix.POLLIN, unix.POLLOUT, unix.POLLPRI} {
		if args[1+i] == 0 {
			continue
		}
		b := l.memory(args[1+i], words*8)
		wait.Events = events
		for fd := 0; fd/64*8 < len(b) && uint64(fd) < args[0]; fd++ {
			if binary.NativeEndian.Uint64(b[fd/64*8:])&(1<<(fd%64)) != 0 {
				l.w.offer(l.w.sockets[fd], wait)
			}
		}
	}
}

// memory reads n bytes of the process's memory, or none.
func (l *look) memory(addr uint64, n int) []byte {
	b := make([]byte, n)
	fd, err := unix.Openat(l.d.fd, "mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		f := os.NewFile(uintptr(fd), "mem")
		defer f.Close()
		_, err = io.ReadFull(io.NewSectionReader(f, int64(addr), int64(n)), b)
	}
	if err != nil {
		l.w.unknown = "what its threads poll for may not be read (CAP_SYS_PTRACE)"
		return nil
	}
	return b
}

type waitHow uint8

const (
	onFD waitHow = iota
	onEpoll
	onPoll
	onSelect
)

type waitCall struct {
	name string
	how  waitHow
}

// waitCalls are the calls that wait for descriptors, by number; those that only
// some architectures have are added in wait_ARCH.go.
var waitCalls = withOld(map[int64]waitCall{
	unix.SYS_READ:         {"read", onFD},
	unix.SYS_READV:        {"readv", onFD},
	unix.SYS_RECVFROM:     {"recvfrom", onFD},
	unix.SYS_RECVMSG:      {"recvmsg", onFD},
	unix.SYS_RECVMMSG:     {"recvmmsg", onFD},
	unix.SYS_WRITE:        {"write", onFD},
	unix.SYS_WRITEV:       {"writev", onFD},
	unix.SYS_SENDTO:       {"sendto", onFD},
	unix.SYS_SENDMSG:      {"sendmsg", onFD},
	unix.SYS_SENDMMSG:     {"sendmmsg", onFD},
	unix.SYS_SENDFILE:     {"sendfile", onFD},
	unix.SYS_SPLICE:       {"splice", onFD},
	unix.SYS_CONNECT:      {"connect", onFD},
	unix.SYS_ACCEPT4:      {"accept4", onFD},
	unix.SYS_EPOLL_PWAIT:  {"epoll_pwait", onEpoll},
	unix.SYS_EPOLL_PWAIT2: {"epoll_pwait2", onEpoll},
	unix.SYS_PPOLL:        {"ppoll", onPoll},
	unix.SYS_PSELECT6:     {"pselect6", onSelect},
})
