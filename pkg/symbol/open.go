// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const maxFile = 2 << 30 // bytes of an executable or debug file that is looked at

// openAt opens a file below dir for reading. A FIFO does not block.
func openAt(dir *os.File, name string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY | flags}
	fd, err := unix.Openat2(int(dir.Fd()), name, &how)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openIn opens a regular file by its path inside a root, which no symbolic link
// leaves (openat2(2), RESOLVE_IN_ROOT, Linux 5.6).
func openIn(root *os.File, name string, noFollow bool) (*os.File, error) {
	if root == nil {
		return nil, errors.New("the root of the process may not be read (CAP_SYS_PTRACE)")
	}
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if noFollow {
		how.Flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Openat2(int(root.Fd()), name, &how)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return regular(os.NewFile(uintptr(fd), name))
}

func regular(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is no regular file", f.Name())
	case info.Size() > maxFile:
		err = fmt.Errorf("%s has %d bytes, more than is read", f.Name(), info.Size())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openMapped opens the file of a mapping: the very file by map_files
// (CAP_CHECKPOINT_RESTORE, Linux 5.9, or CAP_SYS_ADMIN), or what is at its path,
// if the inode is the same.
func (p *Process) openMapped(m mapping) (*os.File, error) {
	if f, err := openAt(p.proc, fmt.Sprintf("map_files/%x-%x", m.start, m.end), 0); err == nil {
		return regular(f)
	}
	if m.deleted {
		return nil, fmt.Errorf("%s was deleted, and map_files may not be read (CAP_CHECKPOINT_RESTORE)", m.path)
	}
	f, err := openIn(p.root, m.path, false)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != m.ino {
		f.Close()
		return nil, fmt.Errorf("%s is another file now", m.path)
	}
	return f, nil
}

const debugDir = "/usr/lib/debug"

// debugFile finds the separate debug file of the executable at exe, by build id
// and by .gnu_debuglink (GDB manual, Separate Debug Files), in the root of the
// process. nil: there is none, or it is not of this build. The caller closes it.
func (p *Process) debugFile(exe, buildID, link string, crc uint32) *os.File {
	if len(buildID) > 2 {
		f, err := openIn(p.root, debugDir+"/.build-id/"+buildID[:2]+"/"+buildID[2:]+".debug", false)
		if err == nil {
			return f // its id is compared by the caller
		}
	}
	if link == "" || strings.Contains(link, "/") || !path.IsAbs(exe) {
		return nil
	}
	dir := path.Dir(exe)
	for _, name := range []string{dir + "/" + link, dir + "/.debug/" + link, debugDir + dir + "/" + link} {
		f, err := openIn(p.root, name, false)
		if err != nil {
			continue
		}
		sum := crc32.NewIEEE()
		if _, err := io.Copy(sum, f); err == nil && sum.Sum32() == crc {
			return f
		}
		f.Close()
	}
	return nil
}

func hexID(b []byte) string { return hex.EncodeToString(b) }
