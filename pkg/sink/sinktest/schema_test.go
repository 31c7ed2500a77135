// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"bytes"
	"encoding/json"
	"testing"
)

// TestRecordsFitTheSchema, and can be made again of text.
func TestRecordsFitTheSchema(t *testing.T) {
	for _, r := range append(Records(len(templates)), Long(10)) {
		if err := Valid(r.Line); err != nil {
			t.Errorf("%v: %s", err, r.Line)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(r.Line, &fields); err != nil {
			t.Fatal(err)
		}
		typed := Typed(r.Event, func(key string) (string, bool) {
			raw, ok := fields[key]
			var s string
			if json.Unmarshal(raw, &s) != nil {
				s = string(raw)
			}
			return s, ok
		})
		if err := SameRecord(typed, r.Line); err != nil {
			t.Error(err)
		}
	}
}

func TestValidFindsMistakes(t *testing.T) {
	for i := range templates {
		line := Records(1)[0].Line
		for _, bad := range [][2]string{{`"os.type":"linux"`, `"os.type":"Linux"`}, {`"stated.seq":`, `"stated.seq":-`}, {`"message":`, `"massage":`}, {`"event.name":"`, `"event.name":"x`}} {
			broken := bytes.Replace(line, []byte(bad[0]), []byte(bad[1]), 1)
			if bytes.Equal(broken, line) || Valid(broken) == nil {
				t.Errorf("%d: accepted: %s", i, broken)
			}
		}
	}
	if odd := Odd(); Valid(odd.Line) == nil {
		t.Errorf("accepted: %s", odd.Line)
	}
	if err := Valid([]byte("[]")); err == nil {
		t.Error("a list is taken")
	}
}
