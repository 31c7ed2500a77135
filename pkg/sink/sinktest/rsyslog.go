// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Rsyslog is a real rsyslog that runs cmd/stated/docs/collectors/rsyslog.conf.
type Rsyslog struct {
	*Daemon
	Ports map[string]string // addresses by network: udp, tcp, tls, relp, relp+tls
	Out   string            // the file that it stores records in
}

// StartRsyslog runs it until the test ends, and skips the test without
// STATED_COLLECTORS. docs is the path of cmd/stated/docs/collectors.
func StartRsyslog(t *testing.T, docs string, secure *Authority) *Rsyslog {
	t.Helper()
	root := Collectors(t)
	dir := t.TempDir()
	r := &Rsyslog{Ports: map[string]string{}, Out: filepath.Join(dir, "stated.jsonl")}
	replace := []string{"/var/log/stated.jsonl", r.Out, "/var/spool/rsyslog", dir}
	for name, port := range map[string]string{"udp": "514", "tcp": "601", "relp": "2514", "tls": "6514", "relp+tls": "2515"} {
		network := "tcp"
		if name == "udp" {
			network = "udp"
		}
		r.Ports[name] = FreePort(t, network)
		_, p, _ := net.SplitHostPort(r.Ports[name])
		replace = append(replace, fmt.Sprintf(`port="%s"`, port), fmt.Sprintf(`address="127.0.0.1" port="%s"`, p))
	}
	cert, key := secure.Issue(t, "server", time.Now().Add(time.Hour))
	replace = append(replace, "/etc/rsyslog-tls/ca.pem", secure.CAFile, "/etc/rsyslog-tls/cert.pem", cert, "/etc/rsyslog-tls/key.pem", key)
	conf := Example(t, docs, "rsyslog.conf", replace...)
	modules, _ := filepath.Glob(root + "/usr/lib/*/rsyslog")
	if len(modules) == 0 {
		t.Fatalf("no modules of rsyslog in %s", root)
	}
	r.Daemon = StartDaemon(t, []string{root + "/usr/sbin/rsyslogd", "-n", "-f", conf, "-i", filepath.Join(dir, "pid"), "-M", modules[0]})
	return r
}

// Example copies a file of cmd/stated/docs/collectors, which docs is the path
// of, with a test's own places in it: replace holds old and new in turn.
func Example(t *testing.T, docs, name string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs, name))
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
