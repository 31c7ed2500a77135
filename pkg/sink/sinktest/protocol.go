// SPDX-License-Identifier: Apache-2.0

// Package sinktest holds sinks to their contract: what a protocol's collector
// was seen to do in production, done on purpose on loopback.
package sinktest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// Protocol is what TestProtocol needs to know of a sink over TCP.
type Protocol struct {
	// Open makes a sink that sends to address, host:port; with TLS unless
	// secure is nil.
	Open func(address string, secure *transport.TLS) (sink.Sink, error)
	// Serve is the collector's side. It keeps each record before it
	// acknowledges it, and returns when the listener is closed and its
	// connections have ended.
	Serve func(net.Listener, *Store)
	// Acked: the protocol acknowledges records, so that nil from Send means
	// that they are kept.
	Acked bool
	// NoTLS: the protocol has none.
	NoTLS bool
}

// patience is how long a test waits for what must come; nothing waits it out
// but a failure.
const patience = 20 * time.Second

// TestProtocol runs the whole suite.
func TestProtocol(t *testing.T, p Protocol) {
	for _, test := range []struct {
		name  string
		run   func(*testing.T, Protocol)
		acked bool // only where there are acknowledgements
	}{
		{"delivers", testDelivers, false},
		{"refused", testRefused, false},
		{"restart", testRestart, false},
		{"killed", testKilled, true},
		{"faults", testFaults, true},
		{"cancelled", testCancelled, true},
		{"close", testClose, false},
		{"tls", testTLS, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			switch {
			case test.acked && !p.Acked:
				t.Skip("the protocol has no acknowledgement")
			case test.name == "tls" && p.NoTLS:
				t.Skip("the protocol has no TLS")
			}
			WatchLeaks(t)
			test.run(t, p)
		})
	}
}

// WatchLeaks fails the test if, after the cleanups that it registers from now
// on, more goroutines or files are there than now.
func WatchLeaks(t *testing.T) {
	goroutines, files := runtime.NumGoroutine(), openFiles()
	t.Cleanup(func() {
		ok := func() bool { return runtime.NumGoroutine() <= goroutines && openFiles() <= files }
		for end := time.Now().Add(patience); !ok() && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		if !ok() {
			buf := make([]byte, 1<<20)
			t.Errorf("left behind: %d goroutines (%d before), %d files (%d before)\n%s",
				runtime.NumGoroutine(), goroutines, openFiles(), files, buf[:runtime.Stack(buf, true)])
		}
	})
}

func openFiles() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

func (p Protocol) open(t *testing.T, address string, secure *transport.TLS) sink.Sink {
	t.Helper()
	s, err := p.Open(address, secure)
	if err != nil {
		t.Fatalf("open the sink: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Send sends a copy of the batch and spoils it afterwards: a sink may not keep
// lines.
func Send(ctx context.Context, s sink.Sink, batch []sink.Record) error {
	own := make([]sink.Record, len(batch))
	for i, r := range batch {
		own[i] = r
		own[i].Line = append([]byte(nil), r.Line...)
	}
	err := s.Send(ctx, own)
	for i := range own {
		for j := range own[i].Line {
			own[i].Line[j] = '!'
		}
		own[i] = sink.Record{}
	}
	return err
}

// Insist sends until the sink takes the batch; each error must be temporary.
func Insist(t *testing.T, s sink.Sink, batch []sink.Record) (attempts int) {
	t.Helper()
	end := time.Now().Add(patience)
	for wait := time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err := Send(ctx, s, batch)
		cancel()
		attempts++
		if err == nil {
			return attempts
		}
		temporary(t, err)
		if time.Now().After(end) {
			t.Fatalf("not taken within %v, lastly: %v", patience, err)
		}
		time.Sleep(wait)
	}
}

func temporary(t *testing.T, err error) {
	t.Helper()
	var rejected *sink.Rejected
	var large *sink.TooLarge
	if err == nil || errors.As(err, &rejected) || errors.As(err, &large) {
		t.Fatalf("want a temporary error, got %T: %v", err, err)
	}
}

// Kept waits for all of batch to be in the store, and compares their content.
// A protocol with acknowledgements is given no time.
func Kept(t *testing.T, store *Store, batch []sink.Record, acked bool) {
	t.Helper()
	timeout := time.After(patience)
	for _, r := range batch {
		for {
			change := store.change()
			line, ok := store.Get(r.UID)
			if ok {
				if err := SameRecord(line, r.Line); line != nil && err != nil {
					t.Fatalf("record %s: %v", r.UID, err)
				}
				break
			}
			if acked {
				t.Fatalf("record %s was acknowledged and is not kept", r.UID)
			}
			select {
			case <-change:
			case <-timeout:
				n, _ := store.Len()
				t.Fatalf("record %s never came; %d did", r.UID, n)
			}
		}
	}
}

// SameRecord compares two JSON objects by their content.
func SameRecord(got, want []byte) error {
	var g, w map[string]any
	if err := json.Unmarshal(got, &g); err != nil {
		return fmt.Errorf("the collector has no JSON: %w: %s", err, got)
	}
	if err := json.Unmarshal(want, &w); err != nil {
		return err
	}
	for k, v := range w {
		if !reflect.DeepEqual(g[k], v) {
			return fmt.Errorf("%s is %v, want %v", k, g[k], v)
		}
	}
	for k, v := range g {
		if _, ok := w[k]; !ok {
			return fmt.Errorf("%s is %v and was not sent", k, v)
		}
	}
	return nil
}

func testDelivers(t *testing.T, p Protocol) {
	c := StartCollector(t, nil, p.Serve)
	s := p.open(t, c.Address, nil)
	if err := s.Send(t.Context(), nil); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
	for _, n := range []int{1, 3, 1000, 1} {
		batch := Records(n)
		if err := Send(t.Context(), s, batch); err != nil {
			t.Fatalf("a batch of %d: %v", n, err)
		}
		Kept(t, c.Store, batch, p.Acked)
	}
	odd := []sink.Record{Odd()}
	if err := Send(t.Context(), s, odd); err != nil {
		t.Fatalf("a record of odd shape: %v", err)
	}
	Kept(t, c.Store, odd, p.Acked)
	if _, twice := c.Store.Len(); twice > 0 {
		t.Errorf("%d came twice without need", twice)
	}
}

func testRefused(t *testing.T, p Protocol) {
	c := StartCollector(t, nil, p.Serve)
	c.Kill()
	s := p.open(t, c.Address, nil) // a collector that is down is no error of the configuration
	batch := Records(10)
	temporary(t, Send(t.Context(), s, batch))
	c.Start(t)
	Insist(t, s, batch)
	Kept(t, c.Store, batch, p.Acked)
}

func testRestart(t *testing.T, p Protocol) {
	c := StartCollector(t, nil, p.Serve)
	s := p.open(t, c.Address, nil)
	for range 5 {
		batch := Records(20)
		Insist(t, s, batch)
		Kept(t, c.Store, batch, p.Acked)
		c.Kill()
		c.Start(t)
	}
}

// testKilled cuts the connection at many places of a conversation, before and
// after acknowledgements.
func testKilled(t *testing.T, p Protocol) {
	c := StartCollector(t, nil, p.Serve)
	proxy := StartProxy(t, c.Address)
	s := p.open(t, proxy.Address, nil)
	batch := Records(300)
	Insist(t, s, batch)
	answered := proxy.Answered()
	var all []sink.Record
	for i := range 24 {
		f := Fault{CutSent: 1 + i*i*i*6}
		if i%2 == 1 {
			f = Fault{CutAnswered: 1 + answered*i/24}
		}
		proxy.Set(f)
		batch := Records(300)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := Send(ctx, s, batch)
		cancel()
		if err != nil {
			temporary(t, err)
			proxy.Set(Fault{})
			Insist(t, s, batch)
		}
		all = append(all, batch...)
	}
	Kept(t, c.Store, all, true)
	_, twice := c.Store.Len()
	t.Logf("%d records, %d of them twice", len(all), twice)
}

func testFaults(t *testing.T, p Protocol) {
	c := StartCollector(t, nil, p.Serve)
	proxy := StartProxy(t, c.Address)
	s := p.open(t, proxy.Address, nil)
	first := Records(5)
	Insist(t, s, first)
	half := proxy.Answered() / 2
	for _, f := range []Fault{
		{Name: "black hole", Hole: true},
		{Name: "garbage", Garbage: []byte("\x00\xff\x81 \x9f garbage\r\n\r\n 200 OK\n")},
		{Name: "text", Garbage: []byte("220 mail.example ESMTP\r\n")},
		{Name: "zeros", Garbage: make([]byte, 64)},
		{Name: "half an answer", CutAnswered: half},
		{Name: "one byte at a time", Drip: 60 * time.Millisecond},
	} {
		proxy.Set(f)
		batch := Records(50)
		// The first error may be the end of the connection from before.
		for timedOut := false; !timedOut; {
			err := within(t, s, batch, 250*time.Millisecond)
			if err == nil {
				Kept(t, c.Store, batch, true) // an answer may be shorter than one thinks
				t.Errorf("%s: no error", f.Name)
				break
			}
			temporary(t, err)
			timedOut = !f.Hole && f.Drip == 0 || errors.Is(err, context.DeadlineExceeded)
		}
		proxy.Set(Fault{})
		Insist(t, s, batch)
		Kept(t, c.Store, batch, true)
	}
}

// within sends with a deadline, which Send must keep.
func within(t *testing.T, s sink.Sink, batch []sink.Record, limit time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	returned := make(chan error, 1)
	go func() { returned <- Send(ctx, s, batch) }()
	select {
	case err := <-returned:
		return err
	case <-time.After(patience):
		t.Fatal("Send does not end with its context")
		return nil
	}
}

func testCancelled(t *testing.T, p Protocol) {
	c := StartCollector(t, nil, p.Serve)
	proxy := StartProxy(t, c.Address)
	proxy.Set(Fault{Hole: true})
	s := p.open(t, proxy.Address, nil)
	ctx, cancel := context.WithCancel(t.Context())
	returned := make(chan error, 1)
	go func() { returned <- Send(ctx, s, Records(5)) }()
	cancel()
	select {
	case err := <-returned:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the error does not say that it was cancelled: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Send does not end with its context")
	}
}

func testClose(t *testing.T, p Protocol) {
	c := StartCollector(t, nil, p.Serve)
	s := p.open(t, c.Address, nil)
	Insist(t, s, Records(1))
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	if Send(t.Context(), s, Records(1)) == nil {
		t.Error("a closed sink takes records")
	}
}

func testTLS(t *testing.T, p Protocol) {
	good, other := NewAuthority(t), NewAuthority(t)
	c := StartCollector(t, good.Server(t, time.Now().Add(time.Hour)), p.Serve)
	client := good.Client(t)
	s := p.open(t, c.Address, client)
	batch := Records(100)
	if err := Send(t.Context(), s, batch); err != nil {
		t.Fatal(err)
	}
	Kept(t, c.Store, batch, p.Acked)

	expired := StartCollector(t, good.Server(t, time.Now().Add(-time.Minute)), p.Serve)
	for _, bad := range []struct {
		name, address string
		secure        transport.TLS
	}{
		{"expired", expired.Address, *client},
		{"another authority", c.Address, transport.TLS{CAFile: other.CAFile, CertFile: client.CertFile, KeyFile: client.KeyFile, ServerName: "stated.test"}},
		{"another name", c.Address, transport.TLS{CAFile: client.CAFile, CertFile: client.CertFile, KeyFile: client.KeyFile, ServerName: "other.test"}},
	} {
		s := p.open(t, bad.address, &bad.secure)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := Send(ctx, s, Records(2))
		cancel()
		temporary(t, err)
		t.Logf("%s: %v", bad.name, err)
	}
	if n, _ := expired.Store.Len(); n > 0 {
		t.Errorf("%d records went to a collector with an expired certificate", n)
	}
	if _, err := p.Open(c.Address, &transport.TLS{CAFile: "/nonexistent"}); err == nil {
		t.Error("a missing authority is found only later")
	}
}
