// SPDX-License-Identifier: Apache-2.0

package syslog

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

// daemon is a real collector with its output in a file.
type daemon struct {
	t    *testing.T
	root string // where .ci/collectors unpacked it
	dir  string // its own
	out  string // what it stored
	argv []string
	cmd  *exec.Cmd
	said bytes.Buffer
}

func collectors(t *testing.T) string {
	t.Helper()
	root := os.Getenv("STATED_COLLECTORS")
	if root == "" {
		t.Skip("STATED_COLLECTORS is not set: .ci/collectors fills it with rsyslog and syslog-ng")
	}
	if _, err := os.Stat(filepath.Join(root, "complete")); err != nil {
		t.Fatalf("STATED_COLLECTORS: %v; run .ci/collectors", err)
	}
	return root
}

// config reads an example of cmd/stated/docs/collectors and puts this test's places into it.
func config(t *testing.T, name string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../../cmd/stated/docs/collectors", name))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(string(text), replace[i]) {
			t.Fatalf("%s has no %q", name, replace[i])
		}
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(strings.NewReplacer(replace...).Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func freePort(t *testing.T, network string) string {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (d *daemon) start() {
	d.t.Helper()
	d.cmd = exec.Command(d.argv[0], d.argv[1:]...)
	lib := d.root + "/usr/lib/x86_64-linux-gnu"
	if dirs, _ := filepath.Glob(d.root + "/usr/lib/*-linux-gnu"); len(dirs) > 0 {
		lib = dirs[0]
	}
	d.cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join([]string{
		lib, strings.Replace(lib, d.root+"/usr", d.root, 1), d.root + "/usr/lib/syslog-ng"}, ":"))
	d.cmd.Stdout, d.cmd.Stderr = &d.said, &d.said
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

// rsyslog starts rsyslog with one of the inputs of cmd/stated/docs/collectors/rsyslog.conf.
func rsyslog(t *testing.T, secure *sinktest.Authority) (d *daemon, ports map[string]string) {
	root := collectors(t)
	d = &daemon{t: t, root: root, dir: t.TempDir()}
	d.out = filepath.Join(d.dir, "stated.jsonl")
	ports = map[string]string{}
	replace := []string{"/var/log/stated.jsonl", d.out, "/var/spool/rsyslog", d.dir}
	for name, port := range map[string]string{"udp": "514", "tcp": "601", "relp": "2514", "tls": "6514", "relp+tls": "2515"} {
		network := "tcp"
		if name == "udp" {
			network = "udp"
		}
		ports[name] = freePort(t, network)
		_, p, _ := net.SplitHostPort(ports[name])
		replace = append(replace, fmt.Sprintf(`port="%s"`, port), fmt.Sprintf(`address="127.0.0.1" port="%s"`, p))
	}
	cert, key := secure.Issue(t, "server", time.Now().Add(time.Hour))
	replace = append(replace, "/etc/rsyslog-tls/ca.pem", secure.CAFile, "/etc/rsyslog-tls/cert.pem", cert, "/etc/rsyslog-tls/key.pem", key)
	conf := config(t, "rsyslog.conf", replace...)
	modules, _ := filepath.Glob(root + "/usr/lib/*/rsyslog")
	if len(modules) == 0 {
		t.Fatalf("no modules of rsyslog in %s", root)
	}
	d.argv = []string{root + "/usr/sbin/rsyslogd", "-n", "-f", conf, "-i", filepath.Join(d.dir, "pid"), "-M", modules[0]}
	d.start()
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("it said: %s", &d.said)
		}
	})
	return d, ports
}

// stored waits for a batch in the daemon's file, and compares each record.
func (d *daemon) stored(batch []sink.Record) (lines int) {
	d.t.Helper()
	end := time.Now().Add(30 * time.Second)
	for {
		store := sinktest.NewStore()
		f, err := os.Open(d.out)
		lines = 0
		if err == nil {
			in := bufio.NewScanner(f)
			in.Buffer(nil, 1<<20)
			for in.Scan() {
				lines++
				if _, rest, ok := strings.Cut(in.Text(), `"log.record.uid":"`); ok {
					uid, _, _ := strings.Cut(rest, `"`)
					store.Add(uid, in.Bytes())
				}
			}
			f.Close()
		}
		missing := ""
		for _, r := range batch {
			if _, ok := store.Get(r.UID); !ok {
				missing = r.UID
				break
			}
		}
		if missing == "" {
			sinktest.Kept(d.t, store, batch, true)
			return lines
		}
		if time.Now().After(end) {
			n, _ := store.Len()
			d.t.Fatalf("record %s of %d is not stored; %d are", missing, len(batch), n)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestRsyslog(t *testing.T) {
	a := sinktest.NewAuthority(t)
	d, ports := rsyslog(t, a)
	for network, address := range ports {
		cfg := Config{Network: network, Address: address}
		if strings.HasSuffix(network, "tls") {
			cfg.TLS = a.Client(t)
		}
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		batch := sinktest.Records(500)
		if network == "udp" {
			// Nobody tells when the port is open: send one until it is stored.
			batch = batch[:20]
			probe := sinktest.Records(1)
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				s.Send(t.Context(), probe)
				if b, _ := os.ReadFile(d.out); bytes.Contains(b, []byte(probe[0].UID)) {
					break
				}
				if time.Now().After(end) {
					t.Fatal("rsyslog takes no datagram")
				}
			}
		}
		sinktest.Insist(t, s, batch)
		d.stored(batch)
		s.Close()
		t.Logf("%s: %d records stored as they were sent", network, len(batch))
	}
}

// TestRsyslogKilled kills rsyslog without warning while RELP delivers: what it
// acknowledged is in its file or its queue on disk; nothing is lost.
func TestRsyslogKilled(t *testing.T) {
	d, ports := rsyslog(t, sinktest.NewAuthority(t))
	s, err := New(Config{Network: "relp", Address: ports["relp"]})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var all []sink.Record
	interrupted := 0
	for round := range 4 {
		batch := sinktest.Records(5000)
		done := make(chan struct{})
		if round > 0 { // as soon as it has stored some of the batch
			go func() {
				defer close(done)
				before, _ := os.Stat(d.out)
				for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
					if now, err := os.Stat(d.out); err == nil && now.Size() > before.Size()+int64(round)*400_000 {
						break
					}
					time.Sleep(time.Millisecond)
				}
				d.kill()
				d.start()
			}()
		} else {
			close(done)
		}
		if sinktest.Insist(t, s, batch) > 1 {
			interrupted++
		}
		all = append(all, batch...)
		d.stored(all[:1]) // the file is there before its size is asked
		<-done
	}
	lines := d.stored(all)
	t.Logf("%d records sent, %d lines stored, %d batches interrupted", len(all), lines, interrupted)
}

func TestSyslogNG(t *testing.T) {
	root := collectors(t)
	a := sinktest.NewAuthority(t)
	cert, key := a.Issue(t, "server", time.Now().Add(time.Hour))
	for _, network := range []string{"tcp", "tls"} {
		t.Run(network, func(t *testing.T) {
			d := &daemon{t: t, root: root, dir: t.TempDir()}
			d.out = filepath.Join(d.dir, "stated.jsonl")
			plain, secure := freePort(t, "tcp"), freePort(t, "tcp")
			_, plainPort, _ := net.SplitHostPort(plain)
			_, securePort, _ := net.SplitHostPort(secure)
			conf := config(t, "syslog-ng.conf", "/var/log/stated.jsonl", d.out, "port(601)", `ip("127.0.0.1") port(`+plainPort+")", "port(6514)", `ip("127.0.0.1") port(`+securePort+")",
				"/etc/syslog-ng-tls/ca.pem", a.CAFile, "/etc/syslog-ng-tls/cert.pem", cert, "/etc/syslog-ng-tls/key.pem", key)
			modules, _ := filepath.Glob(root + "/usr/lib/syslog-ng/[0-9]*")
			if len(modules) == 0 {
				t.Fatalf("no modules of syslog-ng in %s", root)
			}
			d.argv = []string{root + "/usr/sbin/syslog-ng", "-F", "--no-caps", "--stderr", "-f", conf, "--module-path", modules[0],
				"-R", d.dir + "/persist", "-p", d.dir + "/pid", "-c", d.dir + "/ctl"}
			d.start()
			t.Cleanup(func() {
				d.kill()
				if t.Failed() {
					t.Logf("it said: %s", &d.said)
				}
			})
			cfg := Config{Network: network, Address: plain}
			if network == "tls" {
				cfg.Address, cfg.TLS = secure, a.Client(t)
			}
			s, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			batch := sinktest.Records(500)
			sinktest.Insist(t, s, batch)
			d.stored(batch)
		})
	}
}
