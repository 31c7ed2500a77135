// SPDX-License-Identifier: Apache-2.0

package ecs_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/ecs"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

var update = flag.Bool("update", false, "rewrite the golden files and the table in the documentation")

func convert(t testing.TB, line string) map[string]any {
	t.Helper()
	var c ecs.Converter
	doc, err := c.Append(nil, []byte(line))
	if err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return decode(t, doc)
}

func decode(t testing.TB, text []byte) (m map[string]any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return m
}

// lines are records of each kind: those that render's tests keep, and those of
// the sinks' tests.
func lines(t testing.TB) (all []string) {
	t.Helper()
	paths, err := filepath.Glob("../render/testdata/*json.golden")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			all = append(all, strings.TrimSuffix(line, "\n"))
		}
	}
	for _, r := range sinktest.Records(8) {
		all = append(all, string(r.Line))
	}
	return all
}

// at takes the value of a field out of a document.
func at(doc map[string]any, path string) (value any, ok bool) {
	words := strings.Split(path, ".")
	for _, word := range words[:len(words)-1] {
		if doc, ok = doc[word].(map[string]any); !ok {
			return nil, false
		}
	}
	value, ok = doc[words[len(words)-1]]
	return value, ok
}

// record makes the record of a document again. That it can be made shows that
// nothing got lost.
func record(t testing.TB, doc map[string]any) map[string]any {
	t.Helper()
	m := make(map[string]any)
	action, _ := at(doc, "event.action")
	reasons := map[any]string{"tcp.connection": "stated.close.reason", "tcp.state_change": "stated.state.cause", "tcp.leak": "stated.leak.verdict"}
	for name, path := range ecs.Names() {
		value, ok := at(doc, path)
		if !ok || path == "event.reason" && reasons[action] != name {
			continue
		}
		m[name] = value
	}
	if code, ok := at(doc, "error.code"); ok {
		m["stated.errno"] = json.Number(code.(string))
	}
	local, peer := "source", "destination"
	if d, _ := at(doc, "network.direction"); d == "ingress" {
		local, peer = peer, local
	}
	for name, path := range map[string]string{
		"network.local.address": local + ".address", "network.local.port": local + ".port", "stated.bytes.sent": local + ".bytes",
		"network.peer.address": peer + ".address", "network.peer.port": peer + ".port", "stated.bytes.received": peer + ".bytes",
	} {
		if value, ok := at(doc, path); ok {
			m[name] = value
		}
	}
	if other, ok := at(doc, "stated.unmapped"); ok {
		for name, value := range other.(map[string]any) {
			m[name] = value
		}
	}
	return m
}

func TestNothingGetsLost(t *testing.T) {
	for _, line := range lines(t) {
		if got, want := record(t, convert(t, line)), decode(t, []byte(line)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\nbecame  %v\ninstead of %v", line, got, want)
		}
	}
	line := `{"event.name":"tcp.leak","a.b":{"c":[1,"\u00e9\n"]},"d":null,"stated.later":1.50}`
	if got, want := record(t, convert(t, line)), decode(t, []byte(line)); !reflect.DeepEqual(got, want) {
		t.Errorf("%v instead of %v", got, want)
	}
}

// TestGolden shows documents of each kind of record.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.json")
	if err != nil || len(paths) != len(render.SchemaRecords()) {
		t.Fatalf("%d files, %v; want one for each kind of record", len(paths), err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		var c ecs.Converter
		for line := range strings.Lines(string(text)) {
			doc, err := c.Append(nil, []byte(line))
			if err == nil {
				err = json.Indent(&got, doc, "", "  ")
			}
			if err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
		}
		compare(t, strings.TrimSuffix(path, "json")+"golden", got.Bytes())
	}
}

func compare(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what is made now (%v); go test ./pkg/ecs -update writes it anew", path, err)
	}
}

// ecsField is a line of testdata/fields.txt.
type ecsField struct {
	kind string
	list bool
}

func ecsFields(t *testing.T) map[string]ecsField {
	text, err := os.ReadFile("testdata/fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	fields := make(map[string]ecsField)
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); words[0] != "#" {
			fields[words[0]] = ecsField{words[1], len(words) > 2}
		}
	}
	return fields
}

// fits reports whether a value is of a type of ECS, which are Elasticsearch's.
func fits(kind string, v any) bool {
	text, isText := v.(string)
	switch kind {
	case "keyword", "wildcard", "match_only_text":
		return isText
	case "date":
		_, err := time.Parse(time.RFC3339Nano, text)
		return isText && err == nil
	case "ip":
		_, err := netip.ParseAddr(text)
		return isText && err == nil
	case "long":
		n, isNumber := v.(json.Number)
		_, err := strconv.ParseInt(string(n), 10, 64)
		return isNumber && err == nil
	}
	return false
}

// TestFieldsAreOfECS: what stands outside of stated. is a field of ECS and of
// its type.
func TestFieldsAreOfECS(t *testing.T) {
	fields := ecsFields(t)
	for _, path := range ecs.Paths() {
		if _, ok := fields[path]; !ok && !strings.HasPrefix(path, "stated.") {
			t.Errorf("%s is no field of ECS", path)
		}
	}
	if len(ecs.Paths()) < len(fields) {
		t.Errorf("%d fields, of which %d are ECS's", len(ecs.Paths()), len(fields))
	}
	seen := make(map[string]bool)
	var walk func(prefix string, doc map[string]any)
	walk = func(prefix string, doc map[string]any) {
		for key, v := range doc {
			path := prefix + key
			if strings.HasPrefix(path, "stated") {
				continue
			}
			if inner, ok := v.(map[string]any); ok {
				walk(path+".", inner)
				continue
			}
			f, ok := fields[path]
			list, isList := v.([]any)
			if !isList {
				list = []any{v}
			}
			if !ok || isList != f.list || slices.ContainsFunc(list, func(v any) bool { return !fits(f.kind, v) }) {
				t.Errorf("%s is %v, but ECS has %+v", path, v, f)
			}
			seen[path] = true
		}
	}
	for _, line := range lines(t) {
		walk("", convert(t, line))
	}
	if len(seen) < 50 {
		t.Errorf("only %d fields were seen", len(seen))
	}
}

// TestTableIsWhole: no field of the document is an object elsewhere, objects
// are written once, and each field of a record comes to its place.
func TestTableIsWhole(t *testing.T) {
	closed := map[string]bool{}
	last := ""
	for _, path := range ecs.Paths() {
		if closed[path] {
			t.Errorf("%s is there twice", path)
		}
		for i := range path {
			if path[i] != '.' {
				continue
			}
			if object := path[:i+1]; closed[object] && !strings.HasPrefix(last, object) {
				t.Errorf("%s comes after %s: the object %s would be there twice", path, last, object)
			} else if closed[path[:i]] {
				t.Errorf("%s is in %s, which is a field", path, path[:i])
			} else {
				closed[object] = true
			}
		}
		if closed[path+"."] {
			t.Errorf("%s is an object, too", path)
		}
		closed[path], last = true, path
	}
	for name, path := range ecs.Names() {
		if path == "" {
			continue
		}
		doc := convert(t, fmt.Sprintf(`{"%s":"7"}`, name))
		if got, _ := at(doc, path); got != "7" {
			t.Errorf("%s became %v, without %s", name, doc, path)
		}
	}
}

// TestTableKnowsTheSchema: whoever adds a field to render/schema.json says in
// table.go what becomes of it.
func TestTableKnowsTheSchema(t *testing.T) {
	text, err := render.Schema("")
	if err != nil {
		t.Fatal(err)
	}
	type node struct {
		Properties map[string]any
		AllOf      []struct{ Properties map[string]any }
	}
	var schema struct {
		Defs map[string]node `json:"$defs"`
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	names := ecs.Names()
	n := 0
	for record, def := range schema.Defs {
		parts := []map[string]any{def.Properties}
		for _, part := range def.AllOf {
			parts = append(parts, part.Properties)
		}
		for _, part := range parts {
			for name := range part {
				n++
				if _, ok := names[name]; !ok {
					t.Errorf("%s of %s is in no table: add it to renamed or to kept in pkg/ecs/table.go", name, record)
				}
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d fields found", n)
	}
}

// TestRoles: who is the source, and what is known of it.
func TestRoles(t *testing.T) {
	for _, tc := range []struct{ role, direction, source, client string }{
		{"client", "egress", "10.0.0.1", "10.0.0.1"},
		{"server", "ingress", "10.0.0.2", "10.0.0.2"},
		{"simultaneous", "unknown", "10.0.0.1", ""},
		{"unknown", "unknown", "10.0.0.1", ""},
	} {
		doc := convert(t, `{"event.name":"tcp.connection","network.transport":"tcp","network.local.address":"10.0.0.1","network.local.port":1,`+
			`"network.peer.address":"10.0.0.2","network.peer.port":2,"stated.connection.role":"`+tc.role+`","stated.bytes.sent":3,"stated.bytes.received":4}`)
		client, _ := at(doc, "client.ip")
		if client == nil {
			client = ""
		}
		for path, want := range map[string]any{"network.direction": tc.direction, "source.ip": tc.source, "network.bytes": json.Number("7")} {
			if got, _ := at(doc, path); got != want {
				t.Errorf("%s: %s is %v, want %v", tc.role, path, got, want)
			}
		}
		if client != tc.client {
			t.Errorf("%s: the client is %v, want %v", tc.role, client, tc.client)
		}
	}
}

// TestTypes: how ECS classes each record.
func TestTypes(t *testing.T) {
	for line, want := range map[string]string{
		`"event.name":"tcp.connection","severity_text":"INFO","stated.close.reason":"closed","stated.connection.end":"x"`:                                           `event [connection end] success`,
		`"event.name":"tcp.connection","severity_text":"WARN","stated.close.reason":"refused","stated.connection.end":"x"`:                                          `event [connection end] failure`,
		`"event.name":"tcp.connection","severity_text":"WARN","stated.close.reason":"unknown"`:                                                                      `event [connection info] unknown`,
		`"event.name":"tcp.connection","severity_text":"INFO","stated.close.reason":"listen_ended","stated.connection.end":"x","stated.connection.role":"listener"`: `event [end] success`,
		`"event.name":"tcp.state_change","network.connection.state":"syn_sent","stated.state.cause":"connect"`:                                                      `event [connection start] <nil>`,
		`"event.name":"tcp.state_change","network.connection.state":"close_wait","stated.state.cause":"fin_received"`:                                               `event [connection info] <nil>`,
		`"event.name":"tcp.state_change","network.connection.state":"closed","stated.state.cause":"timeout"`:                                                        `event [connection end] <nil>`,
		`"event.name":"tcp.state_change","network.connection.state":"syn_sent","stated.state.cause":"none"`:                                                         `event [connection info] <nil>`,
		`"event.name":"tcp.state_change","network.connection.state":"syn_sent","stated.state.cause":"found","stated.snapshot":true`:                                 `event [connection info] <nil>`,
		`"event.name":"tcp.leak","stated.leak.opened_by":"server"`:                                                                                                  `alert [connection info] <nil>`,
		`"event.name":"tcp.socket","stated.connection.role":"listener","network.connection.state":"listen"`:                                                         `state [info] <nil>`,
	} {
		doc := convert(t, `{"network.transport":"tcp",`+line+`}`)
		kind, _ := at(doc, "event.kind")
		types, _ := at(doc, "event.type")
		outcome, _ := at(doc, "event.outcome")
		if got := fmt.Sprint(kind, " ", types, " ", outcome); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
	if doc := convert(t, `{"event.name":"stated.gap"}`); fmt.Sprint(doc["event"]) != "map[action:stated.gap dataset:stated.gap kind:pipeline_error module:stated]" {
		t.Errorf("a gap: %v", doc["event"])
	}
}

// TestCommunityID has the TCP flows of the specification's
// baseline/baseline_deflt.json.
func TestCommunityID(t *testing.T) {
	for _, tc := range []struct{ a, b, want string }{
		{"[2001:470:e5bf:dead:4957:2174:e82c:4887]:63943", "[2607:f8b0:400c:c03::1a]:25", "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4="},
		{"128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="},
	} {
		a, b := netip.MustParseAddrPort(tc.a), netip.MustParseAddrPort(tc.b)
		if got, back := ecs.CommunityID(a, b), ecs.CommunityID(b, a); got != tc.want || back != tc.want {
			t.Errorf("%s and %s: %s, and from the other side %s; want %s", a, b, got, back, tc.want)
		}
		doc := convert(t, fmt.Sprintf(`{"network.transport":"tcp","stated.connection.role":"server","network.local.address":"%s","network.local.port":%d,`+
			`"network.peer.address":"%s","network.peer.port":%d}`, a.Addr(), a.Port(), b.Addr(), b.Port()))
		if got, _ := at(doc, "network.community_id"); got != tc.want {
			t.Errorf("the document has %v, want %s", got, tc.want)
		}
	}
}

func TestBroken(t *testing.T) {
	var c ecs.Converter
	for _, line := range []string{``, `{`, `[]`, `{"a":1`, `{"a":1}x`} {
		if got, err := c.Append([]byte("before"), []byte(line)); err == nil || string(got) != "before" {
			t.Errorf("%q: %s, %v", line, got, err)
		}
	}
	if got, err := c.Append([]byte("before"), []byte(`{"message":"m"}`)); err != nil || !json.Valid(bytes.TrimPrefix(got, []byte("before"))) {
		t.Errorf("after what was broken: %s, %v", got, err)
	}
}

// FuzzConvert: whatever the values of a record are, its document is JSON and
// has them all.
func FuzzConvert(f *testing.F) {
	for _, line := range lines(f) {
		f.Add([]byte(line))
	}
	f.Add([]byte(`{"event.name":"x\"y","stated.connection.role":7,"network.local.address":[],"network.peer.port":{"a":"}"},"network.transport":null}`))
	var c ecs.Converter
	f.Fuzz(func(t *testing.T, line []byte) {
		var in map[string]any
		if json.Unmarshal(line, &in) != nil {
			return // no record
		}
		doc, err := c.Append(nil, line)
		if err != nil {
			return // nested too deep
		}
		var out map[string]any
		if err := json.Unmarshal(doc, &out); err != nil {
			t.Fatalf("%v: %q became %q", err, line, doc)
		}
	})
}

// TestDocumentation writes what becomes of each field for people to read.
func TestDocumentation(t *testing.T) {
	names := ecs.Names()
	var b strings.Builder
	fmt.Fprintf(&b, documentation, ecs.Version)
	for _, path := range ecs.Paths() {
		var from []string
		for name, to := range names {
			if to == path && "stated."+strings.TrimPrefix(name, "stated.") != path {
				from = append(from, "`"+name+"`")
			}
		}
		slices.Sort(from)
		if len(from) > 0 {
			fmt.Fprintf(&b, "| %s | `%s` |\n", strings.Join(from, ", "), path)
		}
	}
	compare(t, "../../cmd/stated/docs/ecs.md", []byte(b.String()))
}

const documentation = `# Records as Elastic Common Schema

` + "`-o ecs`, and `format: ecs` of a sink, write each record as a document of ECS %s:" + `
nested objects instead of dotted names, with all that the record says. A field
that is not in the table below and has no rule keeps its name, after ` + "`stated.`" + `
if it does not begin so; what begins so is not ECS's. In short:

- ` + "`source` is who called, `destination` who was called, `client` and `server` the same;" + `
  where that is not known, ` + "`source`" + ` is our end, and there is no ` + "`client` and `server`" + `.
  ` + "`network.direction`" + ` is ` + "`egress`" + ` where we called, ` + "`ingress`" + ` where we were called.
- ` + "`source.bytes`" + ` and the others count payload, each byte once, without headers.
- ` + "`network.community_id`" + ` is version 1 with seed 0, as Zeek and Suricata write it.
- ` + "`event.kind`" + ` is ` + "`alert`" + ` for a leak, ` + "`state`" + ` for a socket that is there now,
  ` + "`pipeline_error`" + ` for a gap, else ` + "`event`" + `; ` + "`event.outcome`" + ` is of ended connections only.
- ` + "`event.duration`" + ` may be a lower bound: see ` + "`stated.connection.duration_known`" + `.

| field of the record | field of ECS |
|---|---|
`

func BenchmarkConvert(b *testing.B) {
	var c ecs.Converter
	var doc []byte
	for _, name := range []string{"tcp.connection", "tcp.state_change", "tcp.leak"} {
		text, err := os.ReadFile("testdata/" + name + ".json")
		if err != nil {
			b.Fatal(err)
		}
		line, _, _ := bytes.Cut(text, []byte("\n"))
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			for b.Loop() {
				doc, err = c.Append(doc[:0], line)
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(doc))/float64(len(line)), "size")
		})
	}
}

// TestAllocatesLittle: two addresses, as strings to be parsed, are all.
func TestAllocatesLittle(t *testing.T) {
	var c ecs.Converter
	var doc []byte
	for _, line := range lines(t) {
		text := []byte(line)
		if n := testing.AllocsPerRun(20, func() { doc, _ = c.Append(doc[:0], text) }); n > 2 {
			t.Errorf("%v allocations for %s", n, line)
		}
	}
}
