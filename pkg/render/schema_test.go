// SPDX-License-Identifier: Apache-2.0

package render

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// compile makes a validator of a schema, which must itself be valid.
func compile(t *testing.T, record string) *jsonschema.Schema {
	t.Helper()
	text, err := Schema(record)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatalf("the schema of %q is no JSON: %v", record, err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// schemas are the schema of all records, under "", and those of each.
func schemas(t *testing.T) map[string]*jsonschema.Schema {
	all := map[string]*jsonschema.Schema{"": compile(t, "")}
	for _, record := range SchemaRecords() {
		all[record] = compile(t, record)
	}
	return all
}

// validate checks a line against the schema of all records and its own, and
// returns it.
func validate(t *testing.T, all map[string]*jsonschema.Schema, line string) map[string]any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
	if err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	record := v.(map[string]any)
	name, _ := record["event.name"].(string)
	if all[name] == nil || name == "" {
		t.Fatalf("no schema for %q", name)
	}
	if err := all[name].Validate(v); err != nil {
		t.Errorf("%v\n%s", err, line)
	}
	if err := all[""].Validate(v); err != nil {
		t.Errorf("valid as %s, but not as one of all: %v", name, err)
	}
	return record
}

func TestSchemaHoldsGolden(t *testing.T) {
	all := schemas(t)
	paths, err := filepath.Glob("testdata/*json.golden")
	if err != nil || len(paths) == 0 {
		t.Fatal("no golden files: ", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			validate(t, all, line)
		}
	}
}

// variants renders connections that between them have every value that can
// stand in a record.
func variants(w *Writer) {
	vary := func(f func(*lifecycle.Conn)) {
		for _, c := range conns() {
			f(c)
			w.Finished(c)
			w.Transition(c, &event.Event{Kind: event.KindState, Time: c.Until(), Old: event.StateEstablished, New: c.State, CPU: 1<<16 - 1})
			w.Transition(c, &event.Event{Kind: event.KindHolder, Time: c.Until(), Old: c.State, New: c.State, Flags: event.FlagPartial})
		}
	}
	for from := event.StateEstablished; from < event.NumStates; from++ {
		for to := event.StateEstablished; to < event.NumStates; to++ {
			w.Transition(conns()[0], &event.Event{Kind: event.KindState, Time: 3400 * ms, Old: from, New: to, Err: uint16(from)})
		}
	}
	for i := range vocabulary(func(i int) string { return lifecycle.Role(i).String() }) {
		vary(func(c *lifecycle.Conn) { c.Role = lifecycle.Role(i) })
	}
	for i := range vocabulary(func(i int) string { return event.OwnerSource(i).String() }) {
		vary(func(c *lifecycle.Conn) { c.Owner.Source = event.OwnerSource(i) })
	}
	for i := range vocabulary(func(i int) string { return event.ResetReason(i).String() }) {
		vary(func(c *lifecycle.Conn) { c.Reset = event.ResetReason(i) })
	}
	for i := range vocabulary(func(i int) string { return lifecycle.Initiator(i).String() }) {
		vary(func(c *lifecycle.Conn) { c.Initiator = lifecycle.Initiator(i) })
	}
	for s := event.StateEstablished; s < event.NumStates; s++ {
		vary(func(c *lifecycle.Conn) { c.State, c.Spans, c.End = s, beginIn(s, &c.Spans), 0 })
	}
	vary(func(c *lifecycle.Conn) { c.OwnID, c.Netns, c.SRTT = true, 0, 0 })
	vary(func(c *lifecycle.Conn) { c.Kernel = true })
	vary(func(c *lifecycle.Conn) { c.Protocol, c.Cgroup, c.UID = event.ProtoMPTCP, 1<<63, 1<<32-1 })
	vary(func(c *lifecycle.Conn) { c.Subflow, c.Socket, c.Netns = true, 1<<64-1, 1<<32-1 })
	whole := &lifecycle.Rare{Multipath: &lifecycle.Multipath{Socket: 1<<64 - 1, FirstEvent: 1<<63 - 1, Subflows: 2}}
	vary(func(c *lifecycle.Conn) { c.Protocol, c.Rare = event.ProtoMPTCP, whole })
	vary(func(c *lifecycle.Conn) { c.Subflow, c.Rare = true, whole })
	vary(func(c *lifecycle.Conn) { c.Local, c.Peer = lifecycle.Endpoint{}, lifecycle.Endpoint{} })
	vary(func(c *lifecycle.Conn) { c.Local = lifecycle.EndpointOf(netip.AddrPortFrom(c.Local.Addr(), 0)) })
	vary(func(c *lifecycle.Conn) { c.Owner.Comm, c.Err = event.Comm{}, 133 })
	vary(func(c *lifecycle.Conn) { c.FromStart, c.Gap = false, false })

	// a connection that is over while its descriptor is open
	table := lifecycle.New(shower{w}, lifecycle.Options{})
	e := event.Event{Kind: event.KindState, Socket: 7, Time: 1000 * ms, Old: event.StateClose, New: event.StateSynSent}
	table.Apply(&e)
	e.Time, e.Old, e.New = 1001*ms, event.StateSynSent, event.StateClose
	table.Apply(&e)
	table.Flush()
	w.Lost(&event.Event{Kind: event.KindLost, Time: 5000 * ms, Count: 1<<64 - 1})
}

// beginIn returns the path with another first state.
func beginIn(state event.State, path *lifecycle.Path) (p lifecycle.Path) {
	for i, s := range path.All() {
		if i == 0 {
			s.State = state
		}
		p.Add(s)
	}
	return p
}

// shower renders what a table says.
type shower struct{ w *Writer }

func (s shower) Transition(c *lifecycle.Conn, e *event.Event) { s.w.Transition(c, e) }
func (s shower) Finished(c *lifecycle.Conn)                   { s.w.Finished(c) }

// TestSchemaHoldsEveryValue: whatever value a field takes, the schema allows
// it, and the schema allows no field that no record has.
func TestSchemaHoldsEveryValue(t *testing.T) {
	all := schemas(t)
	whole := host
	whole.ID = "0123456789abcdef0123456789abcdef"
	seen := make(map[string]map[string]bool) // record, key
	for _, h := range []Host{host, whole, {}} {
		var b strings.Builder
		w := New(&b, Options{Format: FormatJSON, Host: h, Processes: knowAll})
		w.SetClock(0, 1_700_000_000_000_000_000)
		every(w)
		if h.ID != "" {
			variants(w)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if strings.Contains(line, `"tcp.connection"`) {
				b.Write(append(AppendSampled(nil, []byte(strings.TrimSuffix(line, "\n")), 0.25), '\n'))
				break
			}
		}
		for _, damaged := range []bool{true, false} {
			b.Write(append(GapRecord(h, Gap{UID: "run-gap-a-7", Wall: 1e18, Stage: "spool", Sink: "a", Records: 12, Damaged: damaged}), '\n'))
		}
		for line := range strings.Lines(b.String()) {
			record := validate(t, all, line)
			if t.Failed() {
				t.FailNow() // one is enough to read
			}
			name := record["event.name"].(string)
			if seen[name] == nil {
				seen[name] = make(map[string]bool)
			}
			for key := range record {
				seen[name][key] = true
			}
		}
	}
	for name, keys := range seen {
		for key := range properties(t, name) {
			if !keys[key] {
				t.Errorf("the schema allows %s in %s, but no record had it", key, name)
			}
		}
	}
}

// schemaNode is a part of a schema, as far as the tests look at it.
type schemaNode struct {
	Ref         string                `json:"$ref"`
	Description string                `json:"description"`
	Type        string                `json:"type"`
	Enum        []string              `json:"enum"`
	AllOf       []schemaNode          `json:"allOf"`
	Properties  map[string]schemaNode `json:"properties"`
	Items       *schemaNode           `json:"items"`
	Additional  *bool                 `json:"additionalProperties"`
	Unevaluated *bool                 `json:"unevaluatedProperties"`
}

func definitions(t *testing.T) map[string]schemaNode {
	t.Helper()
	defs := make(map[string]schemaNode)
	for _, d := range parseSchema().defs {
		// "if" stands beside properties that are false; only what is plain is read
		var n schemaNode
		if err := json.Unmarshal(d.text, &n); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		defs[d.name] = n
	}
	return defs
}

// properties are the keys that a definition allows, its parts' included.
func properties(t *testing.T, name string) map[string]schemaNode {
	defs := definitions(t)
	all := make(map[string]schemaNode)
	var add func(n schemaNode)
	add = func(n schemaNode) {
		maps.Copy(all, n.Properties)
		if n.Ref != "" {
			add(defs[strings.TrimPrefix(n.Ref, refPrefix)])
		}
		for _, part := range n.AllOf {
			add(part)
		}
	}
	add(defs[name])
	return all
}

// TestSchemaIsStrictAndSaysWhatItMeans: nothing unnamed gets through, and each
// field says what it is, with its unit.
func TestSchemaIsStrictAndSaysWhatItMeans(t *testing.T) {
	units := map[string]string{"_ns": "nanoseconds", "_us": "microseconds", "_bytes": "bytes"}
	var look func(where string, n schemaNode)
	look = func(where string, n schemaNode) {
		if n.Type == "object" && (n.Additional == nil || *n.Additional) && (n.Unevaluated == nil || *n.Unevaluated) {
			t.Errorf("%s takes any key", where)
		}
		for key, p := range n.Properties {
			fixed := key == "event.name" || key == "severity_text" // said in what all records have
			if p.Description == "" && !fixed {
				t.Errorf("%s: %s has no description", where, key)
			}
			for suffix, unit := range units {
				if strings.HasSuffix(key, suffix) && !strings.Contains(p.Description, unit) {
					t.Errorf("%s: %s does not say its unit: %q", where, key, p.Description)
				}
			}
			look(where+" "+key, p)
		}
		if n.Items != nil {
			look(where+"[]", *n.Items)
		}
	}
	defs := definitions(t)
	for name, n := range defs {
		look(name, n)
		for _, ref := range refPattern.FindAllSubmatch(schema, -1) {
			if _, ok := defs[string(ref[1])]; !ok {
				t.Fatalf("$ref to %s, which is not defined", ref[1])
			}
		}
	}
	for _, record := range SchemaRecords() {
		if n := defs[record]; n.Type != "object" || n.Unevaluated == nil {
			t.Errorf("%s is not closed", record)
		}
	}
}

// vocabulary lists the words of a String method, from 0 on: it ends where the
// method has no word, which it says by a panic or by the word for 0.
func vocabulary(name func(int) string) (words []string) {
	defer func() { recover() }()
	for i := 0; i < 256; i++ {
		word := name(i)
		if i > 0 && word == words[0] {
			break
		}
		words = append(words, word)
	}
	return words
}

// TestSchemaVocabularies: each enum of the schema has the words of the code,
// no more and no fewer.
func TestSchemaVocabularies(t *testing.T) {
	var states []string
	for s := event.StateEstablished; s < event.NumStates; s++ {
		states = append(states, s.Name(event.NamingOTel))
	}
	var causes []string // cause depends on these alone
	for kind := range vocabularyKinds {
		for from := event.StateNone; from < event.NumStates; from++ {
			for to := event.StateNone; to < event.NumStates; to++ {
				for o := range lifecycle.NumOutcomes {
					c := lifecycle.Conn{Outcome: lifecycle.Outcome(o)}
					causes = append(causes, cause(&c, &event.Event{Kind: kind, Old: from, New: to}))
				}
			}
		}
	}
	causes = append(causes, miniCauses[:]...)
	for where, want := range map[string][]string{
		"state":                                         states,
		"known":                                         vocabulary(func(i int) string { return lifecycle.Known(i).String() }),
		"outcome":                                       vocabulary(func(i int) string { return lifecycle.Outcome(i).String() }),
		"endpoints stated.connection.role":              vocabulary(func(i int) string { return lifecycle.Role(i).String() }),
		"process stated.process.source":                 vocabulary(func(i int) string { return event.OwnerSource(i).String() }),
		"tcp.connection stated.close.initiator":         vocabulary(func(i int) string { return lifecycle.Initiator(i).String() }),
		"tcp.connection stated.reset.reason":            vocabulary(func(i int) string { return event.ResetReason(i).String() })[1:], // unknown is absent
		"tcp.state_change stated.state.cause":           causes,
		"tcp.connection severity_text":                  {"INFO", "WARN"},
		"socket stated.connection.role":                 vocabulary(func(i int) string { return lifecycle.Role(i).String() }),
		"tcp.leak stated.leak.opened_by":                vocabulary(func(i int) string { return lifecycle.Role(i).String() }),
		"tcp.leak_comparison stated.comparison.verdict": vocabulary(func(i int) string { return leak.Progress(i).String() }),
		"tcp.leak_comparison severity_text":             {"INFO", "WARN"},
		"tcp.leak stated.leak.verdict":                  vocabulary(func(i int) string { return leak.Verdict(i).String() }),
	} {
		name, property, _ := strings.Cut(where, " ")
		n := definitions(t)[name]
		if property != "" {
			n = n.Properties[property]
		}
		got := slices.Sorted(slices.Values(n.Enum))
		slices.Sort(want)
		if want = slices.Compact(want); !slices.Equal(got, want) || len(want) < 2 {
			t.Errorf("%s: the schema has %v, the code %v", where, got, want)
		}
	}
	if n := vocabulary(func(i int) string { return lifecycle.Outcome(i).String() }); len(n) != lifecycle.NumOutcomes {
		t.Errorf("%d outcomes found, want %d: the test does not see all words", len(n), lifecycle.NumOutcomes)
	}
}

// vocabularyKinds are the kinds that an observer sees a transition with.
var vocabularyKinds = map[event.Kind]bool{event.KindState: true, event.KindSnapshot: true, event.KindHolder: true, event.KindClock: true}

// TestSchemaRejects: the schema is there to find mistakes.
func TestSchemaRejects(t *testing.T) {
	all := schemas(t)
	good := func(name string) map[string]any {
		for line := range strings.Lines(render(Options{Format: FormatJSON}, every)) {
			if record := validate(t, all, line); record["event.name"] == name {
				return record
			}
		}
		t.Fatalf("no %s", name)
		return nil
	}
	for _, tc := range []struct {
		record, key string
		value       any // nil: without the key
	}{
		{"tcp.connection", "surprise", 1},
		{"tcp.connection", "stated.errno", json.Number("0")},
		{"tcp.connection", "stated.close.reason", "bored"},
		{"tcp.connection", "stated.close.reason", nil},
		{"tcp.connection", "process.pid", nil},
		{"tcp.connection", "network.local.address", "example.org"},
		{"tcp.connection", "network.local.port", "80"},
		{"tcp.connection", "timestamp", "2023-11-14T22:13:23Z"},
		{"tcp.connection", "timestamp", "2023-13-14T22:13:23.000000000Z"},
		{"tcp.connection", "stated.socket.cookie", json.Number("4098")},
		{"tcp.connection", "stated.connection.duration_ns", json.Number("-1")},
		{"tcp.connection", "stated.connection.complete", false}, // and no reason
		{"tcp.connection", "stated.connection.end", nil},
		{"tcp.connection", "network.connection.state", "established"}, // although it ended
		{"tcp.connection", "stated.connection.states", []any{map[string]any{"state": "closed", "known": "guessed"}}},
		{"tcp.connection", "stated.state.previous", "closed"}, // a key of another record
		{"tcp.state_change", "stated.snapshot", true},         // and a previous state
		{"tcp.state_change", "stated.state.previous_known", nil},
		{"stated.gap", "stated.gap.events", nil},
		{"stated.gap", "network.transport", "tcp"},
		{"stated.gap", "schema", "stated/2"},
	} {
		t.Run(fmt.Sprint(tc.record, " ", tc.key, " ", tc.value), func(t *testing.T) {
			record := good(tc.record)
			if tc.value == nil {
				delete(record, tc.key)
			} else {
				record[tc.key] = tc.value
			}
			if all[tc.record].Validate(record) == nil || all[""].Validate(record) == nil {
				t.Error("accepted")
			}
		})
	}
}
