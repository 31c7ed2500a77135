// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"iter"
	"os"
	"testing"
)

// WholeLines yields the JSON lines of a collector's file. What is no whole line, as
// a collector that was killed may leave, is left out; what the next one wrote behind
// it is not.
func WholeLines(text []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		begin, _, _ := bytes.Cut(text, []byte{':'}) // each line has the same first name
		for line := range bytes.Lines(text) {
			if line[len(line)-1] != '\n' {
				return
			}
			if !json.Valid(line) {
				line = line[max(bytes.LastIndex(line, begin), 0):]
			}
			if json.Valid(line) && !yield(line) {
				return
			}
		}
	}
}

// UIDs counts how often each record is in files of flat records or of OTLP
// requests, as whole JSON lines.
func UIDs(t *testing.T, files ...string) map[string]int {
	t.Helper()
	uids := make(map[string]int)
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for line := range WholeLines(text) {
			countUIDs(uids, line)
		}
	}
	return uids
}

// countUIDs finds "log.record.uid":"UID", and the same as an attribute of OTLP.
func countUIDs(uids map[string]int, line []byte) {
	for {
		_, rest, ok := bytes.Cut(line, []byte(`"log.record.uid"`))
		if !ok {
			return
		}
		_, rest, _ = bytes.Cut(rest, []byte(`:"`))
		uid, rest, _ := bytes.Cut(rest, []byte{'"'})
		uids[string(uid)]++
		line = rest
	}
}
