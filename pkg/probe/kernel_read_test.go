// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestFirstRead: of a socket that was accepted before us, or by means that
// nobody sees, the first to read is the owner, where accept() is not seen.
func TestFirstRead(t *testing.T) {
	requireKernel(t)
	inSpace(t, func(s *space) {
		c, a := s.pair(0)
		p := openTier(t, Options{NoTrampolines: true})
		if !p.works(bpfProgStRead) {
			panic(skip("no typed tracepoints"))
		}
		table := tableFor(p, &ender{})
		must(unix.Write(c, []byte("hello")))
		var buf [16]byte
		must(unix.Read(a, buf[:]))
		var owner lifecycle.Owner
		follow(t, p, table, s.inode, func() bool {
			table.All(func(conn *lifecycle.Conn) {
				if conn.Local.AddrPort() == addrOf(must(unix.Getsockname(a))) && conn.State == event.StateEstablished {
					owner = conn.Owner
				}
			})
			return owner.PID != 0
		})
		if owner.PID != uint32(os.Getpid()) || owner.Source != event.OwnerRead {
			t.Errorf("owner %d by %s", owner.PID, owner.Source)
		}
	})
}

// TestFirstReadByKernel: where the kernel itself reads, as soon as a segment comes
// (sockmap with a parser, kTLS), who sent it on loopback is no owner.
func TestFirstReadByKernel(t *testing.T) {
	if os.Getenv("STATED_TEST_WRITE") != "" {
		must(unix.Write(3, []byte("hello")))
		os.Exit(0)
	}
	requireKernel(t)
	if olderThan(kernelRelease(), 6, 1) {
		t.Skip("5.10 locks up in its parser")
	}
	inSpace(t, func(s *space) {
		c, a := s.pair(0)
		parse(s.t, a)
		p := openTier(t, Options{NoTrampolines: true})
		if !p.works(bpfProgStRead) {
			panic(skip("no typed tracepoints"))
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestFirstReadByKernel$")
		cmd.Env = append(os.Environ(), "STATED_TEST_WRITE=1")
		file := os.NewFile(uintptr(must(unix.FcntlInt(uintptr(c), unix.F_DUPFD_CLOEXEC, 0))), "")
		defer file.Close()
		cmd.ExtraFiles = []*os.File{file}
		check(cmd.Run())
		must(unix.Read(a, make([]byte, 16)))
		linger0(c)
		s.close(c)
		file.Close()
		for ended := false; !ended; {
			var e event.Event
			if err := p.Read(&e); err != nil && !errors.Is(err, event.ErrIdle) {
				t.Fatal(err)
			}
			if e.Netns != s.inode {
				continue
			}
			if e.Kind == event.KindHolder && e.Task.PID == uint32(cmd.Process.Pid) && e.Local == addrOf(must(unix.Getsockname(a))) {
				t.Errorf("read by process %d, which holds the other end", e.Task.PID)
			}
			ended = e.Kind == event.KindState && e.New == event.StateClose
		}
	})
}

// parse has the kernel read from a socket what comes.
func parse(t *testing.T, fd int) {
	t.Helper()
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	check(err)
	t.Cleanup(func() { sockets.Close() })
	for attach, result := range map[ebpf.AttachType]asm.Instruction{
		ebpf.AttachSkSKBStreamParser:  asm.LoadMem(asm.R0, asm.R1, 0, asm.Word), // all: struct __sk_buff begins with its length
		ebpf.AttachSkSKBStreamVerdict: asm.Mov.Imm(asm.R0, 1),                   // SK_PASS
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SkSKB, Instructions: asm.Instructions{result, asm.Return()}})
		check(err)
		t.Cleanup(func() { prog.Close() })
		err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: sockets.FD(), Program: prog, Attach: attach})
		if errors.Is(err, unix.EOPNOTSUPP) {
			panic(skip("no CONFIG_BPF_STREAM_PARSER"))
		}
		check(err)
	}
	check(sockets.Put(uint32(0), uint32(fd)))
}
