// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func TestUIDs(t *testing.T) {
	otlp := func(uid string) string {
		return `{"resourceLogs":[{"a":[{"key":"log.record.uid","value":{"stringValue":"` + uid + `"}}]}]}` + "\n"
	}
	path := filepath.Join(t.TempDir(), "out.jsonl")
	text := otlp("a") + otlp("b")[:60] + otlp("c") + otlp("a") + otlp("d")[:70]
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := UIDs(t, path, path+".none"), map[string]int{"a": 2, "c": 1}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
