// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Fault is what a Proxy does to connections instead of passing everything on.
type Fault struct {
	Name string
	// Hole passes nothing on and answers nothing.
	Hole bool
	// Garbage is answered to whatever comes, which goes nowhere.
	Garbage []byte
	// Drip passes answers on at one byte per Drip.
	Drip time.Duration
	// CutSent and CutAnswered reset a connection after so many bytes.
	CutSent, CutAnswered int
}

// Proxy stands between a sink and a collector and misbehaves on demand.
type Proxy struct {
	Address string

	target   string
	listener net.Listener
	mu       sync.Mutex
	fault    Fault
	conns    map[net.Conn]bool
	answered int
	wg       sync.WaitGroup
}

// StartProxy passes connections on to target until the test ends.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Address: l.Addr().String(), target: target, listener: l, conns: map[net.Conn]bool{}}
	p.wg.Go(func() { Each(l, p.pass) })
	t.Cleanup(p.Close)
	return p
}

// Close ends it; a second time does nothing.
func (p *Proxy) Close() {
	p.listener.Close()
	p.Set(Fault{})
	p.wg.Wait()
}

// Set resets the connections there are and treats new ones with f.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	for c := range p.conns {
		reset(c)
	}
	clear(p.conns)
}

// Answered is the number of bytes passed back so far.
func (p *Proxy) Answered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answered
}

func reset(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

func (p *Proxy) begin(conns ...net.Conn) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = true
	}
	return p.fault
}

func (p *Proxy) pass(client net.Conn) {
	f := p.begin(client)
	if f.Hole || f.Garbage != nil {
		buf := make([]byte, 4096)
		for {
			if _, err := client.Read(buf); err != nil {
				return
			}
			if f.Garbage != nil {
				client.Write(f.Garbage)
			}
		}
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	defer server.Close()
	p.begin(server)
	var wg sync.WaitGroup
	wg.Go(func() { copyUntil(server, client, f.CutSent, 0); reset(server); reset(client) })
	copyUntil(counting{client, p}, server, f.CutAnswered, f.Drip)
	reset(server)
	reset(client)
	wg.Wait()
}

type counting struct {
	net.Conn
	p *Proxy
}

func (c counting) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.p.mu.Lock()
	c.p.answered += n
	c.p.mu.Unlock()
	return n, err
}

func copyUntil(to io.Writer, from io.Reader, limit int, drip time.Duration) {
	if limit > 0 {
		from = io.LimitReader(from, int64(limit))
	}
	if drip == 0 {
		// Plain reads and writes: splice(2) would keep pipes of its own.
		io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from})
		return
	}
	one := make([]byte, 1)
	for {
		if _, err := from.Read(one); err != nil {
			return
		}
		if _, err := to.Write(one); err != nil {
			return
		}
		time.Sleep(drip)
	}
}
