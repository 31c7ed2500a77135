// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// connector is a process that connects, and what must be told of it.
type connector struct {
	name string
	exe  string // below a directory of the test's own
	attr syscall.SysProcAttr
	then string // another program that it becomes while it is connected
	cut  bool   // the path is too long to be told
	gone bool   // the file of the program is gone before it runs

	pid    int
	pidns  uint64
	cgroup string
}

func connectors() []*connector {
	long := strings.Repeat(strings.Repeat("d", 99)+"/", 3)
	return []*connector{
		{name: "exits at once", exe: "client"},
		{name: "a name to attack terminals", exe: "a\x1b[31m\nb\xff\"\\"},
		{name: "a path too long", exe: long + "client", cut: true},
		{name: "a file that was removed", exe: "removed", gone: true},
		{name: "another user", exe: "user", attr: syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}},
		{name: "another pid namespace", exe: "inner", attr: syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}},
		{name: "a control group", exe: "grouped", cgroup: "/stated-test-" + strconv.Itoa(os.Getpid()) + "/a b"},
		{name: "another program while connected", exe: "first", then: "second"},
	}
}

// runConnector is the process: it says that it is there, waits, connects to the
// port in its environment, becomes another program, waits for the peer, ends.
func runConnector(port string) {
	fd, err := strconv.Atoi(os.Getenv("STATED_TEST_CONNECTED"))
	if err != nil {
		fmt.Println("there")
		io.Copy(io.Discard, os.Stdin)
		fd = must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0))
		check(unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: must(strconv.Atoi(port))}))
		if then := os.Getenv("STATED_TEST_THEN"); then != "" {
			check(syscall.Exec(then, []string{then, "-test.run=^TestProcesses$"}, append(os.Environ(), "STATED_TEST_CONNECTED="+strconv.Itoa(fd))))
		}
	}
	must(unix.Read(fd, make([]byte, 1)))
	os.Exit(0) // who closes is the kernel, when the program's memory is gone
}

// TestProcesses: who a process is comes before the first event that it is part
// of, and again when it becomes another program.
func TestProcesses(t *testing.T) {
	if port := os.Getenv("STATED_TEST_PORT"); port != "" {
		runConnector(port)
	}
	requireKernel(t)
	dir := t.TempDir()
	check(os.Chmod(filepath.Dir(dir), 0o755))
	check(os.Chmod(dir, 0o755))
	binary := filepath.Join(dir, "binary")
	check(os.WriteFile(binary, must(os.ReadFile("/proc/self/exe")), 0o755))
	for _, tier := range tiers {
		if tier.opts.Classic {
			continue // cannot read processes
		}
		t.Run(tier.name, func(t *testing.T) {
			p := openTier(t, tier.opts)
			all := connectors()
			netns := inSpace(t, func(s *space) {
				l, at := s.listen(local4(), 8, 0)
				for _, c := range all {
					c.run(s, dir, l, at.(*unix.SockaddrInet4).Port)
				}
			})
			told := processesOf(t, p, netns, len(all))
			for _, c := range all {
				t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) { c.check(t, dir, told[uint32(c.pid)]) })
			}
		})
	}
}

func (c *connector) run(s *space, dir string, listener, port int) {
	place := func(name string) string {
		path := filepath.Join(dir, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		if err := os.Link(filepath.Join(dir, "binary"), path); err != nil && !errors.Is(err, os.ErrExist) {
			panic(err)
		}
		return path
	}
	cmd := exec.Command(place(c.exe), "-test.run=^TestProcesses$")
	cmd.Env = append(os.Environ(), "STATED_TEST_PORT="+strconv.Itoa(port))
	if c.then != "" {
		cmd.Env = append(cmd.Env, "STATED_TEST_THEN="+place(c.then))
	}
	if c.gone {
		file := must(os.Open(cmd.Path))
		defer file.Close()
		check(os.Remove(cmd.Path))
		cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{file}
	}
	cmd.Dir, cmd.Stderr, cmd.SysProcAttr = "/", os.Stderr, &c.attr
	stdin, stdout := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	check(cmd.Start())
	c.pid = cmd.Process.Pid
	must(stdout.Read(make([]byte, 64))) // it runs its own program, not a copy of us any more
	var st unix.Stat_t
	check(unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", c.pid), &st))
	c.pidns = st.Ino
	if c.cgroup != "" {
		defer c.enterGroup(s.t)()
	}
	stdin.Close()
	fd := s.accept(listener)
	must(unix.Write(fd, []byte{1}))
	check(cmd.Wait())
	readEOF(fd)
	s.close(fd)
}

// enterGroup moves the process into a control group of cgroup v2, mounted for
// the moment: what is mounted at its usual place is the host's affair.
func (c *connector) enterGroup(t *testing.T) (leave func()) {
	mount := t.TempDir()
	check(unix.Mount("cgroup2", mount, "cgroup2", 0, ""))
	group := mount + c.cgroup
	check(os.MkdirAll(group, 0o755))
	check(os.WriteFile(group+"/cgroup.procs", []byte(strconv.Itoa(c.pid)), 0))
	return func() {
		for group != mount {
			check(os.Remove(group))
			group = filepath.Dir(group)
		}
		check(unix.Unmount(mount, 0))
	}
}

// processesOf reads until n clients of the namespace have ended, and returns
// what was told of each process, in order, between its events.
func processesOf(t *testing.T, p *Probe, netns uint32, n int) map[uint32][]event.Event {
	t.Helper()
	told := make(map[uint32][]event.Event)
	for deadline := time.Now().Add(20 * time.Second); n > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections did not end", n)
		}
		var e event.Event
		if err := p.Read(&e); errors.Is(err, event.ErrIdle) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if e.Kind == event.KindProcess || e.Netns == netns && e.Flags.Has(event.FlagTask) {
			told[e.Task.PID] = append(told[e.Task.PID], e)
		}
		if e.Netns == netns && e.Kind == event.KindState && e.New == event.StateClose && e.OwnerSource == event.OwnerConnect {
			n--
		}
	}
	return told
}

func (c *connector) check(t *testing.T, dir string, events []event.Event) {
	var images []event.Event
	for _, e := range events {
		if e.Kind == event.KindProcess {
			images = append(images, e)
		} else if len(images) == 0 {
			t.Errorf("%s %s>%s before the process is told", e.Kind, e.Old, e.New)
		}
		if e.Kind != event.KindProcess && e.New == event.StateFinWait1 && c.then != "" && len(images) != 2 {
			t.Errorf("it closes as another program, of which nothing was told")
		}
	}
	want := []string{c.exe}
	if c.then != "" {
		want = append(want, c.then)
	}
	if c.cgroup != "" {
		want = append(want, c.exe) // the same again, in its group
	}
	if len(images) != len(want) {
		t.Fatalf("%d programs were told: %+v", len(images), images)
	}
	for i, e := range images {
		k := e.Process
		path := filepath.Join(dir, want[i])
		comm := event.MakeComm(filepath.Base(path))
		if c.cut {
			path = ""
		}
		if c.gone {
			comm = event.MakeComm("3") // of /proc/self/fd
		}
		if k.Exe != path || k.ExeDeleted != c.gone || e.Task.Comm != comm {
			t.Errorf("program %q (%s, deleted: %v), want %q", k.Exe, e.Task.Comm, k.ExeDeleted, path)
		}
		inner, uid := uint32(c.pid), uint32(os.Geteuid())
		if c.attr.Cloneflags&unix.CLONE_NEWPID != 0 {
			inner = 1
		}
		if c.attr.Credential != nil {
			uid = c.attr.Credential.Uid
		}
		if k.InnerPID != inner || uint64(k.PIDNS) != c.pidns || k.PPID != uint32(os.Getpid()) || k.UID != uid {
			t.Errorf("%+v, want inner pid %d in %d, parent %d, user %d", k, inner, c.pidns, os.Getpid(), uid)
		}
		if c.cgroup != "" && i > 0 && (k.Group != c.cgroup || k.Cgroup == 0) {
			t.Errorf("control group %q (%d), want %q", k.Group, k.Cgroup, c.cgroup)
		}
		if i > 0 && ((images[i-1].Process.Image == k.Image) != (c.then == "") || images[i-1].Task.Start != e.Task.Start) {
			t.Errorf("%+v, %+v are not of one process", images[i-1].Process, k)
		}
	}
}
