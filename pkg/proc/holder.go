// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Holder is a process that has descriptors of a socket.
type Holder struct {
	PID uint32
	TID uint32 // the thread whose own table it is, where the process's first thread has none left; else 0
	FDs []int  // ascending
}

// Scan says what was seen.
type Scan struct {
	Processes  int // looked at
	Unreadable int // not permitted (CAP_SYS_PTRACE): what they hold is unknown
}

// Descriptor is one of a process: of a socket, or of something in nsfs.
type Descriptor struct {
	PID    uint32
	TID    uint32 // as Holder.TID
	FD     int
	Socket uint64 // inode number, 0 it is no socket
	Netns  uint64 // inode number, 0 it is no network namespace
}

// Path is where it is found.
func (d *Descriptor) Path() string {
	if d.TID != 0 {
		return fmt.Sprintf("/proc/%d/task/%d/fd/%d", d.PID, d.TID, d.FD)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", d.PID, d.FD)
}

// Descriptors calls each for the sockets and network namespaces that processes
// have open, by reading /proc/*/fd, those of a process together. It costs a
// readlink(2) for each descriptor of the host.
func (r *Resolver) Descriptors(each func(*Descriptor)) (Scan, error) {
	var scan Scan
	root, err := openDir(r.root + "/proc")
	if err != nil {
		return scan, fmt.Errorf("list processes: %w", err)
	}
	defer root.close()
	err = root.each(".", func(name string) bool {
		pid, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return true
		}
		d, err := r.procDir(uint32(pid))
		if err != nil {
			return true // exited meanwhile
		}
		defer d.close()
		scan.Processes++
		if !descriptors(d, uint32(pid), each) {
			scan.Unreadable++
		}
		return true
	})
	return scan, err
}

// Holders finds who has the sockets of the given inode numbers open. A socket
// without holders is in flight (SCM_RIGHTS), held by the kernel or io_uring, or
// by a process that this /proc does not show.
func (r *Resolver) Holders(inodes map[uint64]struct{}) (map[uint64][]Holder, Scan, error) {
	found := make(map[uint64][]Holder)
	scan, err := r.Descriptors(func(d *Descriptor) {
		if _, ok := inodes[d.Socket]; !ok || d.Socket == 0 {
			return
		}
		hs := found[d.Socket]
		if n := len(hs); n == 0 || hs[n-1].PID != d.PID || hs[n-1].TID != d.TID {
			hs = append(hs, Holder{PID: d.PID, TID: d.TID})
		}
		h := &hs[len(hs)-1]
		h.FDs = append(h.FDs, d.FD)
		found[d.Socket] = hs
	})
	for _, hs := range found {
		slices.SortFunc(hs, func(a, b Holder) int { return int(a.PID) - int(b.PID) })
		for i := range hs {
			slices.Sort(hs[i].FDs)
		}
	}
	return found, scan, err
}

// descriptors looks at one process; false if it may not be read. When the first
// thread has exited its table is gone, but others may live on.
func descriptors(d dir, pid uint32, each func(*Descriptor)) bool {
	n, err := table(d, "fd", Descriptor{PID: pid}, each)
	if err != nil && !errors.Is(err, ErrGone) {
		return false
	}
	if n > 0 {
		return true
	}
	d.each("task", func(tid string) bool {
		id, err := strconv.ParseUint(tid, 10, 32)
		if err != nil || uint32(id) == pid {
			return true
		}
		n, _ := table(d, "task/"+tid+"/fd", Descriptor{PID: pid, TID: uint32(id)}, each)
		return n == 0 // threads share their table, but for those that called unshare(2)
	})
	return true
}

// table looks at one table of descriptors and returns how many it has.
func table(d dir, name string, of Descriptor, each func(*Descriptor)) (n int, err error) {
	fds, err := d.sub(name)
	if err != nil {
		return 0, err
	}
	defer fds.close()
	var buf [64]byte
	err = fds.each(".", func(fd string) bool {
		num, err := strconv.Atoi(fd)
		if err != nil {
			return true
		}
		n++
		size, err := unix.Readlinkat(fds.fd, fd, buf[:])
		if err != nil {
			return true
		}
		of.FD = num
		target := string(buf[:size])
		of.Socket, of.Netns = inode(target, "socket:["), inode(target, "net:[")
		if of.Socket != 0 || of.Netns != 0 {
			each(&of)
		}
		return true
	})
	return n, err
}
