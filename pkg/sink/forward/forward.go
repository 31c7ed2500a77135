// SPDX-License-Identifier: Apache-2.0

// Package forward sends records by the Fluent Forward protocol, v1
// (github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1), to
// Fluentd, Fluent Bit, Vector or the OpenTelemetry Collector: one PackedForward
// message a batch, acknowledged by its chunk's name.
package forward

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/google/uuid"
	"github.com/klauspost/compress/gzip"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// Config says where records go.
type Config struct {
	// Network is tcp (the default) or tls.
	Network string `yaml:"network"`
	// Address is host:port; the port is usually 24224.
	Address string `yaml:"address"`
	// TLS is for tls.
	TLS *transport.TLS `yaml:"tls"`
	// Tag is what the collector routes by; stated unless set.
	Tag string `yaml:"tag"`
	// SharedKeyFile holds the key that both sides prove to know. User and
	// PasswordFile may come with it.
	SharedKeyFile transport.Secret `yaml:"shared_key_file"`
	User          string           `yaml:"user"`
	PasswordFile  transport.Secret `yaml:"password_file"`
	// Hostname is said in the handshake; the host's unless set.
	Hostname string `yaml:"hostname"`
	// Compression is gzip (the default) or none.
	Compression string `yaml:"compression"`
}

// Sink is a sink.Sink.
type Sink struct {
	cfg    Config
	dialer *transport.Dialer
	conn   net.Conn
	in     *bufio.Reader
	ready  bool // hands are shaken
	once   bool // the collector wants a connection for each message
	closed bool

	entries []byte
	text    []byte // for unescaping; a longer string is allotted
	packed  bytes.Buffer
	gzip    *gzip.Writer
	message []byte
}

// New checks cfg. It does not connect: a collector may be down.
func New(cfg Config) (*Sink, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	return s, nil
}

func open(cfg Config) (*Sink, error) {
	secure := cfg.TLS
	switch cfg.Network {
	case "", "tcp":
		if secure != nil {
			return nil, errors.New("tls is configured, but network is not tls")
		}
	case "tls":
		if secure == nil {
			secure = &transport.TLS{}
		}
	default:
		return nil, fmt.Errorf("network %q: want tcp or tls", cfg.Network)
	}
	switch {
	case (cfg.User == "") != (cfg.PasswordFile == ""):
		return nil, errors.New("user and password_file belong together: one is missing")
	case cfg.User != "" && cfg.SharedKeyFile == "":
		return nil, errors.New("user wants shared_key_file, too: the protocol has no other handshake")
	}
	for _, s := range []transport.Secret{cfg.SharedKeyFile, cfg.PasswordFile} {
		if s != "" {
			if _, err := s.Read(); err != nil {
				return nil, err
			}
		}
	}
	if cfg.Tag == "" {
		cfg.Tag = "stated"
	}
	if cfg.Hostname == "" {
		var err error
		if cfg.Hostname, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("find the host's name: %w; set hostname", err)
		}
	}
	s := &Sink{cfg: cfg, text: make([]byte, 0, 1<<10)}
	switch cfg.Compression {
	case "", "gzip":
		s.gzip, _ = gzip.NewWriterLevel(&s.packed, gzip.BestSpeed)
	case "none":
	default:
		return nil, fmt.Errorf("compression %q: want gzip or none", cfg.Compression)
	}
	var err error
	s.dialer, err = transport.NewDialer("tcp", cfg.Address, secure)
	return s, err
}

// Send implements sink.Sink.
func (s *Sink) Send(ctx context.Context, batch []sink.Record) error {
	if s.closed {
		return net.ErrClosed
	}
	s.entries = s.entries[:0]
	rejected := &sink.Rejected{}
	for i := range batch {
		var err error
		if s.entries, err = s.appendEntry(s.entries, &batch[i]); err != nil {
			rejected.Indexes, rejected.Err = append(rejected.Indexes, i), fmt.Errorf("forward: %w", err)
		}
	}
	if n := len(batch) - len(rejected.Indexes); n > 0 {
		chunk := s.build(n)
		kept := s.conn != nil
		err := s.attempt(ctx, chunk)
		if err != nil && kept && ctx.Err() == nil { // it may have ended meanwhile
			err = s.attempt(ctx, chunk)
		}
		if err != nil {
			return fmt.Errorf("forward: %w", transport.Cause(ctx, err))
		}
	}
	if len(rejected.Indexes) > 0 {
		return rejected
	}
	return nil
}

// build makes the message [tag, entries, options] of n entries.
func (s *Sink) build(n int) (chunk string) {
	id := uuid.New()
	chunk = base64.StdEncoding.EncodeToString(id[:])
	entries, options := s.entries, 2
	if s.gzip != nil {
		s.packed.Reset()
		s.gzip.Reset(&s.packed)
		s.gzip.Write(s.entries) // to memory: no error
		s.gzip.Close()
		entries, options = s.packed.Bytes(), 3
	}
	m := append(s.message[:0], 0x93)
	m = appendString(m, []byte(s.cfg.Tag))
	m = appendBin(m, entries)
	m = append(m, 0x80|byte(options))
	m = appendInt(appendString(m, []byte("size")), int64(n))
	m = appendString(appendString(m, []byte("chunk")), []byte(chunk))
	if s.gzip != nil {
		m = appendString(appendString(m, []byte("compressed")), []byte("gzip"))
	}
	s.message = m
	return chunk
}

// attempt sends the message and waits for its acknowledgement. The connection
// is dropped after any error: what comes over it next could belong to this one.
func (s *Sink) attempt(ctx context.Context, chunk string) (err error) {
	defer func() {
		if err != nil || s.once {
			s.drop()
		}
	}()
	if s.conn == nil {
		if s.conn, err = s.dialer.Dial(ctx); err != nil {
			s.conn = nil
			return err
		}
		s.in, s.once = bufio.NewReader(s.conn), false
	} else if s.in.Buffered() > 0 {
		return errors.New("the collector speaks without being asked")
	}
	defer transport.Guard(ctx, s.conn.SetDeadline)()
	if !s.ready && s.cfg.SharedKeyFile != "" {
		if err := s.shakeHands(); err != nil {
			return err
		}
	}
	s.ready = true
	if _, err := s.conn.Write(s.message); err != nil {
		return fmt.Errorf("write to %s: %w", s.dialer.Address, err)
	}
	v, err := newReader(s.in).value(0)
	if err != nil {
		return fmt.Errorf("read the acknowledgement: %w", err)
	}
	answer, ok := v.(map[string]any)
	if list, isList := v.([]any); isList && len(list) > 0 && text(list[0]) == "HELO" {
		return errors.New("the collector wants a handshake; set shared_key_file")
	}
	if !ok || text(answer["ack"]) != chunk {
		return fmt.Errorf("the collector answered %.200q where the acknowledgement of %s belongs", fmt.Sprint(v), chunk)
	}
	return nil
}

// shakeHands proves both sides' knowledge of the shared key: HELO, PING, PONG.
func (s *Sink) shakeHands() error {
	key, err := s.cfg.SharedKeyFile.Read()
	if err != nil {
		return err
	}
	v, err := newReader(s.in).value(0)
	if err != nil {
		return fmt.Errorf("read the collector's HELO: %w", err)
	}
	helo, _ := v.([]any)
	if len(helo) != 2 || text(helo[0]) != "HELO" {
		return fmt.Errorf("the collector says %.200q where HELO belongs", fmt.Sprint(v))
	}
	options, _ := helo[1].(map[string]any)
	nonce := text(options["nonce"])
	if keep, ok := options["keepalive"].(bool); ok && !keep {
		s.once = true
	}
	salt := make([]byte, 16)
	rand.Read(salt)
	ping := appendString([]byte{0x96}, []byte("PING"))
	ping = appendString(ping, []byte(s.cfg.Hostname))
	ping = appendBin(ping, salt)
	ping = appendString(ping, []byte(digest(string(salt), s.cfg.Hostname, nonce, key)))
	var proof string
	if auth := text(options["auth"]); auth != "" {
		if s.cfg.User == "" {
			return errors.New("the collector wants a user; set user and password_file")
		}
		password, err := s.cfg.PasswordFile.Read()
		if err != nil {
			return err
		}
		proof = digest(auth, s.cfg.User, password)
	}
	ping = appendString(ping, []byte(s.cfg.User))
	ping = appendString(ping, []byte(proof))
	if _, err := s.conn.Write(ping); err != nil {
		return fmt.Errorf("write PING to %s: %w", s.dialer.Address, err)
	}
	if v, err = newReader(s.in).value(0); err != nil {
		return fmt.Errorf("read the collector's PONG: %w", err)
	}
	pong, _ := v.([]any)
	if len(pong) != 5 || text(pong[0]) != "PONG" {
		return fmt.Errorf("the collector says %.200q where PONG belongs", fmt.Sprint(v))
	}
	if pong[1] != true {
		return fmt.Errorf("the collector refused us: %.200q; check shared_key_file, user and password_file", text(pong[2]))
	}
	if text(pong[3]) == s.cfg.Hostname { // our own proof would then be the collector's
		return fmt.Errorf("the collector calls itself %.100q, as we do; set hostname", s.cfg.Hostname)
	}
	want := digest(string(salt), text(pong[3]), nonce, key)
	if subtle.ConstantTimeCompare([]byte(want), []byte(text(pong[4]))) != 1 {
		return fmt.Errorf("the collector %.100q does not prove that it knows the shared key", text(pong[3]))
	}
	return nil
}

func digest(parts ...string) string {
	h := sha512.New()
	for _, p := range parts {
		h.Write([]byte(p))
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (s *Sink) drop() {
	if s.conn != nil {
		s.conn.Close()
		s.conn, s.ready = nil, false
	}
}

// Close ends the connection. It may be called again.
func (s *Sink) Close() error {
	s.closed = true
	s.drop()
	return nil
}
