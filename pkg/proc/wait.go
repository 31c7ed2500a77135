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

// What of the process's memory is looked at.
const (
	maxPollFDs = 1 << 16
	maxThreads = 1 << 14
)

// search is one question and the best answer so far.
type search struct {
	r       *Resolver
	d       dir
	fd      int
	ino     uint64
	sets    map[int]uint32 // epoll descriptors that have the socket, with events
	uring   bool
	best    Wait
	unknown string
}

// Waits says whether a thread of the process waits on its descriptor fd, which
// must be a socket. It reads /proc/PID/task/TID/syscall (CAP_SYS_PTRACE; fs/proc/base.c,
// proc_pid_syscall), the process's memory for poll and select, and fdinfo of
// epoll sets (fs/eventpoll.c, ep_show_fdinfo). Requests in an io_uring are not shown by the kernel:
// where the process has a ring, WaitUnknown stands for WaitNone.
func (r *Resolver) Waits(pid uint32, fd int) (Wait, error) {
	d, err := r.procDir(pid)
	if err != nil {
		return Wait{}, fmt.Errorf("look who waits in process %d: %w", pid, err)
	}
	defer d.close()
	s := search{r: r, d: d, fd: fd, sets: make(map[int]uint32)}
	if s.ino = d.socket("fd/" + strconv.Itoa(fd)); s.ino == 0 {
		return Wait{}, fmt.Errorf("look who waits in process %d: descriptor %d is no socket, or may not be read", pid, fd)
	}
	if s.foreign() {
		return Wait{Detail: "the program is of another architecture or word size: its system calls are numbered differently"}, nil
	}
	s.findSets()
	if len(s.sets) > 0 {
		s.best = Wait{Kind: WaitWatched}
		for _, events := range s.sets {
			s.best.Events |= events
		}
	}
	threads := 0
	err = d.each("task", func(tid string) bool {
		if threads++; threads > maxThreads {
			s.unknown = "too many threads"
			return false
		}
		s.thread(tid)
		return s.best.Kind != WaitCall
	})
	if err != nil {
		return Wait{}, fmt.Errorf("look who waits in process %d: %w", pid, err)
	}
	switch {
	case s.best.Kind != WaitUnknown:
		return s.best, nil
	case s.unknown != "":
		return Wait{Detail: s.unknown}, nil
	case s.uring:
		return Wait{Detail: "it has an io_uring, whose requests the kernel does not show"}, nil
	}
	return Wait{Kind: WaitNone}, nil
}

// foreign reports whether the program is not one of our own ABI. Where it cannot
// be read, it is taken for ours.
func (s *search) foreign() bool {
	b, _, err := s.d.file("exe", 20)
	if err != nil || len(b) < 20 {
		return false
	}
	data := elf.ELFDATA2LSB
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		data = elf.ELFDATA2MSB
	}
	return elf.Class(b[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(b[elf.EI_DATA]) != data || elf.Machine(binary.NativeEndian.Uint16(b[18:])) != machine
}

// findSets finds the epoll sets that the socket is in, also by way of a set in a set.
func (s *search) findSets() {
	inner := make(map[int]map[int]uint32) // set -> sets it is in
	s.d.each("fd", func(name string) bool {
		fd, err := strconv.Atoi(name)
		if err != nil {
			return true
		}
		var buf [64]byte
		n, _ := unix.Readlinkat(s.d.fd, "fd/"+name, buf[:])
		switch string(buf[:max(n, 0)]) {
		case "anon_inode:[io_uring]":
			s.uring = true
		case "anon_inode:[eventpoll]":
			info, more, err := s.d.file("fdinfo/"+name, 16<<20)
			if err != nil || more {
				s.unknown = "an epoll set could not be read"
				return true
			}
			s.readSet(fd, string(info), inner)
		}
		return true
	})
	for range 4 { // EP_MAX_NESTS
		for set, outers := range inner {
			if events, ok := s.sets[set]; ok {
				for outer := range outers {
					s.sets[outer] |= events
				}
			}
		}
	}
}

// readSet reads "tfd: 3 events: 19 data: 3 pos:0 ino:95871 sdev:9" lines. The
// number is the one it was added under and may be another file's by now: a
// socket is known by its inode, which is hexadecimal here.
func (s *search) readSet(set int, info string, inner map[int]map[int]uint32) {
	for line := range strings.Lines(info) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "tfd:" || f[2] != "events:" {
			continue
		}
		events, _ := strconv.ParseUint(f[3], 16, 32)
		tfd, _ := strconv.Atoi(f[1])
		ino, known := uint64(0), false
		for _, w := range f[4:] {
			if v, ok := strings.CutPrefix(w, "ino:"); ok {
				ino, _ = strconv.ParseUint(v, 16, 64)
				known = true
			}
		}
		if known && ino == s.ino || !known && tfd == s.fd { // ino since 4.13
			s.sets[set] |= uint32(events)
			continue
		}
		if inner[tfd] == nil {
			inner[tfd] = make(map[int]uint32)
		}
		inner[tfd][set] = uint32(events)
	}
}

// thread looks at what one thread does.
func (s *search) thread(tid string) {
	b, _, err := s.d.file("task/"+tid+"/syscall", 512)
	if errors.Is(err, ErrGone) {
		return
	}
	if err != nil {
		s.unknown = "the system calls of its threads may not be read (CAP_SYS_PTRACE)"
		return
	}
	f := strings.Fields(string(b))
	if len(f) < 7 {
		return // "running", or stopped outside of a system call
	}
	nr, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return
	}
	var args [6]uint64
	for i := range args {
		args[i], _ = strconv.ParseUint(f[i+1], 0, 64)
	}
	if w := s.call(nr, args); w.Kind > s.best.Kind {
		id, _ := strconv.ParseUint(tid, 10, 32)
		w.TID = uint32(id)
		s.best = w
	}
}

// call says whether a system call waits on the socket.
func (s *search) call(nr int64, args [6]uint64) Wait {
	c, ok := waitCalls[nr]
	if !ok {
		return Wait{}
	}
	switch c.how {
	case onFD:
		if s.same(int(int32(args[0]))) {
			return Wait{Kind: WaitCall, Call: c.name}
		}
	case onEpoll:
		if events, ok := s.sets[int(int32(args[0]))]; ok {
			return Wait{Kind: WaitPoll, Call: c.name, Events: events}
		}
	case onPoll:
		return s.polled(c.name, args[0], args[1])
	case onSelect:
		return s.selected(c.name, args)
	}
	return Wait{}
}

// same reports whether fd is the socket, be it under another number (dup).
func (s *search) same(fd int) bool {
	return fd == s.fd || fd >= 0 && s.d.socket("fd/"+strconv.Itoa(fd)) == s.ino
}

func (s *search) polled(name string, addr, n uint64) Wait {
	if n > maxPollFDs {
		s.unknown = "a thread polls too many descriptors"
		return Wait{}
	}
	b, ok := s.memory(addr, int(n)*8) // struct pollfd: int fd, short events, revents
	if !ok {
		return Wait{}
	}
	for ; len(b) >= 8; b = b[8:] {
		if s.same(int(int32(binary.NativeEndian.Uint32(b)))) {
			return Wait{Kind: WaitPoll, Call: name, Events: uint32(binary.NativeEndian.Uint16(b[4:]))}
		}
	}
	return Wait{}
}

// selected reads the three sets; the kernel writes them only when it returns
// (fs/select.c, core_sys_select).
func (s *search) selected(name string, args [6]uint64) Wait {
	w := Wait{Kind: WaitPoll, Call: name}
	for i, events := range []uint32{unix.POLLIN, unix.POLLOUT, unix.POLLPRI} {
		if args[1+i] == 0 || uint64(s.fd) >= args[0] {
			continue
		}
		b, ok := s.memory(args[1+i]+uint64(s.fd/64*8), 8)
		if ok && binary.NativeEndian.Uint64(b)&(1<<(s.fd%64)) != 0 {
			w.Events |= events
		}
	}
	if w.Events == 0 {
		return Wait{}
	}
	return w
}

func (s *search) memory(addr uint64, n int) ([]byte, bool) {
	b := make([]byte, n)
	fd, err := unix.Openat(s.d.fd, "mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		f := os.NewFile(uintptr(fd), "mem")
		defer f.Close()
		_, err = io.ReadFull(io.NewSectionReader(f, int64(addr), int64(n)), b)
	}
	if err != nil {
		s.unknown = "what its threads poll for may not be read (CAP_SYS_PTRACE)"
	}
	return b, err == nil
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
