// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// Holder is a process that has descriptors of a socket.
type Holder struct {
	PID uint32
	TID uint32 // the thread whose own table it is, where the process's first thread has none left; else 0
	FDs []int  // ascending
}

// Scan says what Holders could see.
type Scan struct {
	Processes  int // looked at
	Unreadable int // not permitted (CAP_SYS_PTRACE): what they hold is unknown
}

// Holders finds who has the sockets of the given inode numbers open, by reading
// /proc/*/fd. It costs a readlink(2) for each descriptor of the host. A socket
// without holders is in flight (SCM_RIGHTS), held by the kernel or io_uring, or
// by a process that this /proc does not show.
func (r *Resolver) Holders(inodes map[uint64]struct{}) (map[uint64][]Holder, Scan, error) {
	found := make(map[uint64][]Holder)
	var scan Scan
	root, err := openDir(r.root + "/proc")
	if err != nil {
		return nil, scan, fmt.Errorf("list processes: %w", err)
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
		if !holds(d, uint32(pid), inodes, found) {
			scan.Unreadable++
		}
		return true
	})
	for _, hs := range found {
		slices.SortFunc(hs, func(a, b Holder) int { return int(a.PID) - int(b.PID) })
	}
	return found, scan, err
}

// holds adds what one process has of inodes; false if it may not be read. When
// the first thread has exited its table is gone, but others may live on.
func holds(d dir, pid uint32, inodes map[uint64]struct{}, found map[uint64][]Holder) bool {
	n, err := addFDs(d, "fd", Holder{PID: pid}, inodes, found)
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
		n, _ := addFDs(d, "task/"+tid+"/fd", Holder{PID: pid, TID: uint32(id)}, inodes, found)
		return n == 0 // threads share their table, but for those that called unshare(2)
	})
	return true
}

// addFDs adds one table of descriptors and returns how many it has.
func addFDs(d dir, name string, h Holder, inodes map[uint64]struct{}, found map[uint64][]Holder) (n int, err error) {
	mine := make(map[uint64][]int)
	fds, err := d.sub(name)
	if err != nil {
		return 0, err
	}
	defer fds.close()
	err = fds.each(".", func(fd string) bool {
		num, err := strconv.Atoi(fd)
		if err != nil {
			return true
		}
		n++
		ino := fds.socket(fd)
		if _, ok := inodes[ino]; ok && ino != 0 {
			mine[ino] = append(mine[ino], num)
		}
		return true
	})
	for ino, nums := range mine {
		slices.Sort(nums)
		h.FDs = nums
		found[ino] = append(found[ino], h)
	}
	return n, err
}
