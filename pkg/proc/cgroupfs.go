// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const maxGroups = 1 << 16 // remembered ids

// cgroupTree finds groups by id in cgroup v2. The id of a group is the inode
// number of its directory (fs/kernfs: kernfs_ino on 64-bit) and never used
// again, so what was found or not found stays true.
type cgroupTree struct {
	root string // Options.Root
	mu   sync.Mutex
	byID map[uint64]string // "" known to be absent
}

// Cgroup describes the group of a cgroup v2 id, as BPF reads it from a socket
// or a task. False if it is unknown: removed, or no cgroup v2 is mounted.
func (r *Resolver) Cgroup(id uint64) (Cgroup, bool) {
	path := r.tree.pathOf(id)
	if path == "" {
		return Cgroup{}, false
	}
	c := ParseCgroup(path)
	c.ID = id
	return c, true
}

// mount returns where cgroup v2 is: alone, or beside v1 (hybrid).
func (t *cgroupTree) mount() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(t.root + dir + "/cgroup.controllers"); err == nil {
			return t.root + dir
		}
	}
	return ""
}

// idOf returns the id of the group at path, 0 if it is not there.
func (t *cgroupTree) idOf(path string) uint64 {
	m := t.mount()
	var st unix.Stat_t
	if m == "" || strings.Contains(path, "..") || unix.Stat(m+path, &st) != nil {
		return 0
	}
	return st.Ino
}

func (t *cgroupTree) pathOf(id uint64) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if path, ok := t.byID[id]; ok {
		return path
	}
	m := t.mount()
	if m == "" || id == 0 {
		return ""
	}
	if len(t.byID) >= maxGroups || t.byID == nil {
		t.byID = make(map[uint64]string)
	}
	path, err := openByID(m, id)
	if err != nil {
		t.walk(m)
		path = t.byID[id]
	}
	t.byID[id] = path
	return path
}

const fileidKernfs = 0xfe // include/linux/exportfs.h, FILEID_KERNFS: the handle is the id

// openByID asks the kernel for the group, which spares walking the tree. Needs
// CAP_DAC_READ_SEARCH and Linux 5.5. "" without error: there is no such group.
func openByID(mount string, id uint64) (string, error) {
	var sfs unix.Statfs_t
	if err := unix.Statfs(mount, &sfs); err != nil {
		return "", err
	}
	if int64(sfs.Type) != unix.CGROUP2_SUPER_MAGIC {
		return "", errors.New("not cgroup v2")
	}
	m, err := unix.Open(mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(m)
	fd, err := unix.OpenByHandleAt(m, unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id)), unix.O_PATH|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	full, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(mount, full)
	if err != nil || strings.HasPrefix(rel, "..") {
		return "", errors.New("outside of the mount")
	}
	return filepath.Join("/", rel), nil
}

func (t *cgroupTree) walk(mount string) {
	filepath.WalkDir(mount, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil // removed meanwhile
		}
		if len(t.byID) >= maxGroups {
			return filepath.SkipAll
		}
		if info, err := e.Info(); err == nil {
			rel, _ := filepath.Rel(mount, path)
			t.byID[info.Sys().(*syscall.Stat_t).Ino] = filepath.Join("/", rel)
		}
		return nil
	})
}
