// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// answering is a listener that answers each connection with a line and closes.
func answering(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "bye\n")
			c.Close()
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// connect is a shell script that connects to a port, reads to the end, and exits.
const connect = `exec 3<>/dev/tcp/127.0.0.1/"$1" && cat <&3 >/dev/null`

// TestShortLived: of clients that are gone when their events are read, records
// have all that there is to know.
func TestShortLived(t *testing.T) {
	requireProgram(t, "bash")
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal(err)
	}
	if bash, err = filepath.EvalSymlinks(bash); err != nil {
		t.Fatal(err)
	}
	port := answering(t)
	const clients = 300
	var out bytes.Buffer
	cmd := exec.Command(stated, "trace", "-o", "json", "--cmdline", "--rport", port, "--count", strconv.Itoa(clients))
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	for lines := bufio.NewScanner(stderr); lines.Scan() && !strings.Contains(lines.Text(), "watching"); {
	}
	go io.Copy(io.Discard, stderr)
	for range clients {
		client := exec.Command("bash", "-c", connect, "bash", port)
		client.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if text, err := client.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range bytes.Lines(out.Bytes()) {
		var r map[string]any
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		n++
		if r["process.executable.path"] != bash || r["process.user.id"] != "65534" || r["process.user.name"] != "nobody" || r["process.parent_pid"] != float64(os.Getpid()) {
			t.Fatalf("%d: want %s, of nobody, a child of %d: %s", n, bash, os.Getpid(), line)
		}
	}
	if n != clients {
		t.Errorf("%d records of %d clients", n, clients)
	}
}

// fakeDocker is an engine that knows one container.
func fakeDocker(t *testing.T, id, name string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/containers/"+id+"/json") {
			http.NotFound(w, r)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"Id": id, "Name": "/" + name, "Config": map[string]any{"Image": "shop:1"}})
	}))
	return socket
}

// groupOfContainer makes a control group as Docker does, in cgroup v2, mounted
// for the moment, and returns the file to enter it by.
func groupOfContainer(t *testing.T, id string) (procs string) {
	t.Helper()
	mount := t.TempDir()
	if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(mount, 0) })
	parent := fmt.Sprintf("%s/stated-test-%d", mount, os.Getpid())
	group := parent + "/docker/" + id
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range []string{group, filepath.Dir(group), parent} {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	return group + "/cgroup.procs"
}

// TestAgentContainers: the name of a container that the agent asks its engine
// for is in the records of the processes in it.
func TestAgentContainers(t *testing.T) {
	requireProgram(t, "bash")
	id := strings.Repeat("0123456789abcdef", 4)
	procs := groupOfContainer(t, id)
	dir, port := t.TempDir(), answering(t)
	writeConfig(t, dir+"/stated.yaml", fmt.Sprintf("enrich: {docker: [%s]}\nfilter: {remote_ports: [%s]}\nspool: {dir: %s/spool}\nsinks: [{name: a, file: {path: %s/out}}]\n",
		fakeDocker(t, id, "sh\x1bop"), port, dir, dir))
	d := startDaemon(t, dir+"/stated.yaml")
	waitFor(t, "a record with the container's name", func() bool {
		client := exec.Command("bash", "-c", "echo $$ >"+procs+" && "+connect, "bash", port)
		if text, err := client.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		lines, err := os.ReadFile(dir + "/out")
		if err != nil {
			return false
		}
		named := false
		recordsOf(t, lines[:bytes.LastIndexByte(lines, '\n')+1], func(r map[string]any) {
			if r["container.id"] != id {
				t.Fatalf("container %v, want %s: %v", r["container.id"], id, r)
			}
			named = named || r["container.name"] == `sh\x1bop` && r["container.image.name"] == "shop:1"
		})
		return named
	})
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.end(); err != nil {
		t.Error(err)
	}
}
