// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/flat"
)

// Field numbers of opentelemetry/proto/{logs,common,resource}/v1, which are
// stable. The bytes are written here, straight from the record, instead of by
// way of a generated message for each attribute; tests read them with those.
const (
	requestResourceLogs = 1

	resourceLogsResource  = 1
	resourceLogsScope     = 2
	resourceLogsSchemaURL = 3

	scopeLogsScope   = 1
	scopeLogsRecords = 2
	scopeName        = 1
	scopeVersion     = 2

	recordTime         = 1  // fixed64
	recordSeverity     = 2  // enum
	recordSeverityText = 3  // string
	recordBody         = 5  // AnyValue
	recordAttributes   = 6  // KeyValue
	recordObserved     = 11 // fixed64
	recordEventName    = 12 // string

	keyValueKey   = 1
	keyValueValue = 2

	anyString = 1
	anyBool   = 2
	anyInt    = 3
	anyDouble = 4
	anyArray  = 5 // ArrayValue, whose values are 1
	anyKVList = 6 // KeyValueList, whose values are 1

	resourceAttributes = 1
)

const (
	schemaURL = "https://opentelemetry.io/schemas/1.43.0"
	scope     = "github.com/stated-tcp/stated"
)

// encoder makes requests of batches. Its buffers are used again.
type encoder struct {
	request  []byte
	records  []byte // of the resource that is being written
	resource []byte // its attributes
	next     []byte // those of the record that is being read
	version  []byte
	record   []byte
	value    [maxDepth][]byte
	text     []byte // for unescaping; a longer string is allotted
}

const maxDepth = 18 // flat's own and the record around it

// encode makes an ExportLogsServiceRequest, valid until the next call. Records
// that cannot be read are left out, and their indexes returned.
func (e *encoder) encode(batch []sink.Record) (request []byte, broken []int, why error) {
	e.request, e.records, e.resource = e.request[:0], e.records[:0], e.resource[:0]
	for i := range batch {
		if err := e.read(&batch[i]); err != nil {
			broken, why = append(broken, i), err
			continue
		}
		// Records of another run of the agent, left in the spool, have
		// another resource.
		if !bytes.Equal(e.next, e.resource) {
			e.flush()
			e.resource = append(e.resource[:0], e.next...)
		}
		e.records = protowire.AppendTag(e.records, scopeLogsRecords, protowire.BytesType)
		e.records = protowire.AppendBytes(e.records, e.record)
	}
	e.flush()
	return e.request, broken, why
}

// flush writes the records so far as a ResourceLogs.
func (e *encoder) flush() {
	if len(e.records) == 0 {
		return
	}
	about := appendText(nil, scopeName, []byte(scope))
	about = appendText(about, scopeVersion, e.version)
	logs := protowire.AppendTag(nil, scopeLogsScope, protowire.BytesType)
	logs = protowire.AppendBytes(logs, about)

	head := protowire.AppendTag(nil, resourceLogsResource, protowire.BytesType)
	head = protowire.AppendBytes(head, e.resource)
	head = protowire.AppendTag(head, resourceLogsScope, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(logs)+len(e.records)))
	head = append(head, logs...)
	tail := appendText(nil, resourceLogsSchemaURL, []byte(schemaURL))

	e.request = protowire.AppendTag(e.request, requestResourceLogs, protowire.BytesType)
	e.request = protowire.AppendVarint(e.request, uint64(len(head)+len(e.records)+len(tail)))
	e.request = append(append(append(e.request, head...), e.records...), tail...)
	e.records = e.records[:0]
}

// ofResource tells which fields are about the host and the agent.
func ofResource(key []byte) bool {
	switch string(key) {
	case "stated.boot.id", "stated.run.id", "k8s.node.name", "k8s.cluster.name":
		return true
	}
	return bytes.HasPrefix(key, []byte("service.")) || bytes.HasPrefix(key, []byte("host.")) || bytes.HasPrefix(key, []byte("os."))
}

// read makes a LogRecord in e.record, and the attributes of its resource in
// e.next.
func (e *encoder) read(r *sink.Record) error {
	e.next, e.version = e.next[:0], e.version[:0]
	b := appendFixed(e.record[:0], recordTime, r.Time)
	b = appendFixed(b, recordObserved, r.Time) // the kernel's event is observed where it happens
	b = protowire.AppendTag(b, recordSeverity, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(max(0, min(r.Severity, 24))))
	b = appendText(b, recordEventName, []byte(strings.ToValidUTF8(r.Event, "\uFFFD")))
	s := flat.Scan(r.Line)
	for s.Next() {
		switch string(s.Key) {
		case "timestamp", "event.name":
			continue // r has them
		case "severity_text":
			b = appendText(b, recordSeverityText, s.Value.Text(e.text))
			continue
		case "message":
			b = protowire.AppendTag(b, recordBody, protowire.BytesType)
			b = protowire.AppendBytes(b, e.any(s.Value, 0))
			continue
		case "service.version":
			e.version = append(e.version, s.Value.Text(e.text)...)
		}
		if ofResource(s.Key) {
			e.next = e.keyValue(e.next, resourceAttributes, s.Key, s.Value, 0)
		} else if s.Value.Kind != flat.Null {
			b = e.keyValue(b, recordAttributes, s.Key, s.Value, 0)
		}
	}
	e.record = b
	if err := s.Err(); err != nil {
		return err
	}
	if !utf8.Valid(r.Line) { // protobuf's strings must be
		return fmt.Errorf("the record is not UTF-8")
	}
	return nil
}

// keyValue adds a KeyValue as field.
func (e *encoder) keyValue(b []byte, field protowire.Number, key []byte, v flat.Value, depth int) []byte {
	value := e.any(v, depth)
	size := protowire.SizeTag(keyValueKey) + protowire.SizeBytes(len(key)) + protowire.SizeTag(keyValueValue) + protowire.SizeBytes(len(value))
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = appendText(b, keyValueKey, key)
	b = protowire.AppendTag(b, keyValueValue, protowire.BytesType)
	return protowire.AppendBytes(b, value)
}

// any makes an AnyValue in the buffer of its depth. JSON's null is the empty
// value.
func (e *encoder) any(v flat.Value, depth int) []byte {
	b := e.value[depth][:0]
	switch v.Kind {
	case flat.String:
		b = appendText(b, anyString, v.Text(e.text))
	case flat.Bool:
		b = protowire.AppendTag(b, anyBool, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(v.Int))
	case flat.Int:
		b = protowire.AppendTag(b, anyInt, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(v.Int))
	case flat.Float:
		b = protowire.AppendTag(b, anyDouble, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, math.Float64bits(v.Float()))
	case flat.Array, flat.Object:
		b = e.nested(b, v, depth)
	}
	e.value[depth] = b
	return b
}

func (e *encoder) nested(b []byte, v flat.Value, depth int) []byte {
	var inner []byte
	for s := v.Scan(); s.Next(); {
		if v.Kind == flat.Object {
			inner = e.keyValue(inner, 1, s.Key, s.Value, depth+1)
		} else {
			inner = protowire.AppendTag(inner, 1, protowire.BytesType)
			inner = protowire.AppendBytes(inner, e.any(s.Value, depth+1))
		}
	}
	field := protowire.Number(anyArray)
	if v.Kind == flat.Object {
		field = anyKVList
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(slices.Grow(b, len(inner)+8), inner)
}

func appendText(b []byte, field protowire.Number, text []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, text)
}

func appendFixed(b []byte, field protowire.Number, v int64) []byte {
	b = protowire.AppendTag(b, field, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, uint64(v))
}
