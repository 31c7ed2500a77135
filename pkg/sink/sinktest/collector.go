// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"
)

// Store is what a collector has kept: records by their uid. It is safe for
// concurrent use.
type Store struct {
	mu      sync.Mutex
	records map[string][]byte
	twice   int
	changed chan struct{} // closed and replaced at each Add
}

// NewStore is empty.
func NewStore() *Store { return &Store{records: map[string][]byte{}, changed: make(chan struct{})} }

// Add keeps a record. line is it as a flat JSON object again, nil where the
// protocol does not carry all of it.
func (s *Store) Add(uid string, line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.records[uid]; ok {
		s.twice++
	}
	s.records[uid] = append([]byte(nil), line...)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Get returns a record and whether there is one.
func (s *Store) Get(uid string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, ok := s.records[uid]
	return line, ok
}

// Len is how many different records there are, and how many came once more.
func (s *Store) Len() (records, duplicates int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records), s.twice
}

func (s *Store) change() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Collector serves a protocol on a loopback port that it keeps over restarts.
type Collector struct {
	Address string
	Store   *Store

	serve    func(net.Listener, *Store)
	secure   *tls.Config
	listener *tracked
	done     chan struct{}
}

// StartCollector runs serve, which returns when its listener is closed, until
// the test ends.
func StartCollector(t testing.TB, secure *tls.Config, serve func(net.Listener, *Store)) *Collector {
	t.Helper()
	c := &Collector{Address: "127.0.0.1:0", Store: NewStore(), serve: serve, secure: secure}
	c.Start(t)
	t.Cleanup(c.Kill)
	return c
}

// Start listens again after Kill.
func (c *Collector) Start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", c.Address)
	if err != nil {
		t.Fatal(err)
	}
	c.Address = l.Addr().String()
	c.listener = &tracked{Listener: l, conns: map[net.Conn]bool{}}
	var served net.Listener = c.listener
	if c.secure != nil {
		served = tls.NewListener(served, c.secure)
	}
	c.done = make(chan struct{})
	go func(done chan struct{}) {
		c.serve(served, c.Store)
		close(done)
	}(c.done)
}

// Kill resets all connections and closes the port, as the end of a process does.
func (c *Collector) Kill() {
	if c.listener == nil {
		return
	}
	c.listener.kill()
	<-c.done
	c.listener = nil
}

type tracked struct {
	net.Listener
	mu     sync.Mutex
	conns  map[net.Conn]bool
	killed bool
}

func (l *tracked) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.killed {
		c.Close()
		return nil, net.ErrClosed
	}
	l.conns[c] = true
	return c, nil
}

func (l *tracked) kill() {
	l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.killed = true
	for c := range l.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// Each serves every connection of l with one function, until l is closed.
func Each(l net.Listener, serve func(net.Conn)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		wg.Go(func() {
			defer c.Close()
			serve(c)
		})
	}
}
