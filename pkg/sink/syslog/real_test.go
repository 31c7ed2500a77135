// SPDX-License-Identifier: Apache-2.0

package syslog

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

// daemon is a real collector with its output in a file.
type daemon struct {
	*sinktest.Daemon
	t   *testing.T
	out string // what it stored
}

const docs = "../../../cmd/stated/docs/collectors"

func rsyslog(t *testing.T, secure *sinktest.Authority) (*daemon, map[string]string) {
	r := sinktest.StartRsyslog(t, docs, secure)
	return &daemon{Daemon: r.Daemon, t: t, out: r.Out}, r.Ports
}

// stored waits for a batch in the daemon's file, and compares each record.
func (d *daemon) stored(batch []sink.Record) (lines int) {
	d.t.Helper()
	store := sinktest.NewStore()
	sinktest.Await(d.t, "all records are stored", func() bool {
		f, err := os.Open(d.out)
		if err != nil {
			return false
		}
		defer f.Close()
		store, lines = sinktest.NewStore(), 0
		in := bufio.NewScanner(f)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			lines++
			if _, rest, ok := strings.Cut(in.Text(), `"log.record.uid":"`); ok {
				uid, _, _ := strings.Cut(rest, `"`)
				store.Add(uid, in.Bytes())
			}
		}
		return !slices.ContainsFunc(batch, func(r sink.Record) bool {
			_, ok := store.Get(r.UID)
			return !ok
		})
	})
	sinktest.Stored(d.t, store, batch)
	return lines
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
				d.Kill()
				d.Start(t)
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
	root := sinktest.Collectors(t)
	a := sinktest.NewAuthority(t)
	cert, key := a.Issue(t, "server", time.Now().Add(time.Hour))
	for _, network := range []string{"tcp", "tls"} {
		t.Run(network, func(t *testing.T) {
			dir := t.TempDir()
			d := &daemon{t: t, out: filepath.Join(dir, "stated.jsonl")}
			plain, secure := sinktest.FreePort(t, "tcp"), sinktest.FreePort(t, "tcp")
			_, plainPort, _ := net.SplitHostPort(plain)
			_, securePort, _ := net.SplitHostPort(secure)
			conf := sinktest.Example(t, docs, "syslog-ng.conf", "/var/log/stated.jsonl", d.out, "port(601)", `ip("127.0.0.1") port(`+plainPort+")", "port(6514)", `ip("127.0.0.1") port(`+securePort+")",
				"/etc/syslog-ng-tls/ca.pem", a.CAFile, "/etc/syslog-ng-tls/cert.pem", cert, "/etc/syslog-ng-tls/key.pem", key)
			modules, _ := filepath.Glob(root + "/usr/lib/syslog-ng/[0-9]*")
			if len(modules) == 0 {
				t.Fatalf("no modules of syslog-ng in %s", root)
			}
			d.Daemon = sinktest.StartDaemon(t, []string{root + "/usr/sbin/syslog-ng", "-F", "--no-caps", "--stderr", "-f", conf, "--module-path", modules[0],
				"-R", dir + "/persist", "-p", dir + "/pid", "-c", dir + "/ctl"}, root+"/usr/lib/syslog-ng")
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
