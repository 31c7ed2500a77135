// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"

	"golang.org/x/sys/unix"
)

// initialPIDs is the inode of the initial PID namespace (PID_NS_INIT_INO in
// include/uapi/linux/nsfs.h).
const initialPIDs = 0xEFFFFFFC

// InnerPIDs returns an error where this process is in a PID namespace other than the
// initial one: BPF has the numbers of that (task_struct's tgid), flags and /proc those
// of ours, and iterators show the tasks of ours alone (task_seq_get_next in
// kernel/bpf/task_iter.c).
func InnerPIDs() error {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return nil // no /proc, no numbers to mistake
	}
	return innerPIDs(st.Ino)
}

func innerPIDs(ino uint64) error {
	if ino == initialPIDs {
		return nil
	}
	return errors.New("this is a PID namespace other than the host's, which docker run --pid=host joins: to BPF processes have other numbers")
}
