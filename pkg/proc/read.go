// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// What is read of a file that a process can make long.
const (
	maxFile    = 64 << 10
	maxCmdline = 4096
)

const pfKthread = 0x00200000 // include/linux/sched.h, PF_KTHREAD

// dir is an open /proc/PID: what is read through it is of that one process, or
// fails with ESRCH, even if the id is reused meanwhile.
type dir struct{ fd int }

func (r *Resolver) procDir(pid uint32) (dir, error) {
	path := r.root + "/proc/" + strconv.FormatUint(uint64(pid), 10)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return dir{}, procErr(path, err)
	}
	return dir{fd}, nil
}

func procErr(name string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return &os.PathError{Op: "open", Path: name, Err: err}
}

func (d dir) close() { unix.Close(d.fd) }

// file returns at most max bytes of a file, and whether there was more.
func (d dir) file(name string, max int) (data []byte, more bool, err error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false, procErr(name, err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, min(max+1, 1024))
	for len(buf) <= max {
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(2*cap(buf), max+1))
			copy(grown, buf)
			buf = grown
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, false, procErr(name, err)
		}
		if n == 0 {
			return buf, false, nil
		}
		buf = buf[:len(buf)+n]
	}
	return buf[:max], true, nil
}

func (d dir) link(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd, name, buf)
	if err != nil {
		return "", procErr(name, err)
	}
	return string(buf[:n]), nil
}

// read describes the process t as it is now.
func (r *Resolver) read(t event.Task) (*Process, error) {
	d, err := r.procDir(t.PID)
	if err != nil {
		return nil, err
	}
	defer d.close()
	stat, _, err := d.file("stat", maxFile)
	if err != nil {
		return nil, err
	}
	p := &Process{PID: t.PID}
	if err := p.parseStat(stat); err != nil {
		return nil, err
	}
	if t.Start != 0 && t.Start/tick != p.Start/tick {
		return nil, ErrReused
	}
	status, _, err := d.file("status", maxFile)
	if err != nil {
		return nil, err
	}
	if tgid := p.parseStatus(status); tgid != 0 && tgid != t.PID {
		return nil, fmt.Errorf("%w: it is a thread of %d now", ErrReused, tgid)
	}
	r.readExe(d, p)
	if ns, err := d.link("ns/pid"); err == nil {
		p.PIDNS = inode(ns, "pid:[")
	}
	if data, _, err := d.file("cgroup", maxFile); err == nil {
		var v2 bool
		var path string
		path, v2 = cgroupOf(data)
		p.Cgroup = ParseCgroup(path)
		if v2 {
			p.Cgroup.ID = r.tree.idOf(p.Cgroup.Path)
		}
	}
	if r.opts.Cmdline {
		type cmdline struct {
			words []string
			cut   bool
		}
		c, _ := patiently(&r.guard, d, func(d dir) cmdline {
			data, more, _ := d.file("cmdline", maxCmdline) // absent if it cannot be read
			return cmdline{splitCmdline(data), more}
		})
		p.Cmdline, p.CmdlineCut = c.words, c.cut
	}
	p.User = r.userOf(p)
	return p, nil
}

// userOf names the user of a process, "" unknown: a container's ids are named by
// its own passwd.
func (r *Resolver) userOf(p *Process) string {
	if p.UID != 0 && p.Cgroup.Container.ID != "" {
		return ""
	}
	return r.users.name(p.UID)
}

// parseStat reads /proc/PID/stat (proc_pid_stat(5)). comm is between the first
// and the last parenthesis and may itself hold any byte.
func (p *Process) parseStat(b []byte) error {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return fmt.Errorf("/proc/%d/stat: no comm in it", p.PID)
	}
	f := strings.Fields(string(b[end+1:])) // f[0] is field 3
	if len(f) < 20 {
		return fmt.Errorf("/proc/%d/stat: %d fields after comm, 20 wanted", p.PID, len(f))
	}
	ppid, err1 := strconv.ParseUint(f[4-3], 10, 32)
	flags, err2 := strconv.ParseUint(f[9-3], 10, 64)
	start, err3 := strconv.ParseInt(f[22-3], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("/proc/%d/stat: %w", p.PID, err)
	}
	p.Comm = string(b[open+1 : end])
	p.PPID, p.Start, p.Kernel = uint32(ppid), start*tick, flags&pfKthread != 0
	return nil
}

// parseStatus reads what it needs of /proc/PID/status and returns Tgid, 0 unknown.
// Lines cannot be forged: the kernel escapes newlines in Name (fs/proc/array.c, task_state).
func (p *Process) parseStatus(b []byte) (tgid uint32) {
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		f := strings.Fields(rest)
		switch {
		case name == "Tgid" && len(f) == 1:
			tgid = parseID(f[0])
		case name == "Uid" && len(f) == 4:
			p.UID = parseID(f[1])
		case name == "NSpid" && len(f) > 0:
			p.NSPID = parseID(f[len(f)-1])
		}
	}
	return tgid
}

func parseID(s string) uint32 {
	v, _ := strconv.ParseUint(s, 10, 32)
	return uint32(v)
}

// inode reads "socket:[123]" and the like; 0 if s is none.
func inode(s, prefix string) uint64 {
	rest, ok := strings.CutPrefix(s, prefix)
	rest, end := strings.CutSuffix(rest, "]")
	if !ok || !end {
		return 0
	}
	v, _ := strconv.ParseUint(rest, 10, 64)
	return v
}

const deleted = " (deleted)" // fs/d_path.c

// readExe fills Exe. A file may really be called "x (deleted)"; then it is there.
func (r *Resolver) readExe(d dir, p *Process) {
	exe, err := d.link("exe")
	if err != nil {
		return
	}
	p.Exe = exe
	path, ok := strings.CutSuffix(exe, deleted)
	if !ok {
		return
	}
	there, ok := patiently(&r.guard, d, func(d dir) bool {
		var a, b unix.Stat_t
		return unix.Fstatat(d.fd, "exe", &a, 0) == nil && unix.Fstatat(d.fd, "root"+exe, &b, 0) == nil && a.Ino == b.Ino && a.Dev == b.Dev
	})
	if ok && !there {
		p.Exe, p.ExeDeleted = path, true
	}
}

func splitCmdline(b []byte) []string {
	b = bytes.TrimRight(b, "\x00")
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

// cgroupOf chooses the line of /proc/PID/cgroup that says most: v2's, but where
// it is the root (v1 and hybrid hosts) systemd's own hierarchy, and then any
// other that is not at its root.
func cgroupOf(b []byte) (path string, v2 bool) {
	best := -1
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		rank := 0
		switch root := f[2] == "/"; {
		case f[0] == "0" && f[1] == "" && !root:
			rank = 4
		case f[1] == "name=systemd" && !root:
			rank = 3
		case !root:
			rank = 2
		case f[0] == "0" && f[1] == "":
			rank = 1
		}
		if rank > best {
			best, path, v2 = rank, f[2], f[0] == "0" && f[1] == ""
		}
	}
	return path, v2
}

// users names user ids by a passwd file, read anew when it changed.
type users struct {
	path  string
	mu    sync.Mutex
	stamp string
	names map[uint32]string
}

func (u *users) name(uid uint32) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	info, err := os.Stat(u.path)
	if err != nil {
		return ""
	}
	if stamp := fmt.Sprint(info.ModTime(), info.Size()); stamp != u.stamp {
		u.stamp, u.names = stamp, make(map[uint32]string)
		d := dir{unix.AT_FDCWD}
		data, _, _ := d.file(filepath.Clean(u.path), 1<<20)
		for line := range strings.Lines(string(data)) {
			f := strings.Split(line, ":") // passwd(5): name:password:uid:...
			if len(f) < 4 {
				continue
			}
			if id, err := strconv.ParseUint(f[2], 10, 32); err == nil && u.names[uint32(id)] == "" {
				u.names[uint32(id)] = f[0]
			}
		}
	}
	return u.names[uid]
}

// FDs returns how many descriptors the process has open, and its soft limit
// (RLIMIT_NOFILE, ^0 unlimited).
func (r *Resolver) FDs(pid uint32) (open int, limit uint64, err error) {
	d, err := r.procDir(pid)
	if err != nil {
		return 0, 0, fmt.Errorf("count the descriptors of process %d: %w", pid, err)
	}
	defer d.close()
	limits, _, err := d.file("limits", maxFile)
	if err != nil {
		return 0, 0, fmt.Errorf("count the descriptors of process %d: %w", pid, err)
	}
	if limit, err = softLimit(string(limits)); err != nil {
		return 0, 0, fmt.Errorf("count the descriptors of process %d: %w", pid, err)
	}
	// Since 6.2 the size of the directory is the count (fs/proc/fd.c, proc_fd_getattr).
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstatat(d.fd, "fd", &st, 0) == nil && st.Size > 0 && unix.Fstatfs(d.fd, &fs) == nil && int64(fs.Type) == unix.PROC_SUPER_MAGIC {
		return int(st.Size), limit, nil
	}
	err = d.each("fd", func(string) bool { open++; return true })
	if err != nil {
		return 0, 0, fmt.Errorf("count the descriptors of process %d: %w", pid, err)
	}
	return open, limit, nil
}

func softLimit(limits string) (uint64, error) {
	for line := range strings.Lines(limits) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			f := strings.Fields(rest)
			if len(f) > 0 && f[0] == "unlimited" {
				return ^uint64(0), nil
			}
			if len(f) > 0 {
				return strconv.ParseUint(f[0], 10, 64)
			}
		}
	}
	return 0, errors.New(`no "Max open files" in limits`)
}

// each calls fn with the names in a directory until it returns false.
func (d dir) each(name string, fn func(string) bool) error {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return procErr(name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		names, err := f.Readdirnames(512)
		for _, n := range names {
			if !fn(n) {
				return nil
			}
		}
		if len(names) == 0 || err != nil {
			if err != nil && err != io.EOF {
				return procErr(name, err)
			}
			return nil
		}
	}
}

func openDir(path string) (dir, error) { return dir{unix.AT_FDCWD}.sub(path) }

// sub opens a directory below d.
func (d dir) sub(name string) (dir, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return dir{}, procErr(name, err)
	}
	return dir{fd}, nil
}
