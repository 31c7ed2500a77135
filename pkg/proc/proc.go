// SPDX-License-Identifier: Apache-2.0

// Package proc tells what /proc and the cgroup file system know about processes:
// who they are, which sockets they hold, and whether a thread waits on one. It
// needs no BPF. Everything read here is chosen by the processes themselves:
// reads are bounded, nothing is trusted, and names must be escaped before they
// are printed (render.EscapeText).
package proc

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
)

var (
	// ErrGone is returned for a process that has exited and was not looked up before.
	ErrGone = errors.New("no such process")
	// ErrReused is returned when the id belongs to another process or thread by now.
	ErrReused = errors.New("process id was reused")
)

// Process is what was known when it was last looked at. It is not changed any
// more once returned, and must not be by the caller.
type Process struct {
	PID        uint32 // in the pid namespace of Root's /proc
	NSPID      uint32 // in the process's own pid namespace, 0 unknown (before 4.1)
	PPID       uint32
	Start      int64    // ns since boot; rounded down to a clock tick (10 ms)
	Comm       string   // of the group leader, at most 15 bytes
	Exe        string   // path in the process's mount namespace; "" kernel thread or not permitted
	ExeDeleted bool     // the file was unlinked (mostly an upgrade) since it started
	Cmdline    []string // with Options.Cmdline only; the process may have changed it
	CmdlineCut bool     // longer than what is kept
	UID        uint32   // effective user id, in our user namespace
	User       string   // of Root's /etc/passwd; "" unknown, or in a container and not root
	PIDNS      uint64   // inode of its pid namespace, 0 not permitted
	Kernel     bool     // a kernel thread
	Gone       bool     // has exited; the rest is from before
	Cgroup     Cgroup

	image  uint32   // event.Process.Image, where the kernel told
	before *Process // the program that it ran before; at most maxImages of them
}

// maxImages is how many programs of one process are remembered: a shell that
// connects may have become something else by the time that the connection ends.
const maxImages = 4

// Options of a Resolver. The zero value reads the host's / and remembers 8192
// processes without their command lines.
type Options struct {
	Root    string        // where proc, sys and etc are: "/" or what a container has the host's mounted at
	Size    int           // processes remembered, dead ones included
	Cmdline bool          // command lines may hold passwords: on request only
	MaxAge  time.Duration // after this a live process is read anew, for it may have called exec; default 5 s
	Now     func() time.Time
	// Recorded is for the processes of another time or host: nothing is read,
	// only what Learn was told is known.
	Recorded bool
}

// Stats counts what a Resolver did.
type Stats struct {
	Learned uint64 // programs that the kernel told of
	Hits    uint64 // answered from memory
	Reads   uint64 // read from /proc
	Misses  uint64 // not to be had: gone or reused
	Evicted uint64 // forgotten because Size was reached
	Held    int    // remembered now
}

// Resolver looks processes up and remembers them after they are gone. Safe for
// use by several goroutines.
type Resolver struct {
	opts  Options
	root  string // Options.Root without trailing slash
	mu    sync.Mutex
	cache cache
	gone  map[identity]error // asked for when they had exited: they do not come back
	stats Stats
	users users
	tree  cgroupTree
	guard Guard
}

// identity is a process as far as /proc can tell it from another.
type identity struct {
	pid   uint32
	start int64 // in ticks
}

func identify(t event.Task) identity { return identity{t.PID, t.Start / tick} }

// New returns a Resolver; it opens nothing yet.
func New(opts Options) *Resolver {
	if opts.Root == "" {
		opts.Root = "/"
	}
	if opts.Size <= 0 {
		opts.Size = 8192
	}
	if opts.MaxAge == 0 {
		opts.MaxAge = 5 * time.Second
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	root := filepath.Clean(opts.Root)
	if root == "/" {
		root = ""
	}
	return &Resolver{opts: opts, root: root, cache: newCache(opts.Size), users: users{path: root + "/etc/passwd"}, tree: cgroupTree{root: root}}
}

// Stats returns the counts so far.
func (r *Resolver) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Held = len(r.cache.byPID)
	return s
}

// Lookup describes the process t. With t.Start another process of the same id
// is never taken for it, but for one that began in the same clock tick (10 ms),
// and an answer from memory costs no system call. With t.Comm, of several
// programs that it has run the last one of that name is meant, if there is one. Without (0) the start time is
// read each time, and of an exited process the last one seen with that id is
// returned, marked Gone. Errors are ErrGone and ErrReused, and what reading
// /proc gave.
func (r *Resolver) Lookup(t event.Task) (*Process, error) {
	r.mu.Lock()
	e := r.cache.get(t)
	if e != nil && t.Start != 0 && (e.p.Gone || e.whole || r.opts.Now().Sub(e.read) < r.opts.MaxAge) {
		r.stats.Hits++
		p := e.p.named(t.Comm)
		r.mu.Unlock()
		return p, nil
	}
	if err := r.gone[identify(t)]; err != nil && t.Start != 0 {
		r.stats.Misses++
		r.mu.Unlock()
		return nil, err
	}
	r.mu.Unlock()
	if r.opts.Recorded {
		return nil, fmt.Errorf("look up process %d: %w", t.PID, ErrGone)
	}

	now := r.opts.Now()
	p, err := r.read(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Reads++
	e = r.cache.get(t) // another goroutine may have put it
	if err == nil {
		if e != nil && e.p.Start/tick == p.Start/tick {
			p.follow(e.p)
		}
		r.stats.Evicted += r.cache.put(entry{p: p, read: now})
		return p.named(t.Comm), nil
	}
	gone := errors.Is(err, ErrGone) || errors.Is(err, ErrReused)
	if e == nil || !gone {
		r.stats.Misses++
		err = fmt.Errorf("look up process %d: %w", t.PID, err)
		if gone && t.Start != 0 {
			r.miss(identify(t), err)
		}
		return nil, err
	}
	if !e.p.Gone {
		exited := *e.p
		exited.Gone = true
		e.p = &exited
	}
	return e.p.named(t.Comm), nil
}

// miss spares looking again for what has exited.
func (r *Resolver) miss(id identity, err error) {
	if r.gone == nil || len(r.gone) >= r.opts.Size {
		r.gone = make(map[identity]error)
	}
	r.gone[id] = err
}

// Learn takes over what the kernel told of a process while it was there, which
// is more than can be read of one that has exited. It fills in what the kernel
// does not know, as far as /proc still does.
func (r *Resolver) Learn(t event.Task, k *event.Process) {
	p := &Process{
		PID: t.PID, NSPID: k.InnerPID, PPID: k.PPID, Start: t.Start, Comm: t.Comm.String(), Exe: k.Exe, ExeDeleted: k.ExeDeleted,
		UID: k.UID, PIDNS: uint64(k.PIDNS), image: k.Image,
	}
	if k.Group == "" && !r.opts.Recorded {
		if now, err := r.read(t); err == nil {
			k.Group = now.Cgroup.Path
		}
	}
	if k.Group != "" {
		p.Cgroup = ParseCgroup(k.Group)
		p.Cgroup.ID = k.Cgroup
	}
	if k.User == "" && !r.opts.Recorded {
		k.User = r.userOf(p)
	}
	p.User = k.User
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Learned++
	delete(r.gone, identify(t))
	if e := r.cache.get(t); e != nil {
		p.follow(e.p)
	}
	whole := r.opts.Recorded || !r.opts.Cmdline && p.Exe != ""
	r.stats.Evicted += r.cache.put(entry{p: p, whole: whole})
}

// named is the last program of that name, or the last one.
func (p *Process) named(comm event.Comm) *Process {
	if name := comm.Bytes(); len(name) > 0 {
		for q := p; q != nil; q = q.before {
			if q.Comm == string(name) {
				return q
			}
		}
	}
	return p
}

// follow takes what was known of the same process before: more of the program
// that it still runs, or the program before.
func (p *Process) follow(old *Process) {
	same := p.image == old.image
	if p.image == 0 || old.image == 0 { // /proc does not tell
		same = p.Exe == "" || p.Exe == old.Exe
	}
	if same {
		p.keep(old)
		p.before, p.image = old.before, max(p.image, old.image)
		return
	}
	p.before = old
	for i := 1; p != nil; i, p = i+1, p.before {
		if i == maxImages {
			p.before = nil
		}
	}
}

// keep fills in what a process loses when it exits, before its sockets are
// closed (kernel/exit.c, do_exit: exit_mm comes before exit_files): the
// program, its command line and, with cgroup v1, its group.
func (p *Process) keep(old *Process) {
	if p.Kernel {
		return
	}
	exited := p.Exe == ""
	if exited {
		p.Exe, p.ExeDeleted = old.Exe, old.ExeDeleted
	}
	if p.Cmdline == nil {
		p.Cmdline, p.CmdlineCut = old.Cmdline, old.CmdlineCut
	}
	if p.Cgroup.Path == "" || exited && (p.Cgroup.Path == "/" || p.Cgroup.ID == 0 && p.Cgroup.Path == old.Cgroup.Path) {
		p.Cgroup = old.Cgroup
	}
	if p.User == "" && p.UID == old.UID {
		p.User = old.User
	}
	if p.PIDNS == 0 {
		p.PIDNS = old.PIDNS
	}
	if p.NSPID == 0 {
		p.NSPID = old.NSPID
	}
}
