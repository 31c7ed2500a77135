// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

//go:noinline
func stackedConnect(s *space, at unix.Sockaddr) int {
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	s.fds = append(s.fds, fd)
	check(unix.Connect(fd, at))
	return fd
}

//go:noinline
func stackedAccept(s *space, l int) int {
	fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	check(err)
	s.fds = append(s.fds, fd)
	return fd
}

func cookieOf(fd int) event.SocketID {
	return event.SocketID(must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)))
}

// functions names the addresses of a stack of this process.
func functions(s event.Stack) (names []string) {
	for frames := runtime.CallersFrames(uintptrs(s.Addresses)); ; {
		f, more := frames.Next()
		names = append(names, f.Function[strings.LastIndexByte(f.Function, '.')+1:])
		if !more {
			return names
		}
	}
}

func uintptrs(addresses []uint64) (out []uintptr) {
	for _, a := range addresses {
		out = append(out, uintptr(a))
	}
	return out
}

// TestStack: each end of a connection has the stack of who opened it, until its
// socket is destroyed, and another one when it is connected anew.
func TestStack(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		p := openTier(s.t, Options{Stacks: true, NoTrampolines: true})
		if !p.cookies {
			t.Skip("sockets have numbers of our own: see TestStackOwnID")
		}
		l, at := s.listen(local4(), 1, 0)
		c := stackedConnect(s, at)
		a := stackedAccept(s, l)
		for fd, want := range map[int]string{c: "stackedConnect", a: "stackedAccept"} {
			stack, ok, err := p.Stack(cookieOf(fd))
			if err != nil || !ok {
				t.Fatalf("%s: no stack: %v", want, err)
			}
			if got := functions(stack); !slices.Contains(got, want) || stack.Task.PID != uint32(os.Getpid()) || stack.Task.Start == 0 || stack.Image[1] == 0 || stack.Deeper {
				t.Errorf("%s: %q of %+v", want, got, stack)
			}
		}
		if _, ok, err := p.Stack(cookieOf(l)); ok || err != nil {
			t.Errorf("a listener has a stack: %v", err)
		}
		gone := cookieOf(c)
		disconnect(c)
		check(unix.Connect(c, at)) // in this function
		stack, ok, _ := p.Stack(gone)
		if got := functions(stack); !ok || slices.Contains(got, "stackedConnect") {
			t.Errorf("the stack of an earlier connection: %q", got)
		}
		linger0(c)
		s.close(c)
		if stack, ok, _ := p.Stack(gone); ok {
			t.Errorf("the socket is gone, its stack not: %q", functions(stack))
		}
		if st := must(p.Stats()); st.StacksLost != 0 {
			t.Errorf("%d lost", st.StacksLost)
		}
	})
}

// TestStackOwnID: the same where sockets have numbers of our own.
func TestStackOwnID(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		p := openTier(s.t, Options{Stacks: true, NoStorage: true})
		_, at := s.listen(local4(), 1, 0)
		c := stackedConnect(s, at)
		var e event.Event
		next := func() event.SocketID {
			for e = (event.Event{}); e.Netns != s.inode || e.Kind != event.KindState || e.New != event.StateSynSent; {
				if err := p.Read(&e); err != nil && err != event.ErrIdle {
					t.Fatal(err)
				}
			}
			return e.Socket
		}
		first := next()
		if stack, ok, err := p.Stack(first); err != nil || !slices.Contains(functions(stack), "stackedConnect") {
			t.Errorf("%v %v %q", ok, err, functions(stack))
		}
		disconnect(c)
		check(unix.Connect(c, at))
		second := next()
		if stack, _, _ := p.Stack(second); first != second || slices.Contains(functions(stack), "stackedConnect") {
			t.Error("the stack of an earlier connection stays, or it is another socket")
		}
		linger0(c)
		s.close(c)
		if _, ok, _ := p.Stack(second); ok {
			t.Error("the socket is gone, its stack not")
		}
	})
}

// TestStackFull: where there is no room the socket has none, and it is counted.
func TestStackFull(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		p := openTier(s.t, Options{Stacks: true, NoTrampolines: true})
		m := p.maps[bpfMapStacks]
		for i := uint64(0); ; i++ { // sockets of others come in as well
			if err := m.Put(1<<63|1<<62|i, bpfStack{}); err != nil {
				break
			}
		}
		_, at := s.listen(local4(), 1, 0)
		c := stackedConnect(s, at)
		if _, ok, err := p.Stack(cookieOf(c)); ok || err != nil {
			t.Errorf("a stack without room: %v", err)
		}
		if st := must(p.Stats()); st.StacksLost == 0 {
			t.Error("not counted")
		}
	})
}

// TestStackOff: without the option no program has an instruction that refers to
// the stacks, and their map is no map of theirs to fill.
func TestStackOff(t *testing.T) {
	length := map[bool]map[string]int{}
	for _, on := range []bool{false, true} {
		p := openTier(t, Options{Stacks: on, NoTrampolines: true})
		info := must(p.maps[bpfMapStacks].Info())
		id, _ := info.ID()
		if !on && info.MaxEntries != 1 {
			t.Errorf("off, but room for %d", info.MaxEntries)
		}
		length[on] = map[string]int{}
		for _, prog := range p.progs {
			info := must(prog.Info())
			instructions, err := info.Instructions()
			if err != nil {
				t.Skipf("the kernel does not show its instructions: %v", err)
			}
			uses := slices.ContainsFunc(instructions, func(i asm.Instruction) bool { return i.IsLoadFromMap() && uint64(i.Constant) == uint64(id) })
			switch name := info.Name; name {
			case "st_set_state", "st_state_again", "st_destroy_sock", "st_dead_again", "st_accept", "st_accept4", "st_graft", "st_graft_again":
				if uses != on {
					t.Errorf("%s: stacks %v, used %v", name, on, uses)
				}
				length[on][name] = len(instructions)
			default:
				if uses {
					t.Errorf("%s uses the stacks", name)
				}
			}
		}
		p.Close()
	}
	for name, off := range length[false] {
		t.Logf("%s: %d instructions, with stacks %d", name, off, length[true][name])
		if off >= length[true][name] {
			t.Errorf("%s: the verifier removed nothing", name)
		}
	}
	if len(length[false]) < 2 {
		t.Errorf("only %v", length)
	}
}
