// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// OTelCollector is a real OpenTelemetry Collector (pkg/sink/sinktest/otelcol) that runs
// cmd/stated/docs/collectors/otel-collector.yaml.
type OTelCollector struct {
	HTTP, GRPC, Forward string // addresses

	out  string
	argv []string
	cmd  *exec.Cmd
	said bytes.Buffer
}

// StartOTelCollector runs it until the test ends, and skips the test without
// STATED_COLLECTORS, the folder that .ci/collectors filled. docs is the path of
// cmd/stated/docs/collectors.
func StartOTelCollector(t *testing.T, docs string) *OTelCollector {
	t.Helper()
	root := os.Getenv("STATED_COLLECTORS")
	if root == "" {
		t.Skip("STATED_COLLECTORS is not set: .ci/collectors builds the collector")
	}
	text, err := os.ReadFile(filepath.Join(docs, "otel-collector.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := &OTelCollector{HTTP: port(t), GRPC: port(t), Forward: port(t), out: filepath.Join(dir, "out.jsonl")}
	conf := strings.NewReplacer("127.0.0.1:4318", c.HTTP, "127.0.0.1:4317", c.GRPC, "127.0.0.1:24224", c.Forward,
		"/var/log/stated-otel.jsonl", c.out).Replace(string(text))
	path := filepath.Join(dir, "otel-collector.yaml")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c.argv = []string{filepath.Join(root, "otelcol"), "--config", "file:" + path}
	c.Start(t)
	t.Cleanup(func() {
		c.Kill()
		if t.Failed() {
			t.Logf("the collector said: %s", &c.said)
		}
	})
	return c
}

func port(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Start starts it again after Kill.
func (c *OTelCollector) Start(t *testing.T) {
	t.Helper()
	c.cmd = exec.Command(c.argv[0], c.argv[1:]...)
	c.cmd.Stdout, c.cmd.Stderr = &c.said, &c.said
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// Kill ends it without warning.
func (c *OTelCollector) Kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// Stored gives keep each line of the collector's file, an OTLP request as
// JSON, until done says that this is all, and fails the test if it never does.
func (c *OTelCollector) Stored(t *testing.T, done func() bool, keep func(line []byte)) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if f, err := os.Open(c.out); err == nil {
			in := bufio.NewScanner(f)
			in.Buffer(nil, 64<<20)
			for in.Scan() {
				keep(in.Bytes())
			}
			f.Close()
		}
		if done() {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the collector has not stored all records")
		}
	}
}
