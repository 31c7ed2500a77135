// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
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
	"github.com/stated-tcp/stated/pkg/kerneltest/uring"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
)

// server is a program that answers each connection with a line and logs
// "PID PEERPORT" on its standard output or in the file log of its directory:
// which of its processes accepted it. A third number is who closes it.
type server struct {
	name    string
	program string
	args    func(dir string, at netip.AddrPort) []string
}

var servers = []server{
	{"nginx", "nginx", nginx("")},
	{"nginx reuseport", "nginx", nginx(" reuseport")},
	{"python threads", "python3", script("threads.py")},
	{"python forks", "python3", script("forks.py")},
	{"python workers", "python3", script("workers.py")},
	{"descriptors passed on", "python3", script("passed.py")},
	{"inetd", "inetd", inetdArgs},
	{"systemd sockets", "systemd-socket-activate", activateArgs},
	{"node", "node", script("server.js")},
	{"go", "/proc/self/exe", ourselves("go")},
	{"io_uring", "/proc/self/exe", ourselves("io_uring")},
	{"java", "java", script("Server.java")},
}

// ourselves is a server of this program: TestOwners runs it when it sees these arguments.
func ourselves(kind string) func(string, netip.AddrPort) []string {
	return func(_ string, at netip.AddrPort) []string {
		return []string{"-test.run=^TestOwners$", kind, at.String()}
	}
}

func script(name string) func(string, netip.AddrPort) []string {
	return func(_ string, at netip.AddrPort) []string {
		return []string{must(filepath.Abs("testdata/" + name)), at.Addr().String(), strconv.Itoa(int(at.Port()))}
	}
}

func nginx(listen string) func(string, netip.AddrPort) []string {
	return func(dir string, at netip.AddrPort) []string {
		conf := filepath.Join(dir, "nginx.conf")
		check(os.WriteFile(conf, []byte(strings.NewReplacer("DIR", dir, "AT", at.String()+listen).Replace(`
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
}

// handler is the command of a program that is started with a connection.
func handler(dir string) []string {
	return []string{must(exec.LookPath("python3")), must(filepath.Abs("testdata/handler.py")), filepath.Join(dir, "log")}
}

func inetdArgs(dir string, at netip.AddrPort) []string {
	conf, run := filepath.Join(dir, "inetd.conf"), handler(dir)
	check(os.WriteFile(conf, fmt.Appendf(nil, "%s:%d stream tcp nowait root %s python3 %s\n", at.Addr(), at.Port(), run[0], strings.Join(run[1:], " ")), 0o600))
	return []string{"-i", "-R", "100000", conf}
}

func activateArgs(dir string, at netip.AddrPort) []string {
	return append([]string{"-l", at.String(), "--accept", "--inetd"}, handler(dir)...)
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

// uringServer makes no system call for its connections, but for io_uring_enter.
func uringServer(at string) {
	addr := netip.MustParseAddrPort(at)
	sa, family := sockaddr(addr)
	l := must(unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	check(unix.Bind(l, sa))
	check(unix.Listen(l, 128))
	r := must(uring.New())
	var buf [4096]byte
	for {
		check(r.SubmitAccept(l, uring.Inline))
		fd, _, err := r.Wait()
		check(err)
		fmt.Println(os.Getpid(), must(unix.Getpeername(fd)).(*unix.SockaddrInet4).Port)
		must(r.Read(fd, false, buf[:]))
		must(r.Write(fd, false, []byte("HTTP/1.0 200 OK\r\n\r\nok")))
		check(r.CloseFD(fd, false))
	}
}

// logged is what a workload has told, by the port of the client.
type logged struct {
	mu      sync.Mutex
	pids    map[uint16]uint32 // who accepted
	closers map[uint16]uint32 // who closes, where that is told
	rest    []byte            // of a line that is not whole yet
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
		var pid, closer uint32
		var port uint16
		n, _ := fmt.Sscan(string(line), &pid, &port, &closer)
		if n >= 2 {
			l.pids[port] = pid
		}
		if n == 3 {
			l.closers[port] = closer
		}
	}
}

// of returns who accepted from the ports, as far as it has been told, and who closes.
func (l *logged) of(ports map[uint16]uint32) (pids, closers map[uint16]uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pids = make(map[uint16]uint32)
	for port := range ports {
		if pid := l.pids[port]; pid != 0 {
			pids[port] = pid
		}
	}
	return pids, maps.Clone(l.closers)
}

// owned is what a workload tells of its connections: who is at which end.
type owned struct {
	at      netip.AddrPort
	clients map[uint16]uint32 // pid of the client, by its port
	servers map[uint16]uint32 // pid of who accepted, by the client's port
	closers map[uint16]uint32 // pid of who closed the server's side, where that is told
	comms   map[uint32]string // names of the processes, not of their threads, where known
	used    map[uint16]bool   // ports of clients so far
}

// client notes whose connection comes from a port. A port that is used a second
// time tells connections apart no more: it is left out.
func (o *owned) client(port uint16, pid uint32) {
	if o.used[port] {
		delete(o.clients, port)
		return
	}
	o.used[port], o.clients[port] = true, pid
}

// learn keeps the names of the processes that are there.
func (o *owned) learn(pids map[uint16]uint32) {
	if o.comms == nil {
		o.comms = make(map[uint32]string)
	}
	for _, pid := range pids {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
			o.comms[pid] = strings.TrimSuffix(string(comm), "\n")
		}
	}
}

// TestOwners: on real workloads, each connection has the owner that the
// workload itself logged, at both ends. tcpstates prints the process that was
// on the CPU: its share of lines with the right one is shown beside.
func TestOwners(t *testing.T) {
	switch args := os.Args; args[max(0, len(args)-2)] { // we are a server
	case "go":
		goServer(args[len(args)-1])
	case "io_uring":
		uringServer(args[len(args)-1])
	}
	peer := startTcpstates(t)
	defer peer.stop()
	var results strings.Builder
	for _, srv := range servers {
		t.Run(strings.ReplaceAll(srv.name, " ", "_"), func(t *testing.T) {
			requireProgram(t, srv.program)
			requireProgram(t, "curl")
			if srv.name == "io_uring" {
				r, err := uring.New()
				if err != nil {
					missing(t, "%v", err)
				}
				r.Close()
			}
			fmt.Fprintf(&results, "%-22s %s\n", srv.name, ownersOf(t, peer, func(s *space) owned { return s.serve(srv) }))
		})
	}
	t.Run("postgresql", func(t *testing.T) {
		// Debian has these where no PATH leads
		versions, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
		t.Setenv("PATH", strings.Join(append(versions, os.Getenv("PATH")), ":"))
		for _, program := range []string{"initdb", "postgres", "pgbench"} {
			requireProgram(t, program)
		}
		fmt.Fprintf(&results, "%-22s %s\n", "postgresql", ownersOf(t, peer, func(s *space) owned { return s.postgres() }))
	})
	t.Logf("owners that are those of the workload's own log:\n%-22s %9s %9s   tcpstates\n%s", "", "clients", "servers", &results)
}

// requireProgram skips the test where a program is not installed; in CI it must be.
func requireProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, "%s is not installed: %v", name, err)
	}
}

// ownersOf runs a workload beside the probe and compares. It returns how many
// owners were right at both ends, and in how many of its lines tcpstates was.
func ownersOf(t *testing.T, peer *tcpstates, run func(*space) owned) (result string) {
	p := openProbe(t, probe.Options{})
	stop := gatherConns(p)
	s := newSpace(t)
	var want owned
	s.run(func() { want = run(s) })
	of := func(c *lifecycle.Conn) bool {
		return c.Netns == s.inode && (c.Local.AddrPort() == want.at || c.Peer.AddrPort() == want.at)
	}
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
	seen, right := map[lifecycle.Role]int{}, map[lifecycle.Role]int{}
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
		comm, named := want.comms[pid]
		switch {
		case c.Owner.PID != pid:
			t.Errorf("%s %s %s: owner %s[%d] by %s, logged %d", c.Role, c.Local, c.Peer, c.Owner.Comm, c.Owner.PID, c.Owner.Source, pid)
		case named && c.Owner.Comm.String() != comm:
			t.Errorf("%s %s %s: owner %d is called %q, and is %q", c.Role, c.Local, c.Peer, pid, c.Owner.Comm, comm)
		default:
			right[c.Role]++
		}
		if closer, known := want.closers[port]; known && c.Role == lifecycle.RoleServer && c.Outcome == lifecycle.OutcomeClosed {
			if comm := want.comms[closer]; c.Closer == nil || c.Closer.PID != closer || comm != "" && c.Closer.Comm.String() != comm {
				stats, err := p.Stats()
				t.Errorf("%s %s %s: closed by %+v, logged %s[%d]; gap %t, %d runs skipped (%v)", c.Role, c.Local, c.Peer, c.Closer, comm, closer, c.Gap, stats.Skipped, err)
			}
		}
	}
	if seen[lifecycle.RoleClient] != len(want.clients) || seen[lifecycle.RoleServer] != len(want.servers) || min(len(want.clients), len(want.servers)) < 20 {
		t.Errorf("seen %v; logged %d clients, %d servers", seen, len(want.clients), len(want.servers))
		for _, c := range open {
			if c.Netns == s.inode {
				t.Logf("still open: %s %s %s in %s", c.Role, c.Local, c.Peer, c.State)
			}
		}
	}
	peers, lines := 0, 0
	for _, x := range peer.of(s) {
		pid, known := want.clients[x.local.Port()], x.peer == want.at
		if x.local == want.at {
			pid, known = want.servers[x.peer.Port()], x.peer.Port() != 0
		}
		if known && pid != 0 {
			lines++
			if x.pid == pid {
				peers++
			}
		}
	}
	return fmt.Sprintf("%4d/%-4d %4d/%-4d   %d of %d lines", right[lifecycle.RoleClient], len(want.clients),
		right[lifecycle.RoleServer], len(want.servers), peers, lines)
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

// awaitListener waits until something listens, without a connection of its own.
func awaitListener(at netip.AddrPort, ended <-chan error) {
	for deadline := time.Now().Add(120 * time.Second); !listens(at.Port()); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			panic(fmt.Sprint("the server ended: ", err))
		default:
		}
		if time.Now().After(deadline) {
			panic("the server does not listen")
		}
	}
}

// listens reports whether a socket of the namespace listens (get_tcp4_sock in
// net/ipv4/tcp_ipv4.c).
func listens(port uint16) bool {
	for _, name := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // without IPv6 there is none
			panic(err)
		}
		for line := range strings.Lines(string(table)) {
			words := strings.Fields(line)
			if len(words) > 3 && strings.HasSuffix(words[1], fmt.Sprintf(":%04X", port)) && words[3] == "0A" {
				return true
			}
		}
	}
	return false
}

// serve runs a server, and clients of two kinds: ourselves, many connections
// at a time, and curl in a loop.
func (s *space) serve(srv server) owned {
	s.anyCPU()
	dir := must(os.MkdirTemp("", "stated"))
	defer os.RemoveAll(dir)
	o := owned{at: s.freePort(), clients: make(map[uint16]uint32), used: make(map[uint16]bool)}
	log := &logged{pids: make(map[uint16]uint32), closers: make(map[uint16]uint32)}
	cmd := exec.Command(srv.program, srv.args(dir, o.at)...)
	cmd.Stdout, cmd.Stderr = log, os.Stderr
	cmd.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=err")
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
	for range 10 {
		for _, port := range s.ask(o.at, 8) {
			o.client(port, uint32(os.Getpid()))
		}
	}
	o.learn(o.clients)
	for range 10 {
		pid, port := s.curl(o.at)
		o.client(port, pid)
		o.comms[pid] = "curl"
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if lines, err := os.ReadFile(filepath.Join(dir, "log")); err == nil {
			log.Write(lines)
		}
		if o.servers, o.closers = log.of(o.clients); len(o.servers) == len(o.clients) {
			o.learn(o.servers)
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
