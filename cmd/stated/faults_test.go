// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

const docs = "docs/collectors"

// ill is a sink whose collector suffers while the agent delivers to it.
type ill struct {
	name   string
	config string   // of the sink, without its name
	faults []func() // one for each phase, the last one again where there are fewer
	heal   func()
	stored func() map[string]int // how often the collector has which record
	may    func(uid string) bool // be rejected; nil: none may
}

func (i *ill) suffer(phase int) { i.faults[min(phase, len(i.faults)-1)]() }

// proxied are faults of the network and of what answers there.
func proxied(p *sinktest.Proxy, faults ...sinktest.Fault) (sets []func()) {
	for _, f := range faults {
		sets = append(sets, func() { p.Set(f) })
	}
	return sets
}

var (
	blackHole = sinktest.Fault{Hole: true}
	garbage   = sinktest.Fault{Garbage: []byte("\x00\xff<html>400</html>\r\n\r\n")}
	half      = sinktest.Fault{CutAnswered: 30}
	drip      = sinktest.Fault{Drip: time.Second} // slower than the sink's timeout
	cut       = sinktest.Fault{CutSent: 5000}
)

// front stands before a collector that takes OTLP by HTTP, and answers in its
// place where it is told to.
type front struct {
	*httptest.Server
	cert   atomic.Pointer[tls.Certificate]
	answer atomic.Pointer[func(w http.ResponseWriter, body []byte) bool]
}

func newFront(t *testing.T, collector string, secure *tls.Config) *front {
	t.Helper()
	f := &front{}
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: collector})
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // it hung up
		}
		if answer := f.answer.Load(); answer != nil && (*answer)(w, body) {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		pass.ServeHTTP(w, r)
	}))
	// the collector is down, or the client: both are meant
	pass.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure == nil {
		f.Start()
	} else {
		f.cert.Store(&secure.Certificates[0])
		secure.Certificates = nil
		secure.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.cert.Load(), nil }
		f.TLS = secure
		f.StartTLS()
	}
	t.Cleanup(f.Close)
	return f
}

// status answers each request with a code.
func (f *front) status(code int) func() {
	return func() {
		answer := func(w http.ResponseWriter, _ []byte) bool {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(code)
			return true
		}
		f.answer.Store(&answer)
	}
}

// picky answers 400 to requests with a record that poison says yes to.
func (f *front) picky(poison func(uid string) bool) func() {
	return func() {
		answer := func(w http.ResponseWriter, body []byte) bool {
			var req collogs.ExportLogsServiceRequest
			if proto.Unmarshal(body, &req) != nil {
				return false
			}
			for _, rl := range req.GetResourceLogs() {
				for _, sl := range rl.GetScopeLogs() {
					for _, r := range sl.GetLogRecords() {
						for _, a := range r.GetAttributes() {
							if a.GetKey() == "log.record.uid" && poison(a.GetValue().GetStringValue()) {
								w.WriteHeader(http.StatusBadRequest)
								return true
							}
						}
					}
				}
			}
			return false
		}
		f.answer.Store(&answer)
	}
}

// show presents another certificate to whoever comes from now on.
func (f *front) show(t *testing.T, certFile, keyFile string) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Error(err)
		return
	}
	f.cert.Store(&cert)
	f.CloseClientConnections()
}

// patients are one sink for each way of suffering.
func patients(t *testing.T, dir string) []*ill {
	otel := func() *sinktest.OTelCollector { return sinktest.StartOTelCollector(t, docs) }
	stored := func(c *sinktest.OTelCollector) func() map[string]int {
		return func() map[string]int { return sinktest.UIDs(t, c.Files()...) }
	}
	killed, grpc, web, forward, status, secured := otel(), otel(), otel(), otel(), otel(), otel()
	grpcProxy, webProxy, forwardProxy := sinktest.StartProxy(t, grpc.GRPC), sinktest.StartProxy(t, web.HTTP), sinktest.StartProxy(t, forward.Forward)
	a := sinktest.NewAuthority(t)
	client := a.Client(t)
	statusFront, securedFront := newFront(t, status.HTTP, nil), newFront(t, secured.HTTP, a.Server(t, time.Now().Add(time.Hour)))
	poison := func(uid string) bool { return crc32.ChecksumIEEE([]byte(uid))%100 == 0 }
	relp := sinktest.StartRsyslog(t, docs, a)
	full := newDisk(t, filepath.Join(dir, "disk"), 64<<20)
	const timeout = "timeout: 2s, "
	return []*ill{{
		name: "collector killed, OTLP", config: "records: [tcp.connection, tcp.state_change], otlp: {url: http://" + killed.HTTP + "}",
		faults: []func(){killed.Kill, func() {}},
		heal: func() { // and again while it catches up
			killed.Start(t)
			before := len(sinktest.UIDs(t, killed.Files()...))
			waitFor(t, "the collector catches up", func() bool { return len(sinktest.UIDs(t, killed.Files()...)) > before })
			killed.Kill()
			killed.Start(t)
		}, stored: stored(killed),
	}, {
		name: "collector killed, RELP", config: "syslog: {network: relp, address: " + relp.Ports["relp"] + "}",
		faults: []func(){relp.Kill, func() {}}, heal: func() { relp.Start(t) },
		stored: func() map[string]int { return sinktest.UIDs(t, relp.Out) },
	}, {
		name: "network, OTLP gRPC", config: timeout + "otlp: {protocol: grpc, url: http://" + grpcProxy.Address + "}",
		faults: proxied(grpcProxy, blackHole, garbage, half, drip), heal: func() { grpcProxy.Set(sinktest.Fault{}) }, stored: stored(grpc),
	}, {
		name: "network, OTLP HTTP", config: timeout + "otlp: {url: http://" + webProxy.Address + "}",
		faults: proxied(webProxy, drip, half, garbage, blackHole), heal: func() { webProxy.Set(sinktest.Fault{}) }, stored: stored(web),
	}, {
		name: "network, Forward", config: timeout + "forward: {address: " + forwardProxy.Address + "}",
		faults: proxied(forwardProxy, cut, blackHole, garbage, half), heal: func() { forwardProxy.Set(sinktest.Fault{}) }, stored: stored(forward),
	}, {
		name: "answers 429, 503, 400", config: "otlp: {compression: none, url: " + statusFront.URL + "}",
		faults: []func(){statusFront.status(429), statusFront.status(503), statusFront.picky(poison)}, heal: func() { statusFront.answer.Store(nil) },
		stored: stored(status), may: poison,
	}, {
		name: "certificate expired", config: fmt.Sprintf("otlp: {url: %s, tls: {ca_file: %s, cert_file: %s, key_file: %s, server_name: stated.test}}",
			securedFront.URL, client.CAFile, client.CertFile, client.KeyFile),
		faults: []func(){func() {
			certFile, keyFile := a.Issue(t, "server", time.Now().Add(-time.Minute))
			securedFront.show(t, certFile, keyFile)
		}, func() {}},
		heal: func() {
			certFile, keyFile := a.Issue(t, "server", time.Now().Add(time.Hour))
			securedFront.show(t, certFile, keyFile)
			a.Client(t)
		},
		stored: stored(secured),
	}, {
		name: "disk full", config: "file: {path: " + full.dir + "/out.jsonl}",
		faults: []func(){full.fill, func() {}}, heal: full.free,
		stored: func() map[string]int { return sinktest.UIDs(t, full.dir+"/out.jsonl") },
	}}
}

// disk is a file system of its own.
type disk struct {
	t   *testing.T
	dir string
}

func newDisk(t *testing.T, dir string, size int) *disk {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("stated-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return &disk{t, dir}
}

// fill leaves no room.
func (d *disk) fill() {
	f, err := os.Create(d.dir + "/ballast")
	if err != nil {
		d.t.Error(err)
		return
	}
	defer f.Close()
	for some := make([]byte, 1<<20); len(some) > 0; {
		if _, err := f.Write(some); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				d.t.Error(err)
			}
			some = some[:len(some)/2]
		}
	}
}

func (d *disk) free() {
	if err := os.Remove(d.dir + "/ballast"); err != nil {
		d.t.Error(err)
	}
}
