// SPDX-License-Identifier: Apache-2.0

// Package symbol names the addresses of user stacks: functions, files and lines
// from ELF symbols, DWARF, Go's own tables and the map files of JIT compilers.
//
// A stack as the kernel takes it (bpf_get_stack with BPF_F_USER_STACK) follows
// frame pointers. Go always has them. C, C++ and Rust need -fno-omit-frame-pointer
// (Rust: -C force-frame-pointers), and so does each library between: glibc of
// most distributions has none, and a stack that enters the kernel through it is
// cut there or skips a caller. Java needs -XX:+PreserveFramePointer and a perf
// map, Node --perf-basic-prof. Cut says whether a stack reached its beginning.
//
// Files and memory belong to the process, which may be hostile: everything read is
// bounded, paths are resolved inside the root of the process, and names must be
// escaped before they are printed (render.EscapeText).
package symbol

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Frame is one call, inlined ones included. What is unknown is empty.
type Frame struct {
	Address  uint64 // as in the stack
	Function string // demangled; "" unknown
	File     string
	Line     int
	Module   string // path of the mapped file, "[vdso]", "[jit]"; "" address in no mapping
	Offset   uint64 // from the start of Function; without Function the virtual address inside Module, as addr2line wants it
	Inlined  bool   // Function was compiled into the next frame, which has the same Address
	Note     string // what is not certain about this frame, or why it has no name
}

// Options of a Symbolizer. The zero value serves.
type Options struct {
	Root  string // of the host's /proc: "/" or where a container has it mounted
	Files int    // executables and libraries remembered; default 64
	Lines bool   // read DWARF for lines and inlined calls: slower, and memory for each file in proportion to it
}

// Symbolizer remembers the symbols of files. Safe for use by several goroutines.
//
// Files are known by device, inode, size and time of change. Their build id is
// no key: any container can claim the build id of another's file.
type Symbolizer struct {
	opts  Options
	mu    sync.Mutex // held while a file is loaded: each is loaded once
	files map[fileKey]*cached
	tick  uint64
}

type fileKey struct {
	dev, ino    uint64
	size, ctime int64
}

type cached struct {
	module *module
	used   uint64
}

// New returns a Symbolizer; it opens nothing yet.
func New(opts Options) *Symbolizer {
	if opts.Files <= 0 {
		opts.Files = 64
	}
	return &Symbolizer{opts: opts, files: make(map[fileKey]*cached)}
}

// Process is the layout of a process at one moment. Its files are opened when
// an address first falls into them, and must still be reachable then: where
// the process has exited, only files already remembered have names. Not safe for
// concurrent use. Close it.
type Process struct {
	s      *Symbolizer
	proc   *os.File // /proc/PID: of this process even if the id is reused
	root   *os.File // nil: not permitted
	maps   []mapping
	loaded map[fileKey]*module // by the mapping's device and inode
	jit    *perfMap            // nil: not read yet

	// of Restore
	mem     *os.File           // nil: not opened yet
	starts  map[uint64]uint64  // of the function that a call returns to; 0 unknown
	callers map[[2]uint64]bool // return address, function: whether the one is behind a call of the other
}

// Open reads which files the process has mapped where. It needs CAP_SYS_PTRACE
// for processes of others.
func (s *Symbolizer) Open(pid uint32) (*Process, error) {
	fd, err := unix.Open(filepath.Join("/", s.opts.Root, "proc", strconv.FormatUint(uint64(pid), 10)), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("read the memory map of process %d: %w", pid, err)
	}
	p := &Process{s: s, proc: os.NewFile(uintptr(fd), "proc"), loaded: make(map[fileKey]*module)}
	f, err := openAt(p.proc, "maps", 0)
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("read the memory map of process %d: %w", pid, err)
	}
	defer f.Close()
	p.maps, err = parseMaps(io.LimitReader(f, maxMaps))
	if err == nil && len(p.maps) == 0 {
		err = fmt.Errorf("it has none: a kernel thread, or exiting")
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("read the memory map of process %d: %w", pid, err)
	}
	if fd, err := unix.Openat(fd, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		p.root = os.NewFile(uintptr(fd), "root")
	}
	return p, nil
}

// Close lets go of the process; idempotent.
func (p *Process) Close() {
	p.proc.Close()
	if p.mem != nil {
		p.mem.Close()
	}
	if p.root != nil {
		p.root.Close()
	}
}

// Frames names the calls of a stack, innermost first. Addresses are those that
// calls return to, as in every stack that was taken in a system call: the
// instruction before is looked up. An address can give several frames.
func (p *Process) Frames(stack []uint64) []Frame {
	out := make([]Frame, 0, len(stack))
	for _, addr := range stack {
		out = append(out, p.frame(addr)...)
	}
	return out
}

func (p *Process) frame(addr uint64) []Frame {
	f := Frame{Address: addr}
	pc := addr - 1
	m, ok := p.mapping(pc)
	if !ok {
		f.Note = "in no mapping"
		return []Frame{f}
	}
	f.Module = m.path
	switch {
	case m.anonymous():
		return []Frame{p.jitFrame(f, pc)}
	case strings.HasPrefix(m.path, "[") && m.path != "[vdso]":
		f.Note = "not in a file"
		return []Frame{f}
	}
	mod, err := p.module(m)
	if err != nil {
		f.Offset = pc + 1 - m.start + m.offset
		f.Note = "offset in the file: " + err.Error()
		return []Frame{f}
	}
	return mod.frames(f, pc-m.start+m.offset)
}

// mapping returns the executable mapping that an instruction is in.
func (p *Process) mapping(pc uint64) (mapping, bool) {
	i := sort.Search(len(p.maps), func(i int) bool { return p.maps[i].end > pc })
	if i == len(p.maps) || pc < p.maps[i].start {
		return mapping{}, false
	}
	return p.maps[i], true
}

func (p *Process) executable(pc uint64) bool {
	_, ok := p.mapping(pc)
	return ok
}

func (p *Process) jitFrame(f Frame, pc uint64) Frame {
	f.Module = "[jit]"
	if p.jit == nil {
		p.jit = p.readPerfMap()
	}
	if name, start, ok := p.jit.find(pc); ok {
		f.Function, f.Offset = name, pc+1-start
		return f
	}
	f.Note = "generated code: " + p.jit.why
	return f
}

// module returns the file of a mapping.
func (p *Process) module(m mapping) (*module, error) {
	id := fileKey{dev: m.dev, ino: m.ino}
	if mod := p.loaded[id]; mod != nil {
		return mod, mod.err
	}
	mod := p.load(m)
	p.loaded[id] = mod
	return mod, mod.err
}

func (p *Process) load(m mapping) *module {
	if m.path == "[vdso]" {
		return p.loadVDSO(m)
	}
	f, err := p.openMapped(m)
	if err != nil {
		return &module{err: err}
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &module{err: err}
	}
	key := fileKey{dev: st.Dev, ino: st.Ino, size: st.Size, ctime: st.Ctim.Nano()}
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tick++
	if c := s.files[key]; c != nil {
		c.used = s.tick
		return c.module
	}
	mod := loadModule(f, st.Size, p.s.opts.Lines, func(id, link string, crc uint32) *os.File { return p.debugFile(m.path, id, link, crc) })
	if len(s.files) >= s.opts.Files {
		s.evict()
	}
	s.files[key] = &cached{mod, s.tick}
	return mod
}

func (s *Symbolizer) evict() {
	var oldest fileKey
	least := ^uint64(0)
	for key, c := range s.files {
		if c.used < least {
			oldest, least = key, c.used
		}
	}
	delete(s.files, oldest)
}

// bottoms are the functions that a thread begins with.
var bottoms = []string{"_start", "__libc_start_main", "__libc_start_call_main", "start_thread", "clone", "clone3", "__clone", "__clone3",
	"runtime.goexit", "runtime.rt0_go", "runtime.mstart", "thread_start", "__libc_start_main_impl"}

// Cut says why the outermost frames of a stack may be missing, or "" if it
// reaches the function that its thread began with.
func Cut(frames []Frame) string {
	if len(frames) == 0 {
		return "no stack: it could not be read"
	}
	last := frames[len(frames)-1]
	name, _, _ := strings.Cut(last.Function, "@")
	name, _, _ = strings.Cut(name, ".abi0")
	for _, b := range bottoms {
		if name == b {
			return ""
		}
	}
	switch {
	case last.Module == "[jit]":
		return "cut: the generated code has no frame pointers (Java: -XX:+PreserveFramePointer)"
	case last.Module == "":
		return "cut: the caller has no frame pointers (build with -fno-omit-frame-pointer): its address is none"
	}
	return "cut: " + filepath.Base(last.Module) + " or its caller has no frame pointers (build with -fno-omit-frame-pointer), or the stack is deeper than what was taken"
}
