// SPDX-License-Identifier: Apache-2.0

// Package sink delivers records to where people look at them.
package sink

import (
	"context"
	"fmt"
	"time"
)

// Record is one JSON object of the schema (`stated schema`) without its newline, and what sinks need beside it.
type Record struct {
	Line     []byte // flat JSON object; valid until Send returns
	Event    string // event.name: tcp.state_change, tcp.connection, tcp.leak, stated.gap
	Time     int64  // nanoseconds since 1970
	Severity int    // OpenTelemetry severity number: 9 info, 13 warn
	UID      string // log.record.uid
}

// Sink delivers batches. Send returns nil when all records are acknowledged as far as the protocol can. Used by one goroutine at a time.
//
// Errors of Send: *Retry, *Rejected, *TooLarge; any other is temporary, too.
type Sink interface {
	Send(ctx context.Context, batch []Record) error
	Close() error
}

// Retry is temporary: the same batch may be sent again, not before After; 0 is
// the caller's back-off.
type Retry struct {
	After time.Duration
	Err   error
}

func (e *Retry) Error() string { return e.Err.Error() }
func (e *Retry) Unwrap() error { return e.Err }

// Rejected says that the records at Indexes of the batch will never be taken,
// nor will Unnamed others of which the collector told the number only (OTLP's
// partial success). The rest of the batch was acknowledged; nothing of it is to
// be sent again.
type Rejected struct {
	Indexes []int
	Unnamed int
	Err     error
}

func (e *Rejected) Error() string {
	return fmt.Sprintf("%d records rejected: %v", len(e.Indexes)+e.Unnamed, e.Err)
}
func (e *Rejected) Unwrap() error { return e.Err }

// TooLarge says that the batch must be split. Nothing of it was acknowledged.
type TooLarge struct {
	Err error
}

func (e *TooLarge) Error() string { return e.Err.Error() }
func (e *TooLarge) Unwrap() error { return e.Err }
