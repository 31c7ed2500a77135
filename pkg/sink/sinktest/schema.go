// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/sink"
)

// Stored is Kept for a real collector: what it has of a batch is what was
// sent, and fits the schema that `stated schema` prints.
func Stored(t *testing.T, store *Store, batch []sink.Record) {
	t.Helper()
	Kept(t, store, batch, true)
	for _, r := range batch {
		line, _ := store.Get(r.UID)
		if err := Valid(line); err != nil {
			t.Fatalf("record %s: %v: %s", r.UID, err, line)
		}
	}
}

// Valid checks a record by its schema. It may be called from any goroutine.
func Valid(line []byte) error {
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(line)))
	if err != nil {
		return err
	}
	record, _ := v.(map[string]any)
	event, _ := record["event.name"].(string)
	s, err := schemaOf(event)
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// compiled holds the schema of each event.name.
var compiled sync.Map

func schemaOf(event string) (*jsonschema.Schema, error) {
	if s, ok := compiled.Load(event); ok {
		return s.(*jsonschema.Schema), nil
	}
	if event == "" {
		return nil, fmt.Errorf("no event.name")
	}
	text, err := render.Schema(event)
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		return nil, err
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		return nil, err
	}
	compiled.Store(event, s)
	return s, nil
}

// node is a part of the schema, as far as it says what type a field has.
type node struct {
	Ref        string          `json:"$ref"`
	Type       string          `json:"type"`
	Const      any             `json:"const"`
	Enum       []any           `json:"enum"`
	AllOf      []node          `json:"allOf"`
	Properties map[string]node `json:"properties"`
}

var definitions = sync.OnceValue(func() map[string]node {
	var doc struct {
		Defs map[string]node `json:"$defs"`
	}
	text, err := render.Schema("")
	if err == nil {
		err = json.Unmarshal(text, &doc)
	}
	if err != nil {
		panic(err) // it is part of the program
	}
	return doc.Defs
})

// collect adds the fields of n and of its parts.
func (n node) collect(fields map[string]node) {
	if n.Ref != "" {
		n.target().collect(fields)
	}
	for _, part := range n.AllOf {
		part.collect(fields)
	}
	maps.Copy(fields, n.Properties)
}

func (n node) target() node { return definitions()[strings.TrimPrefix(n.Ref, "#/$defs/")] }

// Types are the types, as JSON Schema names them, of the fields that a kind of
// records may have.
func Types(event string) map[string]string {
	fields := make(map[string]node)
	definitions()[event].collect(fields)
	types := make(map[string]string)
	for key, n := range fields {
		types[key] = n.kind()
	}
	return types
}

func (n node) kind() string {
	for n.Ref != "" {
		n = n.target()
	}
	value := n.Const
	if len(n.Enum) > 0 {
		value = n.Enum[0]
	}
	switch value.(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	}
	return n.Type
}

// Typed makes the record of a collector that keeps text only: text has the
// value of a field, and the schema says of which type it was.
func Typed(event string, text func(key string) (string, bool)) []byte {
	record := make(map[string]any)
	for key, kind := range Types(event) {
		if value, ok := text(key); ok {
			record[key] = value
			if kind != "string" {
				record[key] = json.RawMessage(value)
			}
		}
	}
	line, err := json.Marshal(record)
	if err != nil {
		return fmt.Appendf(nil, "%v", err) // no JSON: the next to read it will say so
	}
	return line
}
