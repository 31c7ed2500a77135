// SPDX-License-Identifier: Apache-2.0

// Package syslog sends records as RFC 5424 messages: over UDP, TCP and TLS with
// octet counting (RFC 6587, 3.4.1; RFC 5425), over a unix socket, or over RELP.
//
// Only RELP acknowledges messages. Over TCP a batch counts as sent when the
// collector's kernel has acknowledged it, which its program need not have
// read: what it had not is lost if it is killed. Over UDP anything may be lost.
package syslog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// Config says where messages go and what they look like.
type Config struct {
	// Network is udp, tcp, tls, unix (a stream with octet counting), unixgram,
	// relp or relp+tls.
	Network string `yaml:"network"`
	// Address is host:port, or the path of a unix socket, /dev/log unless set.
	Address string `yaml:"address"`
	// TLS is for tls and relp+tls.
	TLS *transport.TLS `yaml:"tls"`
	// Facility is a name of RFC 5424, table 1, as syslog.conf(5) spells it;
	// daemon unless set.
	Facility string `yaml:"facility"`
	// AppName is stated unless set; up to 48 ASCII characters.
	AppName string `yaml:"app_name"`
	// Format is json (the default): the message is the record; or structured:
	// the record's fields are structured data, and the message is for people.
	Format string `yaml:"format"`
	// StructuredDataID names the structured data. Its number is a private
	// enterprise number; stated has none, and 32473 is the one of RFC 5612 for
	// examples.
	StructuredDataID string `yaml:"structured_data_id"`
	// MaxBytes limits one message; a record that makes a longer one is
	// rejected, because half a record is none. 8096 unless set, which is
	// rsyslog's own default limit; RFC 5424, 6.1, makes collectors take 480.
	MaxBytes int `yaml:"max_bytes"`
	// Window is how many messages may wait for their acknowledgement by RELP;
	// 128 unless set, as in librelp.
	Window int `yaml:"window"`
}

// Sink is a sink.Sink.
type Sink struct {
	enc    encoder
	wire   wire
	batch  messages
	closed bool
}

// A wire carries messages. send returns the indexes of those that do not fit
// it; its error is temporary.
type wire interface {
	send(ctx context.Context, batch *messages) (unfit []int, err error)
	close()
}

// messages are those of a batch, one after the other in text.
type messages struct {
	text []byte
	ends []int    // where each ends
	uids []string // log.record.uid of each
	from []int    // its index in the batch of records
}

func (m *messages) reset() {
	m.text, m.ends, m.uids, m.from = m.text[:0], m.ends[:0], m.uids[:0], m.from[:0]
}

func (m *messages) len() int { return len(m.ends) }

func (m *messages) at(i int) []byte {
	if i == 0 {
		return m.text[:m.ends[0]]
	}
	return m.text[m.ends[i-1]:m.ends[i]]
}

// New checks cfg. It does not connect: a collector may be down.
func New(cfg Config) (*Sink, error) {
	s := &Sink{}
	var err error
	if s.enc, err = newEncoder(cfg); err != nil {
		return nil, fmt.Errorf("syslog: %w", err)
	}
	if s.wire, err = newWire(cfg); err != nil {
		return nil, fmt.Errorf("syslog: %w", err)
	}
	return s, nil
}

var networks = []string{"udp", "tcp", "tls", "unix", "unixgram", "relp", "relp+tls"}

func newWire(cfg Config) (wire, error) {
	if !slices.Contains(networks, cfg.Network) {
		return nil, fmt.Errorf("network %q: want one of %s", cfg.Network, strings.Join(networks, ", "))
	}
	secure := cfg.Network == "tls" || cfg.Network == "relp+tls"
	relays := strings.HasPrefix(cfg.Network, "relp")
	switch {
	case cfg.TLS != nil && !secure:
		return nil, fmt.Errorf("tls is configured, but network is %s", cfg.Network)
	case cfg.Window != 0 && !relays:
		return nil, fmt.Errorf("window is of RELP, but network is %s", cfg.Network)
	case cfg.Window < 0 || cfg.Window > 1<<16:
		return nil, fmt.Errorf("window %d: want 1 to 65536", cfg.Window)
	}
	if strings.HasPrefix(cfg.Network, "unix") {
		if cfg.Address == "" {
			cfg.Address = "/dev/log"
		}
		if !filepath.IsAbs(cfg.Address) {
			return nil, fmt.Errorf("address %q: want the absolute path of a unix socket", cfg.Address)
		}
		dialer := &transport.Dialer{Network: cfg.Network, Address: cfg.Address}
		if cfg.Network == "unixgram" {
			return &datagrams{dialer: dialer}, nil
		}
		return &stream{dialer: dialer}, nil
	}
	tls := cfg.TLS
	if secure && tls == nil {
		tls = &transport.TLS{}
	}
	network := "tcp"
	if cfg.Network == "udp" {
		network = "udp"
	}
	dialer, err := transport.NewDialer(network, cfg.Address, tls)
	if err != nil {
		return nil, err
	}
	switch {
	case network == "udp":
		return &datagrams{dialer: dialer}, nil
	case relays:
		if cfg.Window == 0 {
			cfg.Window = 128
		}
		return &relp{dialer: dialer, window: cfg.Window}, nil
	}
	return &stream{dialer: dialer}, nil
}

// Send implements sink.Sink.
func (s *Sink) Send(ctx context.Context, batch []sink.Record) error {
	if s.closed {
		return net.ErrClosed
	}
	s.batch.reset()
	var unfit []int
	var why error
	for i := range batch {
		text, err := s.enc.append(s.batch.text, &batch[i])
		if err != nil {
			unfit, why = append(unfit, i), err
			continue
		}
		s.batch.text = text
		s.batch.ends = append(s.batch.ends, len(text))
		s.batch.uids = append(s.batch.uids, batch[i].UID)
		s.batch.from = append(s.batch.from, i)
	}
	if s.batch.len() > 0 {
		more, err := s.wire.send(ctx, &s.batch)
		if err != nil {
			return fmt.Errorf("syslog: %w", transport.Cause(ctx, err))
		}
		for _, i := range more {
			unfit, why = append(unfit, s.batch.from[i]), errDatagram
		}
	}
	if unfit != nil {
		slices.Sort(unfit)
		return &sink.Rejected{Indexes: unfit, Err: fmt.Errorf("syslog: %w", why)}
	}
	return nil
}

var errDatagram = errors.New("the message is longer than a datagram may be; lower max_bytes or use tcp")

// Close ends the connection. It may be called again.
func (s *Sink) Close() error {
	if !s.closed {
		s.closed = true
		s.wire.close()
	}
	return nil
}
