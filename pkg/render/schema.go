// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

//go:embed schema.json
var schema []byte

// Schema returns the JSON Schema (draft 2020-12) of what FormatJSON writes: of
// all records, or of the one whose event.name is record. It is strict: a key
// or a word that it does not name is in no record.
func Schema(record string) ([]byte, error) {
	if record == "" {
		return schema, nil
	}
	doc := parseSchema()
	if !doc.records[record] {
		return nil, fmt.Errorf("unknown record %q: one of %s", record, strings.Join(SchemaRecords(), ", "))
	}
	return doc.only(record), nil
}

// SchemaRecords lists the records that Schema knows, in its order.
func SchemaRecords() (names []string) {
	doc := parseSchema()
	for _, d := range doc.defs {
		if doc.records[d.name] {
			names = append(names, d.name)
		}
	}
	return names
}

// schemaDoc is the schema taken apart: its definitions as they are written, in
// their order, and which of them are records.
type schemaDoc struct {
	dialect, id string
	defs        []definition
	records     map[string]bool
}

type definition struct {
	name string
	text json.RawMessage
}

const refPrefix = "#/$defs/"

var refPattern = regexp.MustCompile(`"\$ref":\s*"#/\$defs/([^"]+)"`)

// parseSchema panics where the schema is broken: it is part of the program.
func parseSchema() *schemaDoc {
	var top struct {
		Dialect string `json:"$schema"`
		ID      string `json:"$id"`
		OneOf   []struct {
			Ref string `json:"$ref"`
		} `json:"oneOf"`
		Defs json.RawMessage `json:"$defs"`
	}
	if err := json.Unmarshal(schema, &top); err != nil {
		panic(err)
	}
	doc := &schemaDoc{dialect: top.Dialect, id: top.ID, records: make(map[string]bool)}
	for _, r := range top.OneOf {
		doc.records[strings.TrimPrefix(r.Ref, refPrefix)] = true
	}
	d := json.NewDecoder(bytes.NewReader(top.Defs))
	d.Token() // the opening brace: Unmarshal has seen that all is well
	for d.More() {
		name, _ := d.Token()
		var text json.RawMessage
		if err := d.Decode(&text); err != nil {
			panic(err)
		}
		doc.defs = append(doc.defs, definition{fmt.Sprint(name), text})
	}
	return doc
}

// only returns the schema of one record, with the definitions that it needs.
func (d *schemaDoc) only(record string) []byte {
	needed := map[string]bool{record: true}
	for grown := true; grown; {
		grown = false
		for _, def := range d.defs {
			if !needed[def.name] {
				continue
			}
			for _, ref := range refPattern.FindAllSubmatch(def.text, -1) {
				if name := string(ref[1]); !needed[name] {
					needed[name], grown = true, true
				}
			}
		}
	}
	b := fmt.Appendf(nil, "{\n  \"$schema\": %q,\n  \"$id\": %q,\n  \"$ref\": %q,\n  \"$defs\": {", d.dialect, d.id+":"+record, refPrefix+record)
	comma := ""
	for _, def := range d.defs {
		if needed[def.name] {
			b = fmt.Appendf(b, "%s\n    %q: %s", comma, def.name, def.text)
			comma = ","
		}
	}
	return append(b, "\n  }\n}\n"...)
}
