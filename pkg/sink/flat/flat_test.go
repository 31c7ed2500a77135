// SPDX-License-Identifier: Apache-2.0

package flat

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// tree reads text as encoding/json does into any, so that the two compare.
func tree(s Scanner) (any, error) {
	object := s.closer == '}'
	m, list := map[string]any{}, []any{}
	for s.Next() {
		var v any
		switch s.Value.Kind {
		case Null:
		case Bool:
			v = s.Value.Int == 1
		case Int, Float:
			v = s.Value.Float()
		case String:
			v = string(s.Value.Text(nil))
		default:
			var err error
			if v, err = tree(s.Value.Scan()); err != nil {
				return nil, err
			}
		}
		if object {
			m[string(s.Key)] = v
		} else {
			list = append(list, v)
		}
	}
	if object {
		return m, s.Err()
	}
	return list, s.Err()
}

const record = `{"schema":"stated/1","timestamp":"2026-11-23T16:00:00.123456789Z","event.name":"tcp.connection","severity_text":"INFO",` +
	`"log.record.uid":"0193-1","stated.seq":1,"service.name":"stated","host.name":"web-1","os.type":"linux","network.transport":"tcp",` +
	`"network.local.address":"10.0.0.7","network.local.port":48212,"process.executable.name":"java\\x1b","stated.connection.complete":true,` +
	`"stated.connection.states":[{"state":"syn_sent","offset_ns":0,"duration_ns":812000}],"stated.leak.confidence":0.97,"message":"a → \"b\"\u00e9\ud83d\ude00"}`

func TestAgreesWithEncodingJSON(t *testing.T) {
	for _, text := range []string{
		record, `{}`, ` { "a" : [ ] , "b" : { "c" : [ 1 , [ ] , { } , null , false ] } } `, `{"a":-1,"b":9223372036854775807,"c":-9223372036854775808}`,
		`{"a":18446744073709551615,"b":1e3,"c":-0.5e-7,"d":0}`, `{"a":"\u0041\n\t\r\b\f\/\\\"","b":"\ud800x","c":"\udc00"}`,
	} {
		var want any
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatal(err)
		}
		got, err := tree(Scan([]byte(text)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %v, %v\nwant %v", text, got, err, want)
		}
	}
}

func TestBroken(t *testing.T) {
	for _, text := range []string{
		``, `[]`, `[1]`, `1`, `{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,}`, `{"a" 1}`, `{a:1}`, `{"a":1}x`, `{"a":"\`, `{"a":"` + "\n" + `"}`,
		`{"a":[1}`, `{"a":[1 2]}`, `{"a":--1}`, `{"a":-}`, `{"a":tru}`, `{,"a":1}`, `{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
	} {
		if got, err := tree(Scan([]byte(text))); err == nil {
			t.Errorf("%q was taken as %v", text, got)
		}
	}
}

func TestMember(t *testing.T) {
	s := Scan([]byte(`{"host":{"os":{"name":"no"},"name":"web-1"}}`))
	s.Next()
	if v, ok := s.Value.Member("name"); !ok || string(v.Raw) != "web-1" {
		t.Errorf("%q, %v", v.Raw, ok)
	}
	if v, ok := s.Value.Member("id"); ok {
		t.Errorf("%q", v.Raw)
	}
	if v, ok := (Value{Kind: String, Raw: []byte("{")}).Member("name"); ok {
		t.Errorf("%q", v.Raw)
	}
}

func TestTextKeepsTheLine(t *testing.T) {
	s := Scan([]byte(`{"a":"x\ny"}`))
	s.Next()
	if got := s.Value.Text(make([]byte, 0, 8)); string(got) != "x\ny" || string(s.Value.Raw) != `x\ny` {
		t.Errorf("text %q, raw %q", got, s.Value.Raw)
	}
	if got := s.Value.JSON(nil); string(got) != `"x\ny"` {
		t.Errorf("JSON %s", got)
	}
}

// FuzzScan: whatever encoding/json refuses, or reads in another way, is an
// error here, too, but for what is documented (escapes in keys, strictness of
// numbers and escapes).
func FuzzScan(f *testing.F) {
	f.Add([]byte(record))
	f.Add([]byte(`{"a":[{"b":1.5},null],"c":"\u12"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := tree(Scan(text))
		if err != nil || bytes.ContainsRune(text, '\\') {
			return
		}
		var want any
		if json.Unmarshal(text, &want) != nil {
			return
		}
		if !json.Valid([]byte(strings.ToValidUTF8(string(text), ""))) || !bytes.Equal(text, bytes.ToValidUTF8(text, nil)) {
			return // encoding/json replaces what is no UTF-8
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	})
}

func BenchmarkScan(b *testing.B) {
	line := []byte(record)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		s := Scan(line)
		for s.Next() {
		}
		if s.Err() != nil {
			b.Fatal(s.Err())
		}
	}
}
