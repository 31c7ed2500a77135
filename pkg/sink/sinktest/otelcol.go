// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// OTelCollector is a real OpenTelemetry Collector (pkg/sink/sinktest/otelcol) that runs
// cmd/stated/docs/collectors/otel-collector.yaml.
type OTelCollector struct {
	*Daemon
	HTTP, GRPC, Forward string // addresses

	out string
}

// StartOTelCollector runs it until the test ends, and skips the test without
// STATED_COLLECTORS, the folder that .ci/collectors filled. docs is the path of
// cmd/stated/docs/collectors.
func StartOTelCollector(t *testing.T, docs string) *OTelCollector {
	t.Helper()
	root := Collectors(t)
	dir := t.TempDir()
	c := &OTelCollector{HTTP: FreePort(t, "tcp"), GRPC: FreePort(t, "tcp"), Forward: FreePort(t, "tcp"), out: filepath.Join(dir, "out.jsonl")}
	path := Example(t, docs, "otel-collector.yaml", "127.0.0.1:4318", c.HTTP, "127.0.0.1:4317", c.GRPC, "127.0.0.1:24224", c.Forward,
		"/var/log/stated-otel.jsonl", c.out)
	c.Daemon = StartDaemon(t, []string{filepath.Join(root, "otelcol"), "--config", "file:" + path})
	return c
}

// Stored gives keep each line of the collector's file, an OTLP request as
// JSON, until done says that this is all, and fails the test if it never does.
func (c *OTelCollector) Stored(t *testing.T, done func() bool, keep func(line []byte)) {
	t.Helper()
	Await(t, "the collector has stored all records", func() bool {
		if f, err := os.Open(c.out); err == nil {
			in := bufio.NewScanner(f)
			in.Buffer(nil, 64<<20)
			for in.Scan() {
				keep(in.Bytes())
			}
			f.Close()
		}
		return done()
	})
}

// Files are the collector's file and those that it rotated away.
func (c *OTelCollector) Files() []string {
	names, _ := filepath.Glob(strings.TrimSuffix(c.out, ".jsonl") + "*.jsonl") // the pattern is ours
	return names
}
