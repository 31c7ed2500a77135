// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// Inspector looks at the sockets that are there, on request, and costs nothing
// in between. It is safe for one goroutine at a time.
type Inspector struct {
	maps    map[string]*ebpf.Map // ours to close when own
	own     bool
	tcp     *link.Iter
	file    *link.Iter
	progs   []*ebpf.Program
	hz      int64 // 0 unknown
	hzKnown bool
}

// OpenInspector makes an Inspector that stands alone. The error is an
// *UnusableError where the kernel or the privileges stand in the way.
func OpenInspector() (*Inspector, error) {
	if err := rlimit.RemoveMemlock(); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("raise RLIMIT_MEMLOCK: %w", err)
	}
	if _, err := btf.LoadKernelSpec(); err != nil {
		return nil, unusable(fmt.Errorf("looking at sockets needs a kernel with BTF: %w", err))
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
		if i, err = newInspector(spec, nil); err == nil {
			return i, nil
		}
	}
	return nil, unusable(err)
}

// Inspector makes one that knows the sockets by the numbers that the probe's
// events carry. It ends before the probe does. Without BTF there is none.
func (p *Probe) Inspector() (*Inspector, error) {
	if p.partial {
		return nil, errors.New("looking at sockets needs the typed tracepoint (see 'stated check')")
	}
	return newInspector(p.spec, p.maps)
}

func newInspector(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (_ *Inspector, err error) {
	i := &Inspector{maps: maps, own: maps == nil}
	defer func() {
		if err != nil {
			i.Close()
		}
	}()
	for _, program := range []struct {
		name string
		iter **link.Iter
	}{{bpfProgStInspectTcp, &i.tcp}, {bpfProgStInspectFile, &i.file}} {
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
	return i, nil
}

// Sockets calls each for every TCP socket in one of the states, in all network
// namespaces, mini sockets (TIME_WAIT, half-open) included. Sockets in CLOSE
// are in no table of the kernel: Holders finds them. each may not keep its
// argument. Of the namespaces that could not be entered the error tells; the
// others are shown all the same.
func (i *Inspector) Sockets(states event.StateSet, each func(*event.Sighting)) error {
	if err := i.want(states); err != nil {
		return err
	}
	var errs []error
	for _, ns := range namespaces() {
		err := inNamespace(ns, func() error { return i.run(i.tcp, each) })
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("look at the sockets of %s: %w", ns, err))
		}
	}
	return errors.Join(errs...)
}

// Holders calls each for every descriptor of every process on a TCP or MPTCP
// socket in one of the states.
func (i *Inspector) Holders(states event.StateSet, each func(*event.Sighting)) error {
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
	f, err := it.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(again{f}, 256<<10)
	var w bpfInspection
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&w)), unsafe.Sizeof(w))
	var s event.Sighting
	for {
		if _, err := io.ReadFull(in, raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		i.decode(&w, &s)
		each(&s)
	}
}

// Bits of bpfInspection.Facts: enum inspection_fact in bpf/event.h.
const (
	factWaited = 1 << iota
	factOpened
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
	s.LastSegment = int64(w.LastSegmentNs)
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
	for _, it := range []*link.Iter{i.tcp, i.file} {
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
