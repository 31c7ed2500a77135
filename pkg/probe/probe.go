// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// Options for Open. The zero value is the best that the kernel allows.
type Options struct {
	Filter event.Filter
	// RingBytes is the size of the ring buffer, a power of two and a multiple
	// of the page size. 0: 8 MiB, which holds 40,000 events.
	RingBytes uint32
	// Classic uses the classic tracepoint even where the typed one works.
	Classic bool
	// NoTrampolines does without fentry and fexit, as kernels do that refuse
	// them.
	NoTrampolines bool
	// NoStorage keeps the memory of sockets by address, as kernels before
	// 5.12 need, where it could live in the sockets themselves.
	NoStorage bool
	// Stacks remembers where in the code each socket was opened, for Stack.
	Stacks bool
}

// UnusableError says that this kernel, or these privileges, do not let us see
// any change of state.
type UnusableError struct {
	Reason string // what stands in the way and what to do, one sentence each
	Err    error
}

func (e *UnusableError) Error() string { return e.Reason }
func (e *UnusableError) Unwrap() error { return e.Err }

// Probe is the kernel side at work. Read belongs to one goroutine; Snapshot,
// Stats, Hooks and Close may be called from others.
type Probe struct {
	opts    Options
	spec    *ebpf.CollectionSpec
	maps    map[string]*ebpf.Map
	progs   []program
	links   []link.Link
	iters   map[string]*link.Iter
	finder  *finder
	hooks   []HookStatus
	partial bool
	kernel  *btf.Spec  // during Open; nil without BTF
	types   *btf.Cache // during Open: reading the kernel's types once is most of the work
	cookies bool       // sockets are named by their cookie

	reader *ringbuf.Reader
	record ringbuf.Record
	lost   []uint32      // per CPU, as far as the stream has told
	queued []event.Event // from head on
	head   int
	idle   int
	// snapshotDone as it was when nothing was left to read
	snapshotSeen int64

	untold uint64 // requests, as far as the stream has told

	// Without iterators: what a snapshot found, and Read has not told yet.
	names  *names // nil: there are iterators
	found  chan found
	taken  []found
	closed chan struct{}
	guard  guard // of looks by sock_diag

	statsMu sync.Mutex // guards what follows, and keeps Close away from Stats
	ended   bool       // Close was called
	missing uint64     // the most that Stats has told of changes of state that were skipped and not made good

	snapshotDone atomic.Int64 // when a snapshot ended of which the stream has not told; 0: none
	closeOnce    sync.Once
	closeErr     error
}

// program is one that is loaded.
type program struct {
	*ebpf.Program
	name string
}

// Open loads and attaches. The error is an *UnusableError where the kernel or
// the privileges stand in the way.
func Open(o Options) (_ *Probe, err error) {
	if o.RingBytes == 0 {
		o.RingBytes = 8 << 20
	}
	if n := uint32(os.Getpagesize()); o.RingBytes&(o.RingBytes-1) != 0 || o.RingBytes%n != 0 {
		return nil, fmt.Errorf("ring buffer of %d bytes: the size must be a power of two and a multiple of %d", o.RingBytes, n)
	}
	// Kernels before 5.11 account BPF memory to RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("raise RLIMIT_MEMLOCK: %w", err)
	}
	p := &Probe{opts: o, iters: make(map[string]*link.Iter), closed: make(chan struct{})}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := p.loadCore(); err != nil {
		return nil, unusable(err)
	}
	if err := p.fillFilter(); err != nil {
		return nil, err
	}
	if p.reader, err = ringbuf.NewReader(p.maps[bpfMapEvents]); err != nil {
		return nil, fmt.Errorf("map the ring buffer: %w", err)
	}
	p.reader.SetDeadline(time.Now().Add(latency))
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the CPUs: %w", err)
	}
	p.lost = make([]uint32, cpus)
	for _, h := range hooks {
		p.attachOptional(h)
	}
	p.finder = &finder{known: p.maps[bpfMapNetnsKnown], tasks: p.iters[bpfProgStNetnsTask], files: p.iters[bpfProgStNetnsFile]}
	core := hookTyped
	if p.partial {
		core = hookClassic
		p.useSockDiag()
	}
	l, err := core.attach(p.progs[0].Program)
	if err != nil {
		return nil, unusable(err)
	}
	p.links = append(p.links, l)
	for _, h := range hooksAgain {
		p.attachOptional(h)
	}
	p.kernel, p.types = nil, nil // megabytes
	return p, nil
}

// loadCore tries the typed program with socket storage, then by address, then
// the classic one, and keeps why the better ones failed.
func (p *Probe) loadCore() error {
	p.types = btf.NewCache()
	kernel, err := p.types.Kernel()
	if err == nil && !p.opts.Classic {
		for _, helpers := range []bool{true, false} {
			if helpers && p.opts.NoStorage {
				continue
			}
			if err = p.loadWith(&hookTyped, kernel, helpers); err == nil {
				p.kernel, p.cookies = kernel, helpers
				p.hooks = append(p.hooks, HookStatus{Hook: hookTyped})
				return nil
			}
			if errors.Is(err, unix.EPERM) {
				break
			}
		}
	} else if err == nil {
		err = errors.New("not asked for")
	}
	p.hooks = append(p.hooks, HookStatus{Hook: hookTyped, Err: err})
	if classicErr := p.loadClassic(); classicErr != nil {
		return errors.Join(classicErr, err)
	}
	p.hooks = append(p.hooks, HookStatus{Hook: hookClassic})
	p.partial = true
	return nil
}

func (p *Probe) loadWith(h *Hook, kernel *btf.Spec, helpers bool) error {
	spec, err := p.newSpec()
	if err != nil {
		return err
	}
	values := map[string]uint32{bpfVarCfgSkHelpers: 0, bpfVarCfgResetReason: 0}
	if helpers {
		values[bpfVarCfgSkHelpers] = 1
	}
	if resetHasReason(kernel) {
		values[bpfVarCfgResetReason] = 1
	}
	for name, v := range values {
		if err := spec.Variables[name].Set(v); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return p.load(h, spec)
}

// newSpec is the object as embedded, with what the options say set.
func (p *Probe) newSpec() (*ebpf.CollectionSpec, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	spec.Maps[bpfMapEvents].MaxEntries = p.opts.RingBytes
	// A reader that shares a CPU with the load finds its caches cold each time it wakes.
	if err := spec.Variables[bpfVarCfgWakeupBytes].Set(p.opts.RingBytes / 8); err != nil {
		return nil, fmt.Errorf("set %s: %w", bpfVarCfgWakeupBytes, err)
	}
	if err := setStacks(spec, p.opts.Stacks); err != nil {
		return nil, err
	}
	return spec, setFilter(spec, &p.opts.Filter)
}

// load makes the maps and the core program; load the rest with loadMore.
func (p *Probe) load(h *Hook, spec *ebpf.CollectionSpec) error {
	p.spec = spec.Copy()
	prune(spec, h.Program)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: p.types})
	if err != nil {
		return fmt.Errorf("load %s: %w", h.Program, err)
	}
	p.maps = coll.Maps
	p.progs = append(p.progs, program{coll.Programs[h.Program], h.Program})
	return nil
}

// prune leaves one program in spec, and for the classic one no map that it does
// not use: old kernels may lack them.
func prune(spec *ebpf.CollectionSpec, program string) {
	for name := range spec.Programs {
		if name != program {
			delete(spec.Programs, name)
		}
	}
	if program != bpfProgStSetStateTp {
		return
	}
	used := make(map[string]bool)
	for _, ins := range spec.Programs[program].Instructions {
		used[ins.Reference()] = true
	}
	for name := range spec.Maps {
		if !used[name] && !strings.HasPrefix(name, ".") {
			delete(spec.Maps, name)
		}
	}
}

// attachOptional loads and attaches an optional program, and notes whether this
// kernel refuses it.
func (p *Probe) attachOptional(h Hook) {
	status := HookStatus{Hook: h}
	switch {
	case p.partial:
		status.Err = errors.New("needs the typed tracepoint")
	case h.wanted != nil && !h.wanted(&p.opts), h.insteadOf != "" && p.works(h.insteadOf):
		status.Unused = true
	case h.Tier == TierTrampolines && p.opts.NoTrampolines:
		status.Err = errors.New("not asked for")
	case h.onlyWith != "" && !p.works(h.onlyWith):
		status.Err = fmt.Errorf("needs %s, which does not work", h.onlyWith)
	case h.byCookie && !p.cookies:
		status.Err = errors.New("the kernel cannot name sockets by their cookie in tracing programs")
	default:
		if status.Err = h.resolve(p.kernel); status.Err == nil {
			status.Err = p.loadMore(&h)
		}
	}
	p.hooks = append(p.hooks, status)
}

// works reports whether an optional program has been attached.
func (p *Probe) works(program string) bool {
	return slices.ContainsFunc(p.hooks, func(h HookStatus) bool { return h.Program == program && h.Err == nil && !h.Unused })
}

func (p *Probe) loadMore(h *Hook) error {
	spec := p.spec.Copy()
	prune(spec, h.Program)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: p.maps, Cache: p.types})
	if err != nil {
		return fmt.Errorf("load %s: %w", h.Program, err)
	}
	prog := coll.DetachProgram(h.Program)
	coll.Close()
	p.progs = append(p.progs, program{prog, h.Program})
	l, err := h.attach(prog)
	if err != nil {
		return err
	}
	if it, ok := l.(*link.Iter); ok {
		p.iters[h.Program] = it
	}
	p.links = append(p.links, l)
	return nil
}

// Hooks returns what became of each hook, the core first.
func (p *Probe) Hooks() []HookStatus { return p.hooks }

// Partial reports whether the classic tracepoint serves: states and tuples
// only, no filter in the kernel.
func (p *Probe) Partial() bool { return p.partial }

// SeesRequests reports whether half-open connections have events of their own.
func (p *Probe) SeesRequests() bool {
	return p.works(bpfProgStRequest) && (p.works(bpfProgStReqDrop) || p.works(bpfProgStReqDropOld)) && p.works(bpfProgStComplete)
}

// SeesTimeWait reports whether TIME_WAIT and FIN_WAIT2 in mini sockets have
// events of their own.
func (p *Probe) SeesTimeWait() bool {
	return p.works(bpfProgStTimeWait) && p.works(bpfProgStTwSchedule) && p.works(bpfProgStTwKill)
}

// Close detaches everything. The reader goes first, so that a Read that waits
// returns os.ErrClosed before its memory goes; then the links, so that no
// program runs when the maps go.
func (p *Probe) Close() error {
	p.closeOnce.Do(func() {
		close(p.closed) // a snapshot ends
		p.statsMu.Lock()
		p.ended = true // before the memory of the ring goes, which Stats reads
		p.statsMu.Unlock()
		var errs []error
		if p.reader != nil {
			errs = append(errs, p.reader.Close())
		}
		for _, l := range slices.Backward(p.links) { // st_state_again before st_set_state
			errs = append(errs, l.Close())
		}
		for _, prog := range p.progs {
			errs = append(errs, prog.Close())
		}
		for _, m := range p.maps {
			errs = append(errs, m.Close())
		}
		p.closeErr = errors.Join(errs...)
	})
	return p.closeErr
}

// resetHasReason reports whether tcp_send_reset passes a reason (since 6.10):
// the typedef of the tracepoint has the data pointer, sk, skb, reason.
func resetHasReason(kernel *btf.Spec) bool {
	var t *btf.Typedef
	if err := kernel.TypeByName("btf_trace_tcp_send_reset", &t); err != nil {
		return false
	}
	ptr, ok := t.Type.(*btf.Pointer)
	if !ok {
		return false
	}
	proto, ok := ptr.Target.(*btf.FuncProto)
	return ok && len(proto.Params) == 4
}

// unusable puts the usual obstacles in words.
func unusable(err error) error {
	release := kernelRelease()
	reason := fmt.Sprintf("this kernel (%s) refuses the BPF program: %v", release, err)
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		reason = "stated may not load BPF programs: run it as root (sudo), or give it CAP_BPF and CAP_PERFMON"
		if os.Geteuid() == 0 {
			reason = fmt.Sprintf("the kernel (%s) refuses BPF even to root: in a container, add CAP_BPF and CAP_PERFMON and mount tracefs; "+
				"with lockdown=confidentiality (see /sys/kernel/security/lockdown) it cannot work: %v", release, firstLine(err))
		}
	case errors.Is(err, os.ErrNotExist):
		reason = fmt.Sprintf("this kernel (%s) has no BTF for the typed tracepoint, and tracefs is not there for the classic one: "+
			"mount -t tracefs tracefs /sys/kernel/tracing, or use a kernel with CONFIG_DEBUG_INFO_BTF", release)
	case olderThan(release, 5, 8):
		reason = fmt.Sprintf("this kernel (%s) is too old: stated needs 5.8, for the BPF ring buffer", release)
	}
	return &UnusableError{Reason: reason, Err: err}
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOOS
	}
	release, _, _ := bytes.Cut(u.Release[:], []byte{0})
	return string(release)
}

func olderThan(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a < major || a == major && b < minor
}
