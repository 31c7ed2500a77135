// SPDX-License-Identifier: Apache-2.0

package syslog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

func opener(network string, more func(*Config)) func(string, *transport.TLS) (sink.Sink, error) {
	return func(address string, secure *transport.TLS) (sink.Sink, error) {
		cfg := Config{Network: network, Address: address, TLS: secure}
		if secure != nil {
			cfg.Network = map[string]string{"tcp": "tls", "relp": "relp+tls"}[network]
		}
		if more != nil {
			more(&cfg)
		}
		return New(cfg)
	}
}

func TestECSHost(t *testing.T) {
	e, err := newEncoder(Config{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.append(nil, &sink.Record{Event: "tcp.leak", Line: []byte(`{"host":{"id":"4c1e","name":"web 1"}}`)})
	if words := strings.Fields(string(b)); err != nil || words[2] != "web_1" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestTCP(t *testing.T) {
	sinktest.TestProtocol(t, sinktest.Protocol{Open: opener("tcp", nil), Serve: serveOctets})
}

func TestRELP(t *testing.T) {
	sinktest.TestProtocol(t, sinktest.Protocol{Open: opener("relp", nil), Serve: serveRELP, Acked: true})
}

func TestRELPSmallWindow(t *testing.T) {
	sinktest.TestProtocol(t, sinktest.Protocol{
		Open: opener("relp", func(c *Config) { c.Window = 1 }), Serve: serveRELP, Acked: true,
	})
}

// TestRELPNumbers passes the end of the transaction numbers.
func TestRELPNumbers(t *testing.T) {
	c := sinktest.StartCollector(t, nil, serveRELP)
	s, err := New(Config{Network: "relp", Address: c.Address})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := sinktest.Send(t.Context(), s, sinktest.Records(1)); err != nil {
		t.Fatal(err)
	}
	r := s.wire.(*relp)
	r.next = maxTxnr
	if got := string(r.frame(nil, "syslog", []byte("x"))); got != "999999999 syslog 1 x\n" || r.next != 1 {
		t.Errorf("%q, then %d", got, r.next)
	}
}

// TestRELPResendsTheRest: what was answered before the connection broke is not
// sent again, not even by the next Send.
func TestRELPResendsTheRest(t *testing.T) {
	c := sinktest.StartCollector(t, nil, serveRELP)
	proxy := sinktest.StartProxy(t, c.Address)
	s, err := New(Config{Network: "relp", Address: proxy.Address, Window: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sinktest.Insist(t, s, sinktest.Records(1))
	proxy.Set(sinktest.Fault{CutAnswered: 600})
	batch := sinktest.Records(400)
	for ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second); ; {
		defer cancel()
		if err := sinktest.Send(ctx, s, batch); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	sinktest.Kept(t, c.Store, batch, true)
	n, twice := c.Store.Len()
	if twice > 20*20 || n != 401 { // at most a window for each of about 15 connections
		t.Errorf("%d records, %d of them twice", n, twice)
	}
}

func TestUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := New(Config{Network: "udp", Address: conn.LocalAddr().String(), MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	testDatagrams(t, s, conn)
}

func TestUnixDatagrams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	listen := func() *net.UnixConn {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		conn.SetReadBuffer(1 << 20)
		return conn
	}
	conn := listen()
	s, err := New(Config{Network: "unixgram", Address: path, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	testDatagrams(t, s, conn)
	conn.Close()
	os.Remove(path)
	if sinktest.Send(t.Context(), s, sinktest.Records(1)) == nil {
		t.Error("nobody listens, and nobody says so")
	}
	conn = listen()
	defer conn.Close()
	testDatagrams(t, s, conn)
}

func testDatagrams(t *testing.T, s *Sink, conn net.PacketConn) {
	t.Helper()
	batch := sinktest.Records(10)
	batch[4] = sinktest.Long(900_000)
	err := sinktest.Send(t.Context(), s, batch)
	var rejected *sink.Rejected
	if !errors.As(err, &rejected) || len(rejected.Indexes) != 1 || rejected.Indexes[0] != 4 {
		t.Fatalf("what fits no datagram: %v", err)
	}
	buf := make([]byte, 1<<16)
	for i, r := range batch {
		if i == 4 {
			continue
		}
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		p, err := parse(string(buf[:n]))
		if err != nil {
			t.Fatal(err)
		}
		if p.params["uid"] != r.UID {
			t.Errorf("%s came, want %s", p.params["uid"], r.UID)
		}
	}
}

func TestUnixStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	store, done := sinktest.NewStore(), make(chan struct{})
	go func() { serveOctets(l, store); close(done) }()
	s, err := New(Config{Network: "unix", Address: path})
	if err != nil {
		t.Fatal(err)
	}
	batch := sinktest.Records(500)
	if err := sinktest.Send(t.Context(), s, batch); err != nil {
		t.Fatal(err)
	}
	sinktest.Kept(t, store, batch, false)
	s.Close()
	l.Close()
	<-done
}

// TestTCPHole: a collector that reads nothing holds Send up no longer than its
// context, and not one byte counts as sent that its kernel has not taken.
func TestTCPHole(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // never accepts
	s, err := New(Config{Network: "tcp", Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Records(10_000) // more than buffers of both kernels hold
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := sinktest.Send(ctx, s, batch); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("want the deadline, got %v", err)
	}
}

func TestMessage(t *testing.T) {
	enc, err := newEncoder(Config{Facility: "local0", AppName: "agent"})
	if err != nil {
		t.Fatal(err)
	}
	r := sink.Record{
		Line:  []byte(`{"host.name":"web 1\u00e9",` + "\n" + `"message":"a\nb"}`),
		Event: "tcp.leak", Time: 1_795_000_000_123_456_789, Severity: 13, UID: `a"]\b`,
	}
	b, err := enc.append([]byte("before"), &r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := parse(string(b[len("before"):]))
	if err != nil {
		t.Fatal(err)
	}
	if p.priority != 16*8+4 || p.host != "web_1__" || p.app != "agent" || p.msgid != "tcp.leak" || p.time.UnixNano() != 1_795_000_000_123_456_000 ||
		p.params["t_ns"] != "1795000000123456789" || p.params["uid"] != r.UID || p.id != "stated@32473" {
		t.Errorf("%+v", p)
	}
	if err := sinktest.SameRecord([]byte(p.text), r.Line); err != nil || strings.Contains(p.text, "\n") {
		t.Errorf("%v: %q", err, p.text)
	}
}

func TestStructured(t *testing.T) {
	enc, err := newEncoder(Config{Format: "structured", StructuredDataID: "tcp@1.2"})
	if err != nil {
		t.Fatal(err)
	}
	r := sink.Record{Event: "tcp.connection", Line: []byte(`{"a":"q\"]\\\u001b[31m","stated.connection.incomplete_reason":"x","n":-1.5,"list":[{"b":"]"}],` +
		`"abcdefghijklmnopqrstuvwxyz0123456789":true,"message":"line\nbreak"}`)}
	b, err := enc.append(nil, &r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := parse(string(b))
	if err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	want := map[string]string{
		"a": `q"]\` + `\x1b[31m`, "connection.incomplete_reason": "x", "n": "-1.5", "list": `[{"b":"]"}]`,
		"abcdefghijklmnopqrstuvwxyz012345": "true", "t_ns": "0",
	}
	if fmt.Sprint(p.params) != fmt.Sprint(want) || p.text != `line\x0abreak` || p.id != "tcp@1.2" || p.host != "-" {
		t.Errorf("%+v\nwant %v", p, want)
	}
}

func TestRejects(t *testing.T) {
	c := sinktest.StartCollector(t, nil, serveRELP)
	s, err := New(Config{Network: "relp", Address: c.Address})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Records(5)
	batch[1] = sinktest.Long(9000)
	batch[3].Line = []byte(`{"torn":"reco`)
	var rejected *sink.Rejected
	if err := sinktest.Send(t.Context(), s, batch); !errors.As(err, &rejected) || fmt.Sprint(rejected.Indexes) != "[1 3]" {
		t.Fatalf("got %v", err)
	}
	sinktest.Kept(t, c.Store, []sink.Record{batch[0], batch[2], batch[4]}, true)
	if n, _ := c.Store.Len(); n != 3 {
		t.Errorf("%d records are kept, want 3", n)
	}
}

func TestConfig(t *testing.T) {
	for _, cfg := range []Config{
		{}, {Network: "sctp", Address: "a:1"}, {Network: "tcp"}, {Network: "tcp", Address: "host"}, {Network: "tcp", Address: ":1"},
		{Network: "tcp", Address: "a:1", TLS: &transport.TLS{}}, {Network: "tcp", Address: "a:1", Window: 5}, {Network: "relp", Address: "a:1", Window: -1},
		{Network: "unix", Address: "log"}, {Network: "tcp", Address: "a:1", Facility: "x"}, {Network: "tcp", Address: "a:1", AppName: "a b"},
		{Network: "tcp", Address: "a:1", Format: "xml"}, {Network: "tcp", Address: "a:1", MaxBytes: 10}, {Network: "tcp", Address: "a:1", StructuredDataID: "x"},
		{Network: "tcp", Address: "a:1", StructuredDataID: "x@y"}, {Network: "tcp", Address: "a:1", StructuredDataID: strings.Repeat("x", 32) + "@1"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
	if s, err := New(Config{Network: "unixgram"}); err != nil || s.wire.(*datagrams).dialer.Address != "/dev/log" {
		t.Errorf("a unix socket without a path: %v", err)
	}
}

// FuzzMessage: whatever the record, the message parses, is one line, and no
// longer than it may be.
func FuzzMessage(f *testing.F) {
	for _, r := range sinktest.Records(4) {
		f.Add(r.Line, r.Event, r.UID, r.Time, true)
	}
	f.Fuzz(func(t *testing.T, line []byte, event, uid string, at int64, structured bool) {
		cfg := Config{}
		if structured {
			cfg.Format = "structured"
		}
		enc, err := newEncoder(cfg)
		if err != nil {
			t.Fatal(err)
		}
		b, err := enc.append(nil, &sink.Record{Line: line, Event: event, UID: uid, Time: at})
		if err != nil {
			return
		}
		if _, err := parse(string(b)); err != nil {
			t.Fatalf("%v: %q", err, b)
		}
		if len(b) > 8096 || bytes.ContainsAny(b, "\n\x00") {
			t.Errorf("%q", b)
		}
	})
}

// FuzzAnswer: no answer of a collector crashes the client.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("1 rsp 92 200 OK\nrelp_version=0\ncommands=syslog"))
	f.Add([]byte("1 rsp 0\n0 serverclose 0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		go func() { theirs.Write(b); theirs.Close() }()
		r := &relp{in: bufio.NewReader(ours)}
		for {
			if _, _, err := r.answer(); err != nil {
				break
			}
		}
		ours.Close()
	})
}

func BenchmarkMessage(b *testing.B) {
	enc, _ := newEncoder(Config{})
	r := sinktest.Records(2)[0]
	buf := make([]byte, 0, 1<<13)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = enc.append(buf[:0], &r); err != nil {
			b.Fatal(err)
		}
	}
}
