// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// maxClients bounds the connections at a time: on a loopback address they are
// of whoever has an account here, and each costs memory and a descriptor. The
// next ones wait until one of these ends, which takes no longer than patience
// when it asks nothing.
const (
	maxClients = 32
	patience   = 5 * time.Second
)

// Serve answers /metrics, /healthz and /readyz on a loopback address or, when
// address is a path, on a unix socket, until the returned function is called.
// alive and ready return why not.
func Serve(address string, m *Metrics, alive, ready func() error) (stop func() error, err error) {
	l, err := listen(address)
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, EnableOpenMetrics: true}))
	mux.HandleFunc("GET /healthz", answer(alive))
	mux.HandleFunc("GET /readyz", answer(ready))
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: patience, ReadTimeout: patience, IdleTimeout: patience, WriteTimeout: 30 * time.Second,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(&sparse{to: os.Stderr, every: time.Minute}, "metrics: ", log.LstdFlags),
	}
	go s.Serve(netutil.LimitListener(l, maxClients)) // ends by Close
	return s.Close, nil
}

// sparse passes on one write in a time, and drops the others: what net/http
// complains of is what clients do, as often as they like.
type sparse struct {
	to    io.Writer
	every time.Duration

	mu   sync.Mutex // guards last
	last time.Time
}

func (s *sparse) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && time.Since(s.last) < s.every {
		return len(p), nil
	}
	s.last = time.Now()
	return s.to.Write(p)
}

func answer(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok") // a client that is gone hears nothing
	}
}

// CheckAddress refuses what others than this host could reach: there is no
// authentication.
func CheckAddress(address string) error {
	if strings.HasPrefix(address, "/") {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().IsLoopback() {
		return fmt.Errorf("listen on %q: want a loopback address and port like 127.0.0.1:9465, or the path of a unix socket: there is no authentication", address)
	}
	return nil
}

func listen(address string) (net.Listener, error) {
	if err := CheckAddress(address); err != nil {
		return nil, err
	}
	if strings.HasPrefix(address, "/") {
		if c, err := net.Dial("unix", address); err == nil {
			c.Close()
			return nil, fmt.Errorf("%s is in use", address)
		}
		if st, err := os.Lstat(address); err == nil && st.Mode()&os.ModeSocket != 0 {
			os.Remove(address) // left behind by a run that was killed
		}
		l, err := net.Listen("unix", address)
		if err != nil {
			return nil, err
		}
		return l, os.Chmod(address, 0o660)
	}
	return net.Listen("tcp", address)
}
