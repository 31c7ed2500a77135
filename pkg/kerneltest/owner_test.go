// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
)

// server is a program that answers each connection with a line and logs
// "PID PEERPORT" on its standard output: which of its processes accepted it.
type server struct {
	name    string
	program string // skipped where it is not installed
	must    bool   // installed by .ci/run
	args    func(dir string, at netip.AddrPort) []string
}

var servers = []server{
	{"nginx", "nginx", true, nginxArgs},
	{"python threads", "python3", true, script("threads.py")},
	{"python forks", "python3", true, script("forks.py")},
	{"python workers", "python3", true, script("workers.py")},
	{"node", "node", false, script("server.js")},
	{"go", "/proc/self/exe", true, func(_ string, at netip.AddrPort) []string { return []string{"-test.run=^TestOwners$", at.String()} }},
	{"java", "java", false, script("Server.java")},
}

func script(name string) func(string, netip.AddrPort) []string {
	return func(_ string, at netip.AddrPort) []string {
		return []string{must(filepath.Abs("testdata/" + name)), at.Addr().String(), strconv.Itoa(int(at.Port()))}
	}
}

func nginxArgs(dir string, at netip.AddrPort) []string {
	conf := filepath.Join(dir, "nginx.conf")
	check(os.WriteFile(conf, []byte(strings.NewReplacer("DIR", dir, "AT", at.String()).Replace(`
daemon off;
user root;
worker_processes 3;
pid DIR/pid;
error_log stderr crit;
events { worker_connections 128; }
http {
	log_format owner "$pid $remote_port";
	access_log /dev/stdout owner;
	client_body_temp_path DIR; proxy_temp_path DIR; fastcgi_temp_path DIR; uwsgi_temp_path DIR; scgi_temp_path DIR;
	server { listen AT; location / { return 200 "ok"; } }
}
`)), 0o600))
	return []string{"-c", conf, "-p", dir}
}

// goServer is the server in Go: this program, run again.
func goServer(at string) {
	l := must(net.Listen("tcp", at))
	for {
		c := must(l.Accept())
		fmt.Println(os.Getpid(), c.RemoteAddr().(*net.TCPAddr).Port)
		go func() {
			var buf [4096]byte
			c.Read(buf[:])
			io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nok")
			c.Close()
		}()
	}
}

// logged are the pids that a workload has told, by the port of the client.
type logged struct {
	mu   sync.Mutex
	pids map[uint16]uint32
	rest []byte // of a line that is not whole yet
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, b...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		l.rest = rest
		var pid uint32
		var port uint16
		if n, _ := fmt.Sscan(string(line), &pid, &port); n == 2 {
			l.pids[port] = pid
		}
	}
}

// of returns the pids of the ports, as far as they have been told.
func (l *logged) of(ports map[uint16]uint32) map[uint16]uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := make(map[uint16]uint32)
	for port := range ports {
		if pid := l.pids[port]; pid != 0 {
			told[port] = pid
		}
	}
	return told
}

// owned is what a workload tells of its connections: who is at which end.
type owned struct {
	at      netip.AddrPort
	clients map[uint16]uint32 // pid of the client, by its port
	servers map[uint16]uint32 // pid of who accepted, by the client's port
	closers map[uint16]uint32 // pid of who closed the server's side, where that is told
}

// TestOwners: on real workloads, each connection has the owner that the
// workload itself logged, at both ends. tcpstates prints the process that was
// on the CPU: its share of lines with the right one is shown beside.
func TestOwners(t *testing.T) {
	if args := os.Args; strings.HasPrefix(args[len(args)-1], "127.") { // we are a server
		goServer(args[len(args)-1])
	}
	peer := startTcpstates(t)
	defer peer.stop()
	for _, srv := range servers {
		t.Run(strings.ReplaceAll(srv.name, " ", "_"), func(t *testing.T) {
			requireProgram(t, srv.program, srv.must)
			requireProgram(t, "curl", true)
			ownersOf(t, peer, func(s *space) owned { return s.serve(srv) })
		})
	}
	t.Run("postgresql", func(t *testing.T) {
		for _, program := range []string{"initdb", "postgres", "pgbench"} {
			requireProgram(t, program, false)
		}
		ownersOf(t, peer, func(s *space) owned { return s.postgres() })
	})
}

func requireProgram(t *testing.T, name string, install bool) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if install {
			missing(t, "%s is not installed: %v", name, err)
		}
		t.Skipf("%s is not installed: %v", name, err)
	}
}

// ownersOf runs a workload beside the probe and compares.
func ownersOf(t *testing.T, peer *tcpstates, run func(*space) owned) {
	p := openProbe(t, probe.Options{})
	stop := gatherConns(p)
	s := newSpace(t)
	var want owned
	s.run(func() { want = run(s) })
	of := func(c *lifecycle.Conn) bool { return c.Netns == s.inode && (c.Local == want.at || c.Peer == want.at) }
	conns, open, err := stop(func(conns []lifecycle.Conn) bool {
		n := 0
		for i := range conns {
			if of(&conns[i]) && conns[i].Role != lifecycle.RoleListener {
				n++
			}
		}
		return n >= len(want.clients)+len(want.servers)
	})
	if err != nil {
		t.Fatal(err)
	}
	// a namespace may end before the last FIN of a connection in it is acknowledged
	conns = append(conns, open...)
	seen := map[lifecycle.Role]int{}
	for _, c := range conns {
		pids, port := want.clients, c.Local.Port()
		switch {
		case !of(&c):
			continue
		case c.Role == lifecycle.RoleServer:
			pids, port = want.servers, c.Peer.Port()
		case c.Role != lifecycle.RoleClient:
			continue
		}
		pid, known := pids[port]
		if !known { // a client that only asked whether the server is there
			continue
		}
		seen[c.Role]++
		if c.Owner.PID != pid {
			t.Errorf("%s %s %s: owner %s[%d] by %s, logged %d", c.Role, c.Local, c.Peer, c.Owner.Comm, c.Owner.PID, c.Owner.Source, pid)
		}
		if closer, known := want.closers[port]; known && c.Role == lifecycle.RoleServer && c.Outcome == lifecycle.OutcomeClosed && c.Closer.PID != closer {
			t.Errorf("%s %s %s: closed by %s[%d], logged %d", c.Role, c.Local, c.Peer, c.Closer.Comm, c.Closer.PID, closer)
		}
	}
	if seen[lifecycle.RoleClient] != len(want.clients) || seen[lifecycle.RoleServer] != len(want.servers) || len(want.servers) < 20 {
		t.Errorf("seen %v; logged %d clients, %d servers", seen, len(want.clients), len(want.servers))
		for _, c := range open {
			if c.Netns == s.inode {
				t.Logf("still open: %s %s %s in %s", c.Role, c.Local, c.Peer, c.State)
			}
		}
	}
	right, all := 0, 0
	for _, x := range peer.of(s) {
		pid, known := want.clients[x.local.Port()], x.peer == want.at
		if x.local == want.at {
			pid, known = want.servers[x.peer.Port()], x.peer.Port() != 0
		}
		if known && pid != 0 {
			all++
			if x.pid == pid {
				right++
			}
		}
	}
	t.Logf("%d clients, %d servers: owners compared; tcpstates names the owner in %d of %d lines", len(want.clients), len(want.servers), right, all)
}

// gatherConns reads the probe until stop is called, what ended is enough, and
// nothing more comes, or for 2 seconds at most. stop returns the connections
// that ended, and those that did not.
func gatherConns(p *probe.Probe) (stop func(enough func([]lifecycle.Conn) bool) (ended, open []lifecycle.Conn, _ error)) {
	ask, answer := make(chan func([]lifecycle.Conn) bool, 1), make(chan error, 1)
	k := new(keeper)
	table := lifecycle.New(k, lifecycle.Options{})
	go func() {
		answer <- func() error {
			var enough func([]lifecycle.Conn) bool
			var deadline time.Time
			for quiet := 0; quiet < 3; {
				var e event.Event
				err := p.Read(&e)
				switch {
				case errors.Is(err, event.ErrIdle):
					boot, wall := probe.Now()
					e = event.Event{Kind: event.KindClock, Time: boot, Wall: wall}
					if enough != nil && (enough(k.conns) || time.Now().After(deadline)) {
						quiet++
					}
				case err != nil:
					return err
				case e.Kind == event.KindLost:
					return fmt.Errorf("%d events lost", e.Count)
				}
				table.Apply(&e)
				select {
				case enough = <-ask:
					deadline = time.Now().Add(2 * time.Second)
				default:
				}
			}
			return nil
		}()
	}()
	return func(enough func([]lifecycle.Conn) bool) (ended, open []lifecycle.Conn, _ error) {
		ask <- enough
		err := <-answer
		table.All(func(c *lifecycle.Conn) {
			if c.End == 0 {
				open = append(open, *c)
			}
		})
		return k.conns, open, err
	}
}

type keeper struct{ conns []lifecycle.Conn }

func (*keeper) Transition(*lifecycle.Conn, *event.Event) {}
func (k *keeper) Finished(c *lifecycle.Conn)             { k.conns = append(k.conns, *c) }

// freePort is a port of the namespace that nobody has.
func (s *space) freePort() netip.AddrPort {
	l, at := s.listen(s.v4, 1)
	s.close(l)
	return at
}

// awaitListener waits until something listens.
func awaitListener(at netip.AddrPort, ended <-chan error) {
	sa, family := sockaddr(at)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		fd := must(unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		err := unix.Connect(fd, sa)
		unix.Close(fd)
		if err == nil {
			return
		}
		select {
		case err := <-ended:
			panic(fmt.Sprint("the server ended: ", err))
		default:
		}
		if time.Now().After(deadline) {
			panic(fmt.Sprint("the server does not listen: ", err))
		}
	}
}

// serve runs a server, and clients of two kinds: ourselves, many connections
// at a time, and curl in a loop.
func (s *space) serve(srv server) owned {
	s.anyCPU()
	dir := must(os.MkdirTemp("", "stated"))
	defer os.RemoveAll(dir)
	o := owned{at: s.freePort(), clients: make(map[uint16]uint32)}
	log := &logged{pids: make(map[uint16]uint32)}
	cmd := exec.Command(srv.program, srv.args(dir, o.at)...)
	cmd.Stdout, cmd.Stderr = log, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its own process group
			<-ended
		}
	}()
	awaitListener(o.at, ended)
	for range 5 {
		for _, port := range s.ask(o.at, 8) {
			o.clients[port] = uint32(os.Getpid())
		}
	}
	for range 10 {
		pid, port := s.curl(o.at)
		o.clients[port] = pid
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if o.servers = log.of(o.clients); len(o.servers) == len(o.clients) {
			return o
		}
		if time.Now().After(deadline) {
			panic(fmt.Sprintf("the server told of %d connections, there were %d", len(o.servers), len(o.clients)))
		}
	}
}

// anyCPU lets the thread, and the programs that it starts, use all CPUs again.
func (s *space) anyCPU() {
	var cpus unix.CPUSet
	for i := range 1024 {
		cpus.Set(i)
	}
	check(unix.SchedSetaffinity(0, &cpus))
}

// ask makes n requests at a time and returns the ports that they came from.
func (s *space) ask(at netip.AddrPort, n int) (ports []uint16) {
	var fds []int
	for range n {
		fd := s.connect(at)
		fds = append(fds, fd)
		ports = append(ports, localOf(fd).Port())
	}
	for _, fd := range fds {
		must(unix.Write(fd, []byte("GET / HTTP/1.0\r\n\r\n")))
	}
	for _, fd := range fds {
		readEOF(fd)
		s.close(fd)
	}
	return ports
}

// curl makes a request and returns its process and port.
func (s *space) curl(at netip.AddrPort) (pid uint32, port uint16) {
	cmd := exec.Command("curl", "-sS0", "-o", "/dev/null", "-w", "%{local_port}", "http://"+at.String()+"/")
	cmd.Stderr = os.Stderr
	out := must(cmd.Output())
	return uint32(cmd.Process.Pid), uint16(must(strconv.ParseUint(string(out), 10, 16)))
}
