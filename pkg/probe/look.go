// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/diag"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/proc"
)

// look is one look at the sockets of all network namespaces by sock_diag, and
// at who holds them by /proc: what iterators do in kernels with BTF. Descriptors
// are looked at first, so that who holds a socket is known when it is shown; one
// that is opened in between is nobody's.
type look struct {
	finder *finder
	proc   *proc.Resolver
	guard  *guard
	// begin is called before the sockets of a namespace, and done behind them if
	// all were shown; batch with some of them; stray for each descriptor of one
	// that was not: in CLOSE, or younger than the list. All but batch may be nil.
	begin, done func(netns uint32) error
	batch       func(*diag.Batch) error
	stray       func(*event.Sighting) error

	held    []descriptor
	holders map[uint64]int // the first in held of each socket, by inode
	shown   map[uint64]struct{}
	listed  map[uint64]bool // namespaces
	gone    map[uint64]bool // those of which no way in was there any more
	ways    []netns
	ports   event.PortRange // of the namespace that is being listed
	partial bool            // a namespace could not be listed
	unread  bool            // descriptors could not be looked at; one may be the only way into a namespace
	waited  int             // how often in vain
	silent  int             // descriptors that did not answer, or were not asked for that
	errs    []error
}

// descriptor is one of a socket.
type descriptor struct {
	task  event.Task
	tid   uint32 // proc.Descriptor.TID
	fd    int32
	inode uint64
}

// run looks once. An error of a callback ends it; of what could not be looked
// at it tells in the end, and goes on.
func (l *look) run(states event.StateSet) error {
	l.shown, l.listed, l.gone = make(map[uint64]struct{}), make(map[uint64]bool), make(map[uint64]bool)
	l.descriptors()
	if err := l.namespaces(append(l.finder.all(), l.ways...), states); err != nil {
		return err
	}
	if len(l.gone) > 0 { // a thread by which it was found; there may be others in it
		if err := l.namespaces(l.finder.all(), states); err != nil {
			return err
		}
	}
	for i := range l.held {
		d := &l.held[i]
		if _, shown := l.shown[d.inode]; shown {
			continue
		}
		if err := l.astray(d, states); err != nil {
			return err
		}
	}
	if l.silent > 0 {
		l.errs = append(l.errs, fmt.Errorf("%d %w", l.silent, errSilent))
	}
	return errors.Join(l.errs...)
}

// descriptors looks at those of all processes.
func (l *look) descriptors() {
	l.held, l.holders, l.ways = nil, make(map[uint64]int), nil
	var task event.Task
	scan, err := l.proc.Descriptors(func(d *proc.Descriptor) {
		if d.Socket == 0 {
			path := d.Path()
			l.ways = append(l.ways, netns{inode: d.Netns, name: path, open: func() (*os.File, error) { return openNetns(path) }})
			return
		}
		if task.PID != d.PID {
			task = l.task(d.PID)
		}
		if _, known := l.holders[d.Socket]; !known {
			l.holders[d.Socket] = len(l.held)
		}
		l.held = append(l.held, descriptor{task, d.TID, int32(d.FD), d.Socket})
	})
	if err == nil && scan.Unreadable > 0 {
		err = fmt.Errorf("%d of %d processes do not show their descriptors (needs CAP_SYS_PTRACE)", scan.Unreadable, scan.Processes)
	}
	if err != nil {
		l.unread = true
		l.errs = append(l.errs, err)
	}
}

// holder is who holds a socket, the first of them; false if nobody does.
func (l *look) holder(inode uint64) (event.Task, bool) {
	i, ok := l.holders[inode]
	if !ok || inode == 0 {
		return event.Task{}, false
	}
	return l.held[i].task, true
}

// stop is an error of a callback.
type stop struct{ error }

func (l *look) namespaces(ways []netns, states event.StateSet) error {
	for i := range ways {
		if err := l.namespace(&ways[i], states); err != nil {
			return err
		}
	}
	return nil
}

// complete reports whether all namespaces were listed that were found; whole, all
// that there are.
func (l *look) complete() bool { return !l.partial && len(l.gone) == 0 }
func (l *look) whole() bool    { return l.complete() && !l.unread }

// namespace lists the sockets of one, unless another way into it served before.
func (l *look) namespace(ns *netns, states event.StateSet) error {
	if l.listed[ns.inode] {
		return nil
	}
	l.listed[ns.inode] = true
	err := ns.inside(func() error {
		call := func(f func(uint32) error) error {
			if f != nil {
				if err := f(uint32(ns.inode)); err != nil {
					return stop{err}
				}
			}
			return nil
		}
		if err := call(l.begin); err != nil {
			return err
		}
		l.ports = portsHere()
		if err := l.guard.lister.List(uint32(ns.inode), states, l.show); err != nil {
			return err
		}
		return call(l.done)
	})
	if s := (stop{}); errors.As(err, &s) {
		return s.error
	}
	if errors.Is(err, os.ErrNotExist) { // the way in, perhaps not the namespace
		delete(l.listed, ns.inode)
		l.gone[ns.inode] = true
		return nil
	}
	delete(l.gone, ns.inode)
	if err != nil {
		l.partial = true
		l.errs = append(l.errs, fmt.Errorf("list the sockets of %s: %w", ns.name, err))
	}
	return nil
}

func (l *look) show(b *diag.Batch) error {
	for i := range b.Sockets {
		b.Sockets[i].Ports = l.ports
		if inode := b.Sockets[i].Inode; inode != 0 {
			l.shown[inode] = struct{}{}
		}
	}
	if err := l.batch(b); err != nil {
		return stop{err}
	}
	return nil
}

// astray looks at a socket that was not shown. It may be the only way into a
// network namespace, which is listed then.
func (l *look) astray(d *descriptor, states event.StateSet) error {
	s, err := l.ask(d)
	if err != nil {
		l.unread = l.unread || !errors.Is(err, os.ErrNotExist)
		return nil
	}
	way := netns{inode: uint64(s.Netns), name: fmt.Sprintf("the socket of descriptor %d of process %d", d.fd, d.task.PID),
		open: func() (*os.File, error) { return netnsOfSocket(int(d.task.PID), int(d.fd)) }}
	if err := l.namespace(&way, states); err != nil {
		return err
	}
	if _, shown := l.shown[d.inode]; shown || l.stray == nil {
		return nil
	}
	d.tell(s)
	return l.stray(s)
}

// tell makes s a sighting of the descriptor.
func (d *descriptor) tell(s *event.Sighting) {
	s.Kind, s.Protocol, s.Task, s.TID, s.FD = event.KindHolder, event.ProtoTCP, d.task, d.task.PID, d.fd
	s.Limited, s.Inode = true, d.inode
	s.Flags |= event.FlagTask
}

func (l *look) task(pid uint32) event.Task {
	t := event.Task{PID: pid}
	if p, err := l.proc.Lookup(t); err == nil {
		t.Start, t.Comm = p.Start, event.MakeComm(p.Comm)
	}
	return t
}

// ask waits for an answer as long as there is patience: each descriptor of a
// hostile process takes some.
func (l *look) ask(d *descriptor) (*event.Sighting, error) {
	type answer struct {
		s   *event.Sighting
		err error
	}
	own, all := *d, l.stray != nil
	if l.waited < proc.MaxStuck {
		a, ok := proc.Patiently(&l.guard.Guard, patience, func() (a answer) {
			a.s, a.err = ask(own, all)
			return a
		})
		if ok {
			return a.s, a.err
		}
		l.waited++
	}
	l.silent++
	return nil, errSilent
}

var errSilent = errors.New("sockets that are in no list do not say in time what they are")

// ask learns the network namespace of a TCP socket that another process holds,
// and with all what else it tells. os.ErrNotExist: it is none, or has gone.
func ask(d descriptor, all bool) (*event.Sighting, error) {
	at := proc.Descriptor{PID: d.task.PID, TID: d.tid, FD: int(d.fd)}
	if tcp, err := isTCP(at.Path(), d.inode); err != nil || !tcp {
		return nil, cmp.Or(err, os.ErrNotExist)
	}
	s := new(event.Sighting)
	if all {
		return s, d.facts(s)
	}
	ns, err := netnsOfSocket(int(d.task.PID), int(d.fd))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	s.Netns, err = inodeOf(ns)
	return s, err
}

// isTCP asks a descriptor of a socket for its protocol: sockfs_xattr_get in
// net/socket.c. It may be another file by now, whose attributes somebody else
// serves; so it is not asked before it is known to be that socket.
func isTCP(path string, inode uint64) (bool, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	own := fmt.Sprintf("/proc/self/fd/%d", fd)
	if target, err := os.Readlink(own); err != nil || target != fmt.Sprintf("socket:[%d]", inode) {
		return false, err
	}
	var name [16]byte
	n, err := unix.Getxattr(own, "system.sockprotoname", name[:])
	if err != nil {
		return false, nil
	}
	protocol := strings.TrimRight(string(name[:n]), "\x00")
	return protocol == "TCP" || protocol == "TCPv6", nil
}

// inodeOf is that of a network namespace, by which it is known.
func inodeOf(ns *os.File) (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(ns.Fd()), &st)
	return uint32(st.Ino), err
}

// facts asks a socket of another process what it is. For that moment it is ours,
// too.
func (d *descriptor) facts(s *event.Sighting) error {
	fd, err := socketOf(int(d.task.PID), int(d.fd))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	begun := diag.Now()
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || unix.Fstat(fd, &st) != nil || st.Ino != d.inode {
		return os.ErrNotExist // another one by now
	}
	ns, err := netnsOf(fd)
	if err != nil {
		return err
	}
	defer ns.Close()
	space, err := inodeOf(ns)
	if err != nil {
		return err
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	e := &s.Event
	e.Time = diag.Now()
	e.Socket, e.Netns, e.UID = event.SocketID(cookie), space, st.Uid
	e.New = event.State(info.State)
	e.Old = e.New
	var size uint32
	e.Family, e.Local, size = nameOf(fd, false, unix.SizeofSockaddrInet6)
	_, e.Peer, _ = nameOf(fd, true, size)
	diag.Numbers(s, info, begun, e.Time)
	if e.New != event.StateListen {
		if n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err == nil {
			e.Unsent = uint32(n)
		}
	}
	return nil
}

// nameOf asks for our end of a socket, or with peer for the other, which is known
// also when the connection has ended (SO_PEERNAME, which wants the exact size).
func nameOf(fd int, peer bool, size uint32) (family uint16, _ netip.AddrPort, _ uint32) {
	const peerName = 28 // include/uapi/asm-generic/socket.h
	var sa [unix.SizeofSockaddrInet6]byte
	var errno unix.Errno
	if peer {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, peerName,
			uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
	} else {
		_, _, errno = unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	}
	if errno != 0 {
		return 0, netip.AddrPort{}, 0
	}
	family = binary.NativeEndian.Uint16(sa[:])
	var ip [16]uint8
	if family == unix.AF_INET {
		copy(ip[:], sa[4:8]) // struct sockaddr_in
	} else {
		copy(ip[:], sa[8:24]) // struct sockaddr_in6
	}
	return family, diag.AddrPort(family, &ip, binary.BigEndian.Uint16(sa[2:])), size
}
