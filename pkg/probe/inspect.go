// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/diag"
	"github.com/stated-tcp/stated/pkg/event"
)

// Inspector looks at the sockets that are there, on request, and costs nothing
// in between: by iterators, or where the kernel has none by sock_diag. It is safe
// for one goroutine at a time.
type Inspector struct {
	limited *lookout             // instead of all that follows; nil: iterators
	maps    map[string]*ebpf.Map // ours to close when own
	own     bool
	tcp     *link.Iter
	file    *link.Iter
	finder  *finder
	progs   []*ebpf.Program
	hz      int64 // 0 unknown
	hzKnown bool
}

// OpenInspector makes an Inspector that stands alone. The error is an
// *UnusableError where the privileges stand in the way.
func OpenInspector() (*Inspector, error) {
	if err := InnerPIDs(); err != nil {
		return limitedInspector(err, nil, new(guard)), nil
	}
	if err := rlimit.RemoveMemlock(); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("raise RLIMIT_MEMLOCK: %w", err)
	}
	i, err := openIterators()
	switch {
	case err == nil:
		return i, nil
	case errors.Is(err, unix.EPERM) && os.Geteuid() != 0:
		return nil, unusable(err) // root sees more
	}
	return limitedInspector(err, nil, new(guard)), nil
}

// OpenSockDiag makes one that works as on kernels without BTF.
func OpenSockDiag() *Inspector { return limitedInspector(errors.New("not asked for"), nil, new(guard)) }

func openIterators() (*Inspector, error) {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return nil, fmt.Errorf("the kernel has no BTF: %w", err)
	}
	var err error
	for _, helpers := range []uint32{1, 0} {
		var spec *ebpf.CollectionSpec
		if spec, err = loadBpf(); err != nil {
			return nil, err
		}
		if err = spec.Variables[bpfVarCfgSkHelpers].Set(helpers); err != nil {
			return nil, fmt.Errorf("set %s: %w", bpfVarCfgSkHelpers, err)
		}
		spec.Maps[bpfMapSockInfosLru].MaxEntries = 1 // nobody fills it
		if err = setStacks(spec, false); err != nil {
			return nil, err
		}
		var i *Inspector
		if i, err = newInspector(spec, nil, nil); err == nil {
			return i, nil
		}
	}
	return nil, err
}

// Inspector makes one that knows the sockets by the numbers that the probe's
// events carry. It ends before the probe does.
func (p *Probe) Inspector() (*Inspector, error) {
	if p.partial {
		return limitedInspector(p.hooks[0].Err, p.names, &p.guard), nil
	}
	if err := InnerPIDs(); err != nil {
		return limitedInspector(err, nil, &p.guard), nil
	}
	i, err := newInspector(p.spec, p.maps, p.finder)
	if err != nil {
		return limitedInspector(err, nil, &p.guard), nil // whose cookies are the events' where they have some
	}
	return i, nil
}

// Limited returns why sock_diag serves instead of iterators, nil where it does
// not: then the sightings lack what event.Sighting says.
func (i *Inspector) Limited() error {
	if i.limited == nil {
		return nil
	}
	return i.limited.why
}

func newInspector(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, known *finder) (_ *Inspector, err error) {
	i := &Inspector{maps: maps, own: maps == nil, finder: known}
	defer func() {
		if err != nil {
			i.Close()
		}
	}()
	programs := []struct {
		name string
		iter **link.Iter
	}{{bpfProgStInspectTcp, &i.tcp}, {bpfProgStInspectFile, &i.file}}
	if i.finder == nil {
		i.finder = new(finder)
		programs = append(programs, struct {
			name string
			iter **link.Iter
		}{bpfProgStNetnsTask, &i.finder.tasks}, struct {
			name string
			iter **link.Iter
		}{bpfProgStNetnsFile, &i.finder.files})
	}
	for _, program := range programs {
		spec := spec.Copy()
		prune(spec, program.name)
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: i.maps})
		if err != nil {
			return nil, fmt.Errorf("load %s: %w", program.name, err)
		}
		if i.maps == nil {
			i.maps, coll.Maps = coll.Maps, nil
		}
		i.progs = append(i.progs, coll.DetachProgram(program.name))
		coll.Close()
		if *program.iter, err = link.AttachIter(link.IterOptions{Program: i.progs[len(i.progs)-1]}); err != nil {
			return nil, fmt.Errorf("attach %s: %w", program.name, err)
		}
	}
	if i.own {
		i.finder.known = i.maps[bpfMapNetnsKnown]
	}
	return i, nil
}

// Sockets calls each for every TCP socket in one of the states, in all network
// namespaces, mini sockets (TIME_WAIT, half-open) included. Sockets in CLOSE
// are in no table of the kernel: Holders finds them. each may not keep its
// argument. Of the namespaces that could not be entered the error tells; the
// others are shown all the same.
func (i *Inspector) Sockets(states event.StateSet, each func(*event.Sighting)) error {
	if i.limited != nil {
		return i.limited.sockets(states, each)
	}
	if err := i.want(states); err != nil {
		return err
	}
	var errs []error
	i.finder.each(func() error {
		ports := portsHere()
		return i.run(i.tcp, func(s *event.Sighting) {
			s.Ports = ports
			each(s)
		})
	}, func(name string, err error) {
		errs = append(errs, fmt.Errorf("look at the sockets of %s: %w", name, err))
	})
	return errors.Join(errs...)
}

// Netns reports whether there may be a network namespace with this number: Sockets looks
// into it. Where sock_diag serves, that is not known before.
func (i *Inspector) Netns(inode uint32) bool {
	return i.limited != nil || slices.ContainsFunc(i.finder.all(), func(ns netns) bool { return ns.inode == uint64(inode) })
}

// Holders calls each for every descriptor of every process on a TCP socket in one
// of the states, and on an MPTCP socket in any: those are in no table of which
// Sockets knows, and their subflows are in states of their own. Where sock_diag serves, they are those of the
// sockets that Sockets has just shown, and only TCP.
func (i *Inspector) Holders(states event.StateSet, each func(*event.Sighting)) error {
	if i.limited != nil {
		return i.limited.holders(states, each)
	}
	if err := i.want(states); err != nil {
		return err
	}
	if err := i.run(i.file, each); err != nil {
		return fmt.Errorf("look at the descriptors of sockets: %w", err)
	}
	return nil
}

func (i *Inspector) want(states event.StateSet) error {
	if err := i.maps[bpfMapInspectStates].Put(uint32(0), uint32(states)); err != nil {
		return fmt.Errorf("ask for states: %w", err)
	}
	return nil
}

func (i *Inspector) run(it *link.Iter, each func(*event.Sighting)) error {
	var s event.Sighting
	return records(it, func(w *bpfInspection) {
		i.decode(w, &s)
		each(&s)
	})
}

// records runs an iterator that writes records of type T.
func records[T any](it *link.Iter, each func(*T)) error {
	f, err := it.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(again{f}, 256<<10)
	var w T
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&w)), unsafe.Sizeof(w))
	for {
		if _, err := io.ReadFull(in, raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		each(&w)
	}
}

// Bits of bpfInspection.Facts: enum inspection_fact in bpf/event.h.
const (
	factWaited = 1 << iota
	factOpened
	factShut
)

// again reads on when the kernel asks to be called again, which it does after a
// million objects without output (bpf_seq_read in kernel/bpf/bpf_iter.c).
type again struct{ io.Reader }

func (a again) Read(b []byte) (int, error) {
	for {
		n, err := a.Reader.Read(b)
		if n > 0 || !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
}

func (i *Inspector) decode(w *bpfInspection, s *event.Sighting) {
	if !i.hzKnown && w.NowJiffies != 0 {
		i.hz, i.hzKnown = jiffiesPerSecond(w.NowJiffies, int64(w.NowMonoNs)), true
	}
	decode(&w.Event, &s.Event)
	s.Inode = w.Inode
	s.References = w.References
	if s.Kind == event.KindHolder {
		s.References-- // the iterator's own, of task_file_seq_get_next
	}
	s.Waited = w.Facts&factWaited != 0
	s.Opened = w.Facts&factOpened != 0
	s.Shut = w.Facts&factShut != 0
	s.Timeouts, s.Probes = w.Timeouts, w.Probes
	if s.Flags.Has(event.FlagMini) {
		s.LastSegment, s.LastReceived, s.LastSent = 0, 0, 0
		if s.New == event.StateTimeWait && w.LastSent != 0 && i.hz != 0 {
			left := int64(int32(w.LastSent-uint32(w.NowJiffies))) + 1
			s.Began = diag.TimeWaitBegan(s.Time, left*(1e9/i.hz))
		}
		return
	}
	s.LastSegment = int64(w.LastSegmentNs)
	if acked := i.stamp(w, w.LastAcked); acked != 0 && diag.EnteredByAck(s.New) {
		s.Began = min(acked+1e9/i.hz, s.Time)
	}
	s.LastReceived = i.stamp(w, w.LastReceived)
	s.LastSent = i.stamp(w, w.LastSent)
}

// stamp makes a time since boot of the low half of jiffies: the earliest that
// it may have been, at most a tick too early.
func (i *Inspector) stamp(w *bpfInspection, jiffies uint32) int64 {
	if jiffies == 0 || i.hz == 0 {
		return 0
	}
	ago := int32(uint32(w.NowJiffies) - jiffies)
	return int64(w.Event.TimeNs) - int64(max(ago, 0)+1)*(1e9/i.hz)
}

// jiffiesPerSecond finds the kernel's CONFIG_HZ. Jiffies begin 300 seconds
// before the low half runs over (INITIAL_JIFFIES in include/linux/jiffies.h)
// and count the seconds of CLOCK_MONOTONIC. Close to that point every rate
// would fit: then it is unknown, 0.
func jiffiesPerSecond(jiffies uint64, mono int64) int64 {
	seconds := float64(mono)/1e9 - 300
	if math.Abs(seconds) < 20 {
		return 0
	}
	counted := float64(int64(jiffies - 1<<32))
	for _, hz := range []int64{250, 1000, 100, 300, 1024, 256, 128} {
		if math.Abs(counted/seconds/float64(hz)-1) < 0.01 {
			return hz
		}
	}
	return 0
}

// Close lets go of the programs.
func (i *Inspector) Close() error {
	var errs []error
	iters := []*link.Iter{i.tcp, i.file}
	if i.own && i.finder != nil {
		iters = append(iters, i.finder.tasks, i.finder.files)
	}
	for _, it := range iters {
		if it != nil {
			errs = append(errs, it.Close())
		}
	}
	for _, p := range i.progs {
		errs = append(errs, p.Close())
	}
	if i.own {
		for _, m := range i.maps {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
