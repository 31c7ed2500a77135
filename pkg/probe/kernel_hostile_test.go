// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/diag"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/proc"
)

// lacks skips the test where the kernel does not have something, and fails it
// where it only refuses.
func lacks(t *testing.T, what string, err error) {
	t.Helper()
	for _, missing := range []error{unix.ENOENT, unix.ENODEV, unix.ENXIO, unix.ENOSYS} {
		if errors.Is(err, missing) {
			t.Skipf("this kernel has no %s: %v", what, err)
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// TestDescriptorOfFile: of a descriptor that is no longer the socket that it was
// nothing is asked: who serves its file need not answer.
func TestDescriptorOfFile(t *testing.T) {
	requireKernel(t)
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		lacks(t, "FUSE", err)
	}
	defer unix.Close(server) // who waits for an answer gets an error
	dir := t.TempDir()
	if err := unix.Mount("stated", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)); err != nil {
		lacks(t, "FUSE", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	file := must(unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0))
	defer unix.Close(file)
	socket := must(unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(socket)
	udp := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(udp)
	for _, tt := range []struct {
		name  string
		fd    int
		inode uint64
		want  bool
	}{
		{"TCP", socket, inodeOfSocket(socket), true},
		{"another socket by now", socket, inodeOfSocket(udp), false},
		{"UDP", udp, inodeOfSocket(udp), false},
		{"a file that nobody serves", file, inodeOfSocket(socket), false},
	} {
		done := make(chan bool, 1)
		go func() {
			tcp, err := isTCP(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), tt.fd), tt.inode)
			done <- tcp && err == nil
		}()
		select {
		case got := <-done:
			if got != tt.want {
				t.Errorf("%s: %v", tt.name, got)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: asks its server", tt.name)
		}
	}
}

func inodeOfSocket(fd int) uint64 {
	var st unix.Stat_t
	check(unix.Fstat(fd, &st))
	return st.Ino
}

// holdLock has a thread hold the lock of a socket until release is called, or the test
// ends: setsockopt(2) takes its value from a page that nobody serves.
func holdLock(t *testing.T, socket int) (release func()) {
	const (
		api, register    = 0xc018aa3f, 0xc020aa00 // UFFDIO_API, UFFDIO_REGISTER
		missing, version = 1, 0xaa
	)
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		lacks(t, "userfaultfd", errno)
	}
	page := os.Getpagesize()
	memory := must(unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON))
	memory[0], memory[page-1] = 1, 0 // the first page is there
	second := uint64(uintptr(unsafe.Pointer(&memory[page])))
	for _, ask := range []struct {
		request uintptr
		args    [4]uint64
	}{{api, [4]uint64{version}}, {register, [4]uint64{second, uint64(page), missing}}} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, ask.request, uintptr(unsafe.Pointer(&ask.args))); errno != 0 {
			t.Fatal("userfaultfd:", errno)
		}
	}
	done := make(chan bool)
	var tid atomic.Int64
	go func() {
		defer close(done)
		runtime.LockOSThread()
		tid.Store(int64(unix.Gettid()))
		// of struct linger the first half lies in the first page
		unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(socket), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&memory[page-4])), 8, 0)
	}()
	release = sync.OnceFunc(func() {
		unix.Close(int(fd)) // the page is an ordinary one then
		<-done
		unix.Munmap(memory)
	})
	t.Cleanup(release)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if waitsForPage(int(tid.Load())) {
			return release
		}
		if time.Now().After(end) {
			t.Fatal("the thread does not wait for the page")
		}
	}
}

// waitsForPage reports whether a thread that takes a value from a page that nobody
// serves has come to it. Where the kernel does not tell in which function a thread
// sleeps, that it does has to do: it sleeps for nothing else.
func waitsForPage(tid int) bool {
	at, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/wchan", tid)) // tid may not be known yet
	if string(at) != "0" {
		return strings.Contains(string(at), "userfault")
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	return bytes.Contains(stat, []byte(") S ")) || bytes.Contains(stat, []byte(") D "))
}

// TestLockedSockets: processes that hold the locks of their sockets do not hold up
// a look, which is not whole then; and it does not leave more behind each time.
func TestLockedSockets(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		s.t = t
		for range proc.MaxStuck + 2 {
			holdLock(t, s.socket(unix.AF_INET, 0))
		}
		l, _ := s.listen(local4(), 8, 0)
		listener := inodeOfSocket(l)
		g := new(guard)
		for range 3 {
			found := false
			look := look{finder: new(finder), proc: proc.New(proc.Options{}), guard: g,
				batch: func(b *diag.Batch) error {
					for i := range b.Sockets {
						found = found || b.Sockets[i].Inode == listener
					}
					return nil
				},
				stray: func(*event.Sighting) error { return nil },
			}
			begun := time.Now()
			done := make(chan error, 1)
			go func() { done <- look.run(event.AllStates) }()
			select {
			case err := <-done:
				if !errors.Is(err, errSilent) || !found || look.whole() {
					t.Errorf("%v, found %v, whole %v", err, found, look.whole())
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the look waits for the sockets")
			}
			t.Logf("%v, %d questions wait", time.Since(begun), g.Stuck())
		}
		if n := g.Stuck(); n == 0 || n > proc.MaxStuck {
			t.Errorf("%d questions wait", n)
		}
	})
}

// TestWaysIntoNamespace: when a way into a namespace has gone another one serves,
// and where none does the look is not whole.
func TestWaysIntoNamespace(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		s.listen(local4(), 8, 0)
		path := fmt.Sprintf("/proc/self/task/%d/ns/net", s.tid)
		no := netns{inode: uint64(s.inode), name: "gone", open: func() (*os.File, error) { return nil, os.ErrNotExist }}
		yes := netns{inode: uint64(s.inode), name: path, open: func() (*os.File, error) { return os.Open(path) }}
		for _, tt := range []struct {
			ways   []netns
			shown  int
			wholly bool
		}{{[]netns{no}, 0, false}, {[]netns{no, yes}, 1, true}, {[]netns{yes, no}, 1, true}, {[]netns{no, no, yes, yes}, 1, true}} {
			l := look{guard: new(guard), shown: make(map[uint64]struct{}), listed: make(map[uint64]bool), gone: make(map[uint64]bool)}
			shown := 0
			l.batch = func(b *diag.Batch) error {
				shown += len(b.Sockets)
				return nil
			}
			check(l.namespaces(tt.ways, event.AllStates))
			if shown != tt.shown || l.whole() != tt.wholly {
				t.Errorf("%v: %d sockets, whole %v", tt.ways, shown, l.whole())
			}
		}
	})
}

// oneAtATime is sock_diag's way before 6.9.
func oneAtATime() bool {
	var name unix.Utsname
	check(unix.Uname(&name))
	var major, minor int
	must(fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor))
	return major < 6 || major == 6 && minor < 9
}

// TestLockedConnection: the list of a namespace ends at a socket whose lock a
// process keeps, and the look goes on without that namespace. Before 6.9 the kernel
// lists one namespace at a time (sock_diag_mutex in net/core/sock_diag.c), so then
// none answers, as ss finds too; the look ends all the same.
func TestLockedConnection(t *testing.T) {
	requireKernel(t)
	var other uint32
	inSpace(t, func(s *space) {
		s.listen(local4(), 8, 0)
		other = s.inode
		inSpace(t, func(s *space) {
			s.t = t
			c, _ := s.pair(0)
			holdLock(t, c)
			in := OpenSockDiag()
			in.limited.guard.lister.Patience = 2 * time.Second // enough for a slow machine to answer
			for range 4 {
				others := 0
				done := make(chan error, 1)
				go func() {
					done <- in.Sockets(event.AllStates, func(s *event.Sighting) {
						if s.Netns == other {
							others++
						}
					})
				}()
				select {
				case err := <-done:
					if !errors.Is(err, diag.ErrSilent) || others != 1 && !oneAtATime() {
						t.Errorf("%v, %d sockets of the other namespace", err, others)
					}
				case <-time.After(time.Minute):
					t.Fatal("the look waits for the socket")
				}
			}
		})
	})
}
