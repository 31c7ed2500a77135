// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// netns is a way into a network namespace.
type netns struct {
	inode uint64
	name  string // for people
	open  func() (*os.File, error)
}

// finder finds all network namespaces that somebody can do something with: that
// a thread lives in, that has a name, that a descriptor keeps, or a TCP socket
// that a process holds. Safe for use by several goroutines.
type finder struct {
	mu    sync.Mutex
	known *ebpf.Map  // inode numbers, in the kernel
	tasks *link.Iter // nil: the threads are read from /proc
	files *link.Iter // nil: descriptors are not looked at
}

// all returns each namespace once, the current one first. What goes meanwhile,
// or cannot be looked at, is left out.
func (f *finder) all() []netns {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := make(map[uint64]bool)
	var found []netns
	add := func(inode uint64, way netns) {
		if !seen[inode] {
			seen[inode] = true
			way.inode = inode
			found = append(found, way)
		}
	}
	path := func(path string) {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			add(st.Ino, netns{name: path, open: func() (*os.File, error) { return openNetns(path) }})
		}
	}
	path("/proc/thread-self/ns/net")
	for _, at := range mountedNamespaces() {
		path(at)
	}
	if f.tasks == nil {
		threads, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net") // the pattern is well-formed
		for _, at := range threads {
			path(at)
		}
		return found
	}
	f.forget()
	for inode := range seen {
		f.known.Put(uint32(inode), uint8(1)) // else it is told once more
	}
	for _, it := range []*link.Iter{f.tasks, f.files} {
		if it == nil {
			continue
		}
		records(it, func(w *bpfNetnsWay) { add(uint64(w.Inode), wayInto(*w)) }) // what was told stands
	}
	return found
}

// each runs do in each namespace, and has failed told where that cannot be entered
// or do fails. Where the way in has gone meanwhile, as a thread does, another one
// is looked for, once: somebody else may keep the namespace.
func (f *finder) each(do func() error, failed func(name string, err error)) {
	var lost map[uint64]bool
	for try := range 2 {
		gone := make(map[uint64]bool)
		for _, ns := range f.all() {
			if try > 0 && !lost[ns.inode] {
				continue
			}
			switch err := ns.inside(do); {
			case errors.Is(err, os.ErrNotExist):
				gone[ns.inode] = true
			case err != nil:
				failed(ns.name, err)
			}
		}
		if lost = gone; len(lost) == 0 {
			return
		}
	}
}

func (f *finder) forget() {
	var inode uint32
	var known uint8
	var all []uint32
	for it := f.known.Iterate(); it.Next(&inode, &known); {
		all = append(all, inode)
	}
	for _, inode := range all {
		f.known.Delete(inode)
	}
}

func wayInto(w bpfNetnsWay) netns {
	switch {
	case w.Fd < 0:
		path := fmt.Sprintf("/proc/%d/task/%d/ns/net", w.Pid, w.Tid)
		return netns{name: path, open: func() (*os.File, error) { return os.Open(path) }}
	case w.Socket == 0:
		path := fmt.Sprintf("/proc/%d/fd/%d", w.Pid, w.Fd)
		return netns{name: path, open: func() (*os.File, error) { return openNetns(path) }}
	}
	name := fmt.Sprintf("the socket of descriptor %d of process %d", w.Fd, w.Pid)
	return netns{name: name, open: func() (*os.File, error) { return netnsOfSocket(int(w.Pid), int(w.Fd)) }}
}

// openNetns opens what a path leads to if that is a network namespace, and is
// os.ErrNotExist if not. A descriptor of another process may be anything by now,
// such as a pipe or a file of a file system in user space, which to open or to ask
// could wait forever: O_PATH opens nothing, and AT_STATX_DONT_SYNC asks nobody.
func openNetns(path string) (*os.File, error) {
	place, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(place)
	if own, err := deviceOf(unix.AT_FDCWD, "/proc/self/ns/net"); err != nil {
		return nil, err
	} else if at, err := deviceOf(place, ""); err != nil || at != own {
		return nil, os.ErrNotExist
	}
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", place))
	if err != nil {
		return nil, err
	}
	const getType = 0xb703 // NS_GET_NSTYPE, include/uapi/linux/nsfs.h
	if kind, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), getType, 0); errno != 0 || kind != unix.CLONE_NEWNET {
		file.Close()
		return nil, os.ErrNotExist
	}
	return file, nil
}

// deviceOf is the device of the file system that something is in, which all
// namespaces have in common.
func deviceOf(dir int, path string) (device [2]uint32, err error) {
	var st unix.Statx_t
	if err := unix.Statx(dir, path, unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return device, fmt.Errorf("statx %s: %w", path, err)
	}
	return [2]uint32{st.Dev_major, st.Dev_minor}, nil
}

// netnsOfSocket asks a socket of another process for its namespace, which nobody
// else may keep. For that moment the socket is ours, too.
func netnsOfSocket(pid, fd int) (*os.File, error) {
	socket, err := socketOf(pid, fd)
	if err != nil {
		return nil, err
	}
	defer unix.Close(socket)
	return netnsOf(socket)
}

// socketOf is a descriptor of our own of what another process has (pidfd_getfd, 5.6).
func socketOf(pid, fd int) (int, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, gone(err)
	}
	defer unix.Close(process)
	socket, err := unix.PidfdGetfd(process, fd, 0)
	return socket, gone(err)
}

func netnsOf(socket int) (*os.File, error) {
	ns, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCGSKNS, 0)
	if errno != 0 {
		return nil, gone(errno)
	}
	return os.NewFile(ns, "network namespace"), nil
}

// gone makes os.ErrNotExist of what says that a process or descriptor has gone,
// or is something else by now.
func gone(err error) error {
	for _, e := range []error{unix.ESRCH, unix.EBADF, unix.ENOTTY, unix.EINVAL, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return os.ErrNotExist
		}
	}
	return err
}

// mountedNamespaces are the paths at which namespaces of any kind are mounted, as
// ip-netns(8), Docker and CNI do to give them names (proc_pid_mountinfo(5)).
func mountedNamespaces() (paths []string) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[3], "net:[") {
			paths = append(paths, unescapeMount(f[4]))
		}
	}
	return paths
}

// unescapeMount undoes the kernel's \040 for a blank and the like (fs/proc_namespace.c, mangle).
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// inside runs f on a thread of its own in the network namespace. The thread ends
// with it: it is never unlocked.
func (n *netns) inside(f func() error) error {
	ns, err := n.open()
	if err != nil {
		return err
	}
	defer ns.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil || n.inode != 0 && st.Ino != n.inode {
		return os.ErrNotExist // the way leads into another one by now
	}
	done := make(chan error, 1)
	go apart(func() {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter (needs CAP_SYS_ADMIN): %w", err)
			return
		}
		done <- f()
	})
	return <-done
}

// apart runs f on a thread of its own, which ends with the goroutine: it is never
// unlocked. The first thread of a process cannot end, the runtime would keep it in the
// namespace, and the namespace with it (mexit in runtime/proc.go); so it waits meanwhile.
func apart(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		apart(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

// portsHere is from where the kernel chooses ports for connect() in the calling
// thread's network namespace, whose own settings /proc/sys/net shows
// (net_ctl_header_lookup in net/sysctl_net.c); zero: it does not tell.
func portsHere() (r event.PortRange) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return event.PortRange{}
	}
	if _, err := fmt.Sscan(string(text), &r.Lowest, &r.Highest); err != nil {
		return event.PortRange{}
	}
	return r
}
