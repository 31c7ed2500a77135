// SPDX-License-Identifier: Apache-2.0

// Package otlp sends records as OpenTelemetry log records, over HTTP with
// protobuf or gRPC (OTLP 1.x, opentelemetry.io/docs/specs/otlp).
//
// An acknowledgement says that the collector accepted records, not that it
// stored them: that depends on its own queue.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"net"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// Config says where records go.
type Config struct {
	// Protocol is http (the default) or grpc.
	Protocol string `yaml:"protocol"`
	// HTTP has the URL, headers, credentials, compression and TLS. The path is
	// /v1/logs unless the URL has one; gRPC has none. Ports are usually 4318
	// for http and 4317 for grpc.
	transport.HTTP `yaml:",inline"`
	// SplitOnInternalError takes 500 (Internal in gRPC) as a judgement of the
	// records, which are then sent in parts and at last rejected, one by one.
	// Without it, it is the collector's trouble of the moment, and all wait.
	SplitOnInternalError bool `yaml:"split_on_internal_error"`
}

// Sink is a sink.Sink.
type Sink struct {
	client exporter
	enc    encoder
	closed bool
}

// exporter sends one encoded request for n records.
type exporter interface {
	export(ctx context.Context, request []byte, n int) (*collogs.ExportLogsServiceResponse, error)
	close() error
}

// New checks cfg. It does not connect: a collector may be down.
func New(cfg Config) (*Sink, error) {
	s := Sink{enc: encoder{text: make([]byte, 0, 1<<10)}}
	var err error
	switch cfg.Protocol {
	case "", "http":
		s.client, err = newHTTP(cfg)
	case "grpc":
		s.client, err = newGRPC(cfg)
	default:
		err = fmt.Errorf("protocol %q: want http or grpc", cfg.Protocol)
	}
	if err != nil {
		return nil, fmt.Errorf("otlp: %w", err)
	}
	return &s, nil
}

// Send implements sink.Sink. Where the collector says how many records it
// rejected, but not which (partial_success), the error is a *sink.Rejected with
// that number as Unnamed: the specification forbids to send them again.
func (s *Sink) Send(ctx context.Context, batch []sink.Record) error {
	if s.closed {
		return net.ErrClosed
	}
	request, broken, why := s.enc.encode(batch)
	rejected := sink.Rejected{Indexes: broken, Err: why}
	if n := len(batch) - len(broken); n > 0 {
		answer, err := s.client.export(ctx, request, n)
		if r := (*sink.Rejected)(nil); errors.As(err, &r) { // the only one that was sent
			rejected.Indexes, rejected.Err = all(len(batch)), r.Err
		} else if err != nil {
			return fmt.Errorf("otlp: %w", err)
		} else if p := answer.GetPartialSuccess(); p.GetRejectedLogRecords() > 0 {
			rejected.Err = fmt.Errorf("the collector says %.300q", p.GetErrorMessage())
			if p.GetRejectedLogRecords() >= int64(n) {
				rejected.Indexes = all(len(batch))
			} else {
				rejected.Unnamed = int(p.GetRejectedLogRecords())
			}
		}
	}
	if len(rejected.Indexes)+rejected.Unnamed > 0 {
		rejected.Err = fmt.Errorf("otlp: %w", rejected.Err)
		return &rejected
	}
	return nil
}

func all(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// Close ends the connections. It may be called again.
func (s *Sink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return s.client.close()
}
