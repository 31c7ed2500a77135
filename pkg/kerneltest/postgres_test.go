// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// postgres runs PostgreSQL with pgbench, which connects anew for each
// transaction. The postmaster accepts; the backend that it forks serves and
// closes, and is logged.
func (s *space) postgres() owned {
	s.anyCPU()
	dir := must(os.MkdirTemp("", "stated"))
	defer os.RemoveAll(dir)
	const nobody = 65534 // PostgreSQL does not run as root
	check(os.Chown(dir, nobody, nobody))
	at := s.freePort()
	port := strconv.Itoa(int(at.Port()))
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "PGUSER=nobody", "PGDATABASE=postgres", "PGHOST="+s.v4.String(), "PGPORT="+port)
		return cmd
	}
	run := func(cmd *exec.Cmd) uint32 {
		if out, err := cmd.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%s: %v: %s", cmd.Args, err, out))
		}
		return uint32(cmd.Process.Pid)
	}
	data := filepath.Join(dir, "data")
	run(command("initdb", "-A", "trust", "-N", "-D", data))

	var log bytes.Buffer // written until the postmaster ends
	postmaster := command("postgres", "-D", data, "-k", dir, "-h", s.v4.String(), "-p", port, "-F",
		"-c", "log_connections=on", "-c", "log_line_prefix=owner %p ", "-c", "autovacuum=off")
	postmaster.Stderr = &log
	check(postmaster.Start())
	ended := make(chan error, 1)
	go func() { ended <- postmaster.Wait() }()
	clients := make(map[string]uint32) // by application name
	func() {
		defer func() {
			postmaster.Process.Signal(syscall.SIGINT) // "fast" shutdown
			<-ended
		}()
		awaitListener(at, ended)
		awaitReady(filepath.Join(data, "postmaster.pid"))
		for _, bench := range []string{"tables -i -q", "bench -S -C -c 4 -j 2 -t 20 -n"} {
			app, args, _ := strings.Cut(bench, " ")
			cmd := command("pgbench", strings.Fields(args)...)
			cmd.Env = append(cmd.Env, "PGAPPNAME="+app)
			clients[app] = run(cmd)
		}
	}()
	return ownersInLog(log.String(), owned{at: at}, uint32(postmaster.Process.Pid), clients)
}

// awaitReady waits as pg_ctl(1) does: the postmaster listens before it answers.
func awaitReady(pidFile string) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		text, _ := os.ReadFile(pidFile)
		if strings.Contains(string(text), "\nready") {
			return
		}
		if time.Now().After(deadline) {
			panic(fmt.Sprintf("PostgreSQL is not ready: %s", text))
		}
	}
}

// ownersInLog reads the log of a postmaster: which backend served which port,
// and which application was connected to it.
//
//	owner 4711 LOG:  connection received: host=127.1.2.1 port=40112
//	owner 4711 LOG:  connection authorized: user=nobody database=postgres application_name=bench
func ownersInLog(log string, o owned, postmaster uint32, clients map[string]uint32) owned {
	o.clients, o.servers, o.closers = make(map[uint16]uint32), make(map[uint16]uint32), make(map[uint16]uint32)
	times := make(map[uint16]int)    // that a port was used
	ports := make(map[uint32]uint16) // of the backends; a pid is not used again so soon
	for line := range strings.Lines(log) {
		var backend uint32
		if n, _ := fmt.Sscanf(line, "owner %d ", &backend); n == 0 {
			continue
		}
		if _, text, ok := strings.Cut(line, " connection received: "); ok {
			_, text, _ = strings.Cut(text, " port=")
			port := uint16(must(strconv.ParseUint(strings.TrimSpace(text), 10, 16)))
			ports[backend] = port
			o.servers[port], o.closers[port] = postmaster, backend
			times[port]++
		}
		if _, app, ok := strings.Cut(line, " application_name="); ok {
			o.clients[ports[backend]] = clients[strings.TrimSpace(app)]
		}
	}
	for port, n := range times {
		if n > 1 { // it tells connections apart no more
			delete(o.clients, port)
			delete(o.servers, port)
		}
	}
	return o
}
