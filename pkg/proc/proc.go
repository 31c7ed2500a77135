// SPDX-License-Identifier: Apache-2.0

// Package proc tells what /proc knows of a process: its program, user, unit,
// container, and how many descriptors it has and may have. What it remembers
// outlives the process, since the interesting event comes last.
package proc

import (
	"bytes"
	"container/list"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Process is what is known of a process. What is not known is empty or zero.
// Strings are as the process or its manager chose them: escape them.
type Process struct {
	PID       uint32 // in the pid namespace of the /proc that was read
	NSPID     uint32 // in the process's own, innermost pid namespace
	Start     int64  // nanoseconds since boot, to the clock tick (10 ms)
	Comm      string
	Exe       string // path in the process's own mount namespace
	Deleted   bool   // the file Exe is gone or was replaced
	Cmdline   []string
	UID       uint32
	User      string // as this host names UID
	Cgroup    string // path of cgroup v2, "" where there is none
	Unit      string // of systemd
	Container Container
}

// Container is the container that a cgroup path names.
type Container struct {
	ID      string // 64 hex digits, or a name with lxc and nspawn
	Runtime string // docker, containerd, cri-o, podman, lxc, nspawn; "" unknown
	PodUID  string // of Kubernetes
}

// ErrGone says that no such process is there (any more), and none is
// remembered.
var ErrGone = errors.New("no such process")

// Resolver looks processes up. It is safe for concurrent use.
type Resolver struct {
	root string
	max  int

	mu    sync.Mutex
	known map[identity]*list.Element // of *entry
	used  *list.List                 // the last used first
	users map[uint32]string
}

type identity struct {
	pid   uint32
	start int64
}

type entry struct {
	id identity
	p  Process
}

// New makes a resolver that remembers up to max processes. root is where the
// host's /proc and /etc are: "/" as a rule.
func New(root string, max int) *Resolver {
	return &Resolver{root: root, max: max, known: make(map[identity]*list.Element), used: list.New(), users: make(map[uint32]string)}
}

// tick is how coarse the start time in /proc/PID/stat is: USER_HZ is 100 on all
// our architectures.
const tick = 10_000_000

// Lookup returns what is known of the process that has pid and began at start
// (nanoseconds since boot; 0 accepts any). Once found it is remembered, also
// after its end. The error is ErrGone where neither /proc nor memory has it.
// The result is shared: do not change it.
func (r *Resolver) Lookup(pid uint32, start int64) (*Process, error) {
	id := identity{pid, start}
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.known[id]; ok && start != 0 {
		r.used.MoveToFront(at)
		return &at.Value.(*entry).p, nil
	}
	p, err := r.read(pid)
	if err != nil {
		return nil, err
	}
	if start != 0 && (p.Start > start || start-p.Start >= 2*tick) {
		return nil, ErrGone // another process has the number now
	}
	if start == 0 {
		return p, nil
	}
	r.known[id] = r.used.PushFront(&entry{id, *p})
	if r.used.Len() > r.max {
		last := r.used.Back()
		delete(r.known, last.Value.(*entry).id)
		r.used.Remove(last)
	}
	return p, nil
}

// Descriptors returns how many descriptors the process has open now and how
// many it may have (RLIMIT_NOFILE, soft), 0 where that cannot be read.
func (r *Resolver) Descriptors(pid uint32) (open, limit int) {
	if dir, err := os.Open(r.path(pid, "fd")); err == nil {
		for {
			names, err := dir.Readdirnames(4096)
			open += len(names)
			if err != nil {
				break
			}
		}
		dir.Close()
	}
	for line := range strings.Lines(r.text(pid, "limits")) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			limit, _ = strconv.Atoi(fields[0]) // "unlimited" is 0
		}
	}
	return open, limit
}

func (r *Resolver) path(pid uint32, name string) string {
	return filepath.Join(r.root, "proc", strconv.FormatUint(uint64(pid), 10), name)
}

// maxText bounds what is read of a file that a process can make long.
const maxText = 16 << 10

func (r *Resolver) text(pid uint32, name string) string {
	f, err := os.Open(r.path(pid, name))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, maxText)) // what could be read is all there is
	return string(text)
}

// read takes the start time before and after, so that what stands between is of
// one process.
func (r *Resolver) read(pid uint32) (*Process, error) {
	start, ok := startOf(r.text(pid, "stat"))
	if !ok {
		return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	p := &Process{PID: pid, Start: start}
	p.Comm = strings.TrimSuffix(r.text(pid, "comm"), "\n")
	p.Exe, _ = os.Readlink(r.path(pid, "exe")) // a kernel thread has none
	p.Exe, p.Deleted = strings.CutSuffix(p.Exe, " (deleted)")
	if line := strings.TrimRight(r.text(pid, "cmdline"), "\x00"); line != "" {
		p.Cmdline = strings.Split(line, "\x00")
	}
	for line := range strings.Lines(r.text(pid, "status")) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case fields[0] == "Uid:":
			p.UID = number(fields[1])
			p.User = r.user(p.UID)
		case fields[0] == "NSpid:":
			p.NSPID = number(fields[len(fields)-1])
		}
	}
	p.Cgroup, p.Unit, p.Container = cgroups(r.text(pid, "cgroup"))
	if again, ok := startOf(r.text(pid, "stat")); !ok || again != start {
		return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	return p, nil
}

func number(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // the kernel writes numbers
	return uint32(n)
}

// startOf finds field 22 of /proc/PID/stat, in clock ticks since boot. The
// second field is the name, in parentheses, and may hold any byte.
func startOf(stat string) (int64, bool) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, false
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 20 {
		return 0, false
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	return ticks * tick, err == nil
}

func (r *Resolver) user(uid uint32) string {
	if name, ok := r.users[uid]; ok {
		return name
	}
	id := strconv.FormatUint(uint64(uid), 10)
	name := ""
	if r.root == "/" {
		if u, err := user.LookupId(id); err == nil {
			name = u.Username
		}
	} else if passwd, err := os.ReadFile(filepath.Join(r.root, "etc/passwd")); err == nil {
		for line := range bytes.Lines(passwd) {
			if f := strings.Split(string(line), ":"); len(f) > 2 && f[2] == id {
				name = f[0]
			}
		}
	}
	r.users[uid] = name
	return name
}
