// SPDX-License-Identifier: Apache-2.0

package http

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

var (
	asJSON  = map[string]string{"Content-Type": "application/json"}
	asLines = map[string]string{"Content-Type": "application/x-ndjson"}
)

// line adds a record on a line of its own: there may be space between tokens,
// but inside of strings JSON has no line's end.
func line(dst, record []byte) []byte {
	for _, c := range record {
		if c == '\n' || c == '\r' {
			c = ' '
		}
		dst = append(dst, c)
	}
	return append(dst, '\n')
}

// quote adds s as a JSON string; it is UTF-8 or made so.
func quote(dst []byte, s string) []byte {
	b, _ := json.Marshal(s) // of a string: no error
	return append(dst, b...)
}

type ndjson struct{}

func (ndjson) header() map[string]string                           { return asLines }
func (ndjson) reset(dst []byte) []byte                             { return dst }
func (ndjson) finish(dst []byte) []byte                            { return dst }
func (ndjson) add(dst []byte, r *sink.Record, _ *facts) []byte     { return line(dst, r.Line) }
func (ndjson) judge(a *transport.Answer, n int) error              { return a.Err(n) }
func (clickhouse) header() map[string]string                       { return asLines }
func (clickhouse) reset(dst []byte) []byte                         { return dst }
func (clickhouse) finish(dst []byte) []byte                        { return dst }
func (clickhouse) add(dst []byte, r *sink.Record, _ *facts) []byte { return line(dst, r.Line) }
func (elasticsearch) header() map[string]string                    { return asLines }
func (elasticsearch) reset(dst []byte) []byte                      { return dst }
func (elasticsearch) finish(dst []byte) []byte                     { return dst }
func (splunk) header() map[string]string                           { return asJSON }
func (splunk) reset(dst []byte) []byte                             { return dst }
func (splunk) finish(dst []byte) []byte                            { return dst }
func (*loki) header() map[string]string                            { return asJSON }

// elasticsearch is the bulk API: an action and a document in turn.
type elasticsearch struct{ index string }

func (e elasticsearch) add(dst []byte, r *sink.Record, f *facts) []byte {
	dst = append(dst, `{"create":{"_index":`...)
	dst = quote(dst, e.index)
	if r.UID != "" {
		dst = quote(append(dst, `,"_id":`...), r.UID)
	}
	dst = append(dst, "}}\n"...)
	if f.atTimestamp {
		return line(dst, r.Line)
	}
	// A data stream must have an @timestamp.
	dst = append(dst, `{"@timestamp":"`...)
	dst = time.Unix(0, r.Time).UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000000Z")
	dst = append(dst, '"')
	rest := r.Line[slices.Index(r.Line, '{')+1:]
	if string(compact(rest)) != "}" {
		dst = append(dst, ',')
	}
	return line(dst, rest)
}

// compact is the first byte of b that is no space.
func compact(b []byte) []byte {
	for i, c := range b {
		if c > ' ' {
			return b[i : i+1]
		}
	}
	return nil
}

func (elasticsearch) judge(a *transport.Answer, n int) error {
	if err := a.Err(n); err != nil {
		return err
	}
	var bulk struct {
		Errors *bool
		Items  []map[string]struct {
			Status int
			Error  struct{ Type, Reason string }
		}
	}
	if err := json.Unmarshal(a.Body, &bulk); err != nil || bulk.Errors == nil {
		return fmt.Errorf("the answer is not of _bulk; check the url: %.200q", a.Body)
	}
	if !*bulk.Errors {
		return nil
	}
	if len(bulk.Items) != n {
		return fmt.Errorf("the answer is about %d records of %d", len(bulk.Items), n)
	}
	rejected := &sink.Rejected{}
	for i, item := range bulk.Items {
		for _, result := range item { // one: create
			err := fmt.Errorf("the collector answered %d for a record: %.100q: %.300q", result.Status, result.Error.Type, result.Error.Reason)
			switch {
			case result.Status/100 == 2:
			case result.Status == http.StatusConflict: // it has this _id already
			case result.Status == http.StatusBadRequest, result.Status == http.StatusRequestEntityTooLarge:
				rejected.Indexes, rejected.Err = append(rejected.Indexes, i), err
			default: // a full queue, a full disk, no permission; what was created will conflict next time
				return &sink.Retry{After: a.RetryAfter(time.Now()), Err: err}
			}
		}
	}
	if len(rejected.Indexes) > 0 {
		return rejected
	}
	return nil
}

// loki pushes one stream for each host and event of the batch.
type loki struct {
	labels  []byte // members of a JSON object, each with a comma before it
	streams map[string][]byte
	order   []string
}

func newLoki(labels map[string]string) *loki {
	l := &loki{streams: map[string][]byte{}}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		l.labels = quote(append(quote(append(l.labels, ','), k), ':'), labels[k])
	}
	return l
}

func (l *loki) reset(dst []byte) []byte {
	clear(l.streams)
	l.order = l.order[:0]
	return dst
}

func (l *loki) add(dst []byte, r *sink.Record, f *facts) []byte {
	key := append([]byte(`{"service_name":"stated","event_name":`), quote(nil, r.Event)...)
	if len(f.host) > 0 {
		key = append(append(append(key, `,"host_name":"`...), f.host...), '"')
	}
	values, ok := l.streams[string(key)]
	if !ok {
		l.order = append(l.order, string(key))
	} else {
		values = append(values, ',')
	}
	values = append(values, '[', '"')
	values = strconv.AppendInt(values, r.Time, 10)
	values = append(values, '"', ',')
	l.streams[string(key)] = append(quote(values, string(r.Line)), ']')
	return dst
}

func (l *loki) finish(dst []byte) []byte {
	dst = append(dst, `{"streams":[`...)
	for i, key := range l.order {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(dst, `{"stream":`...), key...)
		dst = append(append(dst, l.labels...), `},"values":[`...)
		dst = append(append(dst, l.streams[key]...), `]}`...)
	}
	return append(dst, `]}`...)
}

// judge: Loki answers 400 also for entries that are too old, and takes the
// others of the request; it drops those when they come again in a part of it.
func (*loki) judge(a *transport.Answer, n int) error { return a.Err(n) }

type clickhouse struct{}

// badData are the codes (ClickHouse, src/Common/ErrorCodes.cpp) that are about
// a row: cannot parse text, quoted string, input, date or datetime, type
// mismatch, cannot parse number, incorrect data, too large string.
var badData = []string{"6", "26", "27", "38", "41", "53", "72", "117", "131"}

// exceptionCode is in the text of an exception, which is all of the answer; the
// header is missing in versions before 19 and where the exception came late.
var exceptionCode = regexp.MustCompile(`^Code: ([0-9]+)[.,]`)

// judge goes by the code of the exception: the status is 500 for most, and may
// be 200 where the exception came late.
func (clickhouse) judge(a *transport.Answer, n int) error {
	code := a.Header.Get("X-ClickHouse-Exception-Code")
	if m := exceptionCode.FindSubmatch(a.Body); code == "" && m != nil {
		code = string(m[1])
	}
	if code == "" {
		return a.Err(n)
	}
	err := fmt.Errorf("ClickHouse exception %.10q: %.300q", code, a.Body)
	if slices.Contains(badData, code) {
		return transport.Refused(n, err)
	}
	return &sink.Retry{After: a.RetryAfter(time.Now()), Err: err}
}

// splunk is the HTTP Event Collector's event endpoint.
type splunk struct{ index string }

func (s splunk) add(dst []byte, r *sink.Record, f *facts) []byte {
	dst = append(dst, `{"time":`...)
	dst = strconv.AppendInt(dst, r.Time/1e9, 10)
	dst = fmt.Appendf(dst, ".%09d", r.Time%1e9)
	if len(f.host) > 0 {
		dst = append(append(append(dst, `,"host":"`...), f.host...), '"')
	}
	if s.index != "" {
		dst = quote(append(dst, `,"index":`...), s.index)
	}
	dst = quote(append(dst, `,"source":"stated","sourcetype":`...), r.Event)
	return append(line(append(dst, `,"event":`...), r.Line), '}')
}

// badEvent are the collector's codes that are about an event: no data, invalid
// data format, event field required, blank, error in indexed fields.
var badEvent = []int{5, 6, 12, 13, 15}

func (splunk) judge(a *transport.Answer, n int) error {
	var said struct {
		Text string
		Code *int
	}
	json.Unmarshal(a.Body, &said)
	switch {
	case said.Code == nil && a.Status/100 == 2:
		return fmt.Errorf("the answer is not of Splunk's collector; check the url: %.200q", a.Body)
	case said.Code == nil:
		return a.Err(n)
	case *said.Code == 0 && a.Status/100 == 2:
		return nil
	}
	err := fmt.Errorf("the collector answered %d, code %d: %.200q", a.Status, *said.Code, said.Text)
	if slices.Contains(badEvent, *said.Code) {
		return transport.Refused(n, err)
	}
	if a.Status == http.StatusRequestEntityTooLarge {
		return a.Err(n)
	}
	return &sink.Retry{After: a.RetryAfter(time.Now()), Err: err}
}
