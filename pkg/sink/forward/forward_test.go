// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// peer is Fluentd's side.
type peer struct {
	key, user, password string // none: no handshake
	auth                bool
	closes              bool // after each message, and says so
	lie                 bool // about knowing the key
	ack                 func(chunk string) any
}

func (p peer) serve(l net.Listener, store *sinktest.Store) {
	sinktest.Each(l, func(c net.Conn) {
		dec := msgpack.NewDecoder(bufio.NewReader(c))
		if p.key != "" && !p.handshake(c, dec) {
			return
		}
		for {
			var m []any
			if dec.Decode(&m) != nil || len(m) != 3 || m[0] != "stated" {
				return
			}
			options := m[2].(map[string]any)
			n, err := keep(m[1].([]byte), options["compressed"] == "gzip", store)
			if size := fmt.Sprint(options["size"]); err != nil || size != fmt.Sprint(n) {
				store.Add(fmt.Sprintf("%v: %d records, size %s", err, n, size), nil)
				return
			}
			var answer any = map[string]string{"ack": options["chunk"].(string)}
			if p.ack != nil {
				answer = p.ack(options["chunk"].(string))
			}
			b, _ := msgpack.Marshal(answer)
			c.Write(b)
			if p.closes {
				return
			}
		}
	})
}

func (p peer) handshake(c net.Conn, dec *msgpack.Decoder) bool {
	auth := ""
	if p.auth {
		auth = "auth-salt"
	}
	send := func(v any) {
		b, _ := msgpack.Marshal(v)
		c.Write(b)
	}
	send([]any{"HELO", map[string]any{"nonce": []byte("nonce\x00\xff"), "auth": []byte(auth), "keepalive": !p.closes}})
	var ping []any
	if dec.Decode(&ping) != nil || len(ping) != 6 || ping[0] != "PING" {
		return false
	}
	salt := string(ping[2].([]byte))
	reason := ""
	if ping[3] != digest(salt, ping[1].(string), "nonce\x00\xff", p.key) {
		reason = "shared_key mismatch"
	}
	if p.auth && (ping[4] != p.user || ping[5] != digest(auth, p.user, p.password)) {
		reason = "username/password mismatch"
	}
	proof := digest(salt, "fluentd", "nonce\x00\xff", p.key)
	if p.lie {
		proof = ping[3].(string)
	}
	send([]any{"PONG", reason == "", reason, "fluentd", proof})
	return reason == ""
}

// keep decodes the entries, and keeps them as flat objects.
func keep(entries []byte, packed bool, store *sinktest.Store) (n int, err error) {
	if packed {
		z, err := gzip.NewReader(bytes.NewReader(entries))
		if err != nil {
			return 0, err
		}
		if entries, err = io.ReadAll(z); err != nil {
			return 0, err
		}
	}
	in := bytes.NewReader(entries)
	for dec := msgpack.NewDecoder(in); ; n++ {
		if _, err := dec.PeekCode(); err != nil {
			return n, nil
		}
		if k, err := dec.DecodeArrayLen(); err != nil || k != 2 {
			return n, fmt.Errorf("an entry of %d: %w", k, err)
		}
		id, size, err := dec.DecodeExtHeader()
		if err != nil || id != 0 || size != 8 {
			return n, fmt.Errorf("no EventTime: %d, %d, %w", id, size, err)
		}
		var at [8]byte
		if err := dec.ReadFull(at[:]); err != nil {
			return n, err
		}
		var m map[string]any
		if err := dec.Decode(&m); err != nil {
			return n, err
		}
		line, err := json.Marshal(m)
		if err != nil {
			return n, err
		}
		stamp := time.Unix(int64(binary.BigEndian.Uint32(at[:])), int64(binary.BigEndian.Uint32(at[4:]))).UTC()
		if got := stamp.Format("2006-01-02T15:04:05.000000000Z"); got != m["timestamp"] {
			return n, fmt.Errorf("time %s, want %s", got, m["timestamp"])
		}
		store.Add(m["log.record.uid"].(string), line)
	}
}

func opener(more func(*Config)) func(string, *transport.TLS) (sink.Sink, error) {
	return func(address string, secure *transport.TLS) (sink.Sink, error) {
		cfg := Config{Address: address, TLS: secure, Hostname: "agent"}
		if secure != nil {
			cfg.Network = "tls"
		}
		if more != nil {
			more(&cfg)
		}
		return New(cfg)
	}
}

func secret(t *testing.T, text string) transport.Secret {
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return transport.Secret(path)
}

func TestForward(t *testing.T) {
	sinktest.TestProtocol(t, sinktest.Protocol{Open: opener(nil), Serve: peer{}.serve, Acked: true})
}

func TestForwardSharedKey(t *testing.T) {
	key, password := secret(t, "key\n"), secret(t, "password")
	sinktest.TestProtocol(t, sinktest.Protocol{
		Open: opener(func(c *Config) {
			c.SharedKeyFile, c.User, c.PasswordFile, c.Compression = key, "u", password, "none"
		}),
		Serve: peer{key: "key", auth: true, user: "u", password: "password"}.serve, Acked: true,
	})
}

func TestForwardWithoutKeepalive(t *testing.T) {
	key := secret(t, "key")
	sinktest.TestProtocol(t, sinktest.Protocol{
		Open: opener(func(c *Config) { c.SharedKeyFile = key }), Serve: peer{key: "key", closes: true}.serve, Acked: true,
	})
}

func TestRefusals(t *testing.T) {
	key, other := secret(t, "key"), secret(t, "other")
	for _, test := range []struct {
		name string
		peer peer
		cfg  Config
		want string
	}{
		{"another key", peer{key: "key"}, Config{SharedKeyFile: other}, "shared_key mismatch"},
		{"a wrong password", peer{key: "key", auth: true, user: "u", password: "p"}, Config{SharedKeyFile: key, User: "u", PasswordFile: other}, "username/password mismatch"},
		{"no user", peer{key: "key", auth: true}, Config{SharedKeyFile: key}, "wants a user"},
		{"no key", peer{key: "key"}, Config{}, "set shared_key_file"},
		{"a liar", peer{key: "key", lie: true}, Config{SharedKeyFile: key}, "does not prove"},
		{"our name", peer{key: "key"}, Config{SharedKeyFile: key, Hostname: "fluentd"}, "as we do"},
		{"another ack", peer{ack: func(string) any { return map[string]string{"ack": "x"} }}, Config{}, "where the acknowledgement"},
		{"no ack", peer{ack: func(string) any { return nil }}, Config{}, "where the acknowledgement"},
		{"a large answer", peer{ack: func(string) any { return strings.Repeat("x", 1<<20) }}, Config{}, "more than 64 KiB"},
		{"a deep answer", peer{ack: func(string) any { return []any{[]any{[]any{[]any{[]any{[]any{}}}}}} }}, Config{}, "nested too deep"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := sinktest.StartCollector(t, nil, test.peer.serve)
			test.cfg.Address = c.Address
			if test.cfg.Hostname == "" {
				test.cfg.Hostname = "agent"
			}
			s, err := New(test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err = sinktest.Send(ctx, s, sinktest.Records(3))
			if err == nil || !strings.Contains(err.Error(), test.want) || ctx.Err() != nil {
				t.Errorf("%v, want %q in it", err, test.want)
			}
		})
	}
}

func TestRejects(t *testing.T) {
	c := sinktest.StartCollector(t, nil, peer{}.serve)
	s, err := New(Config{Address: c.Address})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Records(4)
	batch[0].Line = []byte(`{"torn":[`)
	batch[2].Line = []byte("{\"a\":\"\xff\"}")
	var rejected *sink.Rejected
	if err := sinktest.Send(t.Context(), s, batch); !errors.As(err, &rejected) || fmt.Sprint(rejected.Indexes) != "[0 2]" {
		t.Fatalf("got %v", err)
	}
	sinktest.Kept(t, c.Store, []sink.Record{batch[1], batch[3]}, true)
}

func TestConfig(t *testing.T) {
	key := secret(t, "key")
	for _, cfg := range []Config{
		{}, {Address: "h"}, {Address: "h:1", Network: "udp"}, {Address: "h:1", TLS: &transport.TLS{}}, {Address: "h:1", User: "u"},
		{Address: "h:1", User: "u", PasswordFile: key}, {Address: "h:1", Compression: "zstd"}, {Address: "h:1", SharedKeyFile: "/nonexistent"},
		{Address: "h:1", SharedKeyFile: secret(t, " \n")},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}

// TestMessagePack: numbers and strings of every length are what another
// library reads.
func TestMessagePack(t *testing.T) {
	var b []byte
	var want []any
	for _, v := range []int64{0, 1, 127, 128, -1, -32, -33, 1 << 31, -1 << 31, 1<<31 - 1, -1 << 63, 1<<63 - 1} {
		b, want = appendInt(b, v), append(want, v)
	}
	for _, n := range []int{0, 31, 32, 255, 256, 65535, 65536} {
		s := strings.Repeat("x", n)
		b, want = appendString(b, []byte(s)), append(want, s)
	}
	dec := msgpack.NewDecoder(bytes.NewReader(b))
	for _, w := range want {
		got, err := dec.DecodeInterfaceLoose()
		if err != nil || got != w {
			t.Fatalf("%v, %v, want %.80v", got, err, w)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x81\xa3ack\xa1x"))
	f.Add([]byte("\x92\xa4HELO\x82\xa5nonce\xc4\x01x\xa9keepalive\xc3"))
	f.Fuzz(func(t *testing.T, b []byte) {
		newReader(bufio.NewReader(bytes.NewReader(b))).value(0)
	})
}

func FuzzEntry(f *testing.F) {
	for _, r := range sinktest.Records(4) {
		f.Add(r.Line)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var s Sink
		b, err := s.appendEntry(nil, &sink.Record{Line: line})
		if err != nil {
			if len(b) > 0 {
				t.Error("half an entry is left")
			}
			return
		}
		dec := msgpack.NewDecoder(bytes.NewReader(b[11:]))
		if err := dec.Skip(); err != nil {
			t.Errorf("%v: %q", err, line)
		}
		if _, err := dec.PeekCode(); err != io.EOF {
			t.Errorf("more than one value: %q", line)
		}
	})
}

func BenchmarkEntry(b *testing.B) {
	var s Sink
	r := sinktest.Records(2)[0]
	buf := make([]byte, 0, 1<<13)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = s.appendEntry(buf[:0], &r)
	}
}
