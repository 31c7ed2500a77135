// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
)

func record(t *testing.T, event, level, rest string) sink.Record {
	t.Helper()
	line := fmt.Sprintf(`{"schema":"stated/1","timestamp":"2026-11-23T16:00:00.123456789Z","event.name":"%s","severity_text":"%s","log.record.uid":"u-1"%s}`, event, level, rest)
	r, err := sink.Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSelector(t *testing.T) {
	nginx := map[string][]string{"process.executable.name": {"nginx", "a\\b"}, "network.peer.port": {"443"}}
	for _, tc := range []struct {
		cfg         SinkConfig
		event, rest string
		want        bool
	}{
		{SinkConfig{}, "tcp.connection", "", true},
		{SinkConfig{}, "tcp.leak", "", true},
		{SinkConfig{}, "tcp.state_change", "", false},
		{SinkConfig{Records: []string{"tcp.state_change"}}, "tcp.state_change", "", true},
		{SinkConfig{Records: []string{"tcp.state_change"}}, "tcp.connection", "", false},
		{SinkConfig{Records: []string{"tcp.state_change"}, Match: nginx}, "stated.gap", "", true},
		{SinkConfig{Match: nginx}, "tcp.connection", `,"network.peer.port":443,"process.executable.name":"nginx"`, true},
		{SinkConfig{Match: nginx}, "tcp.connection", `,"network.peer.port":443,"process.executable.name":"a\\b"`, true},
		{SinkConfig{Match: nginx}, "tcp.connection", `,"network.peer.port":44,"process.executable.name":"nginx"`, false},
		{SinkConfig{Match: nginx}, "tcp.connection", `,"network.peer.port":443`, false},
	} {
		r := record(t, tc.event, "INFO", tc.rest)
		if got := newSelector(&tc.cfg).want(&r); got != tc.want {
			t.Errorf("%+v: %s %s: %v", tc.cfg, tc.event, tc.rest, got)
		}
	}
}

// TestFormat: the sink gets documents of ECS, sampled ones too, and gaps.
func TestFormat(t *testing.T) {
	s := newSelector(&SinkConfig{Format: "ecs", Sample: SampleConfig{ShorterThan: time.Hour, Rate: 1}, Match: map[string][]string{"host.name": {"web"}}})
	for _, event := range []string{"tcp.connection", "stated.gap"} {
		r := record(t, event, "INFO", `,"host.name":"web","stated.connection.duration_ns":1,"stated.connection.complete":true`)
		var doc struct {
			Time   string `json:"@timestamp"`
			Host   struct{ Name string }
			Event  struct{ Action string }
			Stated struct{ Sample struct{ Rate float64 } }
		}
		if !s.want(&r) || json.Unmarshal(r.Line, &doc) != nil {
			t.Fatalf("%s", r.Line)
		}
		if doc.Time != "2026-11-23T16:00:00.123456789Z" || doc.Host.Name != "web" || doc.Event.Action != event || (doc.Stated.Sample.Rate == 1) != (event == "tcp.connection") {
			t.Errorf("%s", r.Line)
		}
	}
	torn := sink.Record{Event: "stated.gap", Line: []byte(`{"torn`)}
	if !s.want(&torn) || string(torn.Line) != `{"torn` {
		t.Errorf("what is no JSON became %s", torn.Line)
	}
}

// Only connections that ended well, are complete and short are sampled; what is
// left says the rate; two sinks have the same ones.
func TestSample(t *testing.T) {
	cfg := &SinkConfig{Sample: SampleConfig{ShorterThan: time.Second, Rate: 0.1}}
	a, b := newSelector(cfg), newSelector(cfg)
	const n = 20000
	kept := 0
	for i := range n {
		rest := fmt.Sprintf(`,"stated.connection.id":"%032x","stated.connection.duration_ns":999999999,"stated.connection.complete":true`, i*4096)
		r, r2 := record(t, "tcp.connection", "INFO", rest), record(t, "tcp.connection", "INFO", rest)
		want := a.want(&r)
		if b.want(&r2) != want {
			t.Fatal("two sinks disagree")
		}
		if !want {
			continue
		}
		kept++
		var fields map[string]any
		if err := json.Unmarshal(r.Line, &fields); err != nil || fields["stated.sample.rate"] != 0.1 {
			t.Fatalf("%v: %s", err, r.Line)
		}
	}
	if kept < n/12 || kept > n/8 {
		t.Errorf("%d of %d are no tenth", kept, n)
	}
	for _, always := range [][3]string{
		{"tcp.connection", "WARN", `"stated.connection.duration_ns":1,"stated.connection.complete":true`},
		{"tcp.connection", "INFO", `"stated.connection.duration_ns":1,"stated.connection.complete":false`},
		{"tcp.connection", "INFO", `"stated.connection.duration_ns":1000000000,"stated.connection.complete":true`},
		{"tcp.connection", "INFO", `"stated.connection.complete":true`},
		{"tcp.leak", "WARN", `"stated.leak.sockets":1`},
		{"stated.gap", "ERROR", `"stated.gap.events":1`},
	} {
		for i := range 100 {
			r := record(t, always[0], always[1], fmt.Sprintf(`,"stated.connection.id":"%032x",%s`, i, always[2]))
			line := string(r.Line)
			if !a.want(&r) || string(r.Line) != line {
				t.Fatalf("%v was sampled", always)
			}
		}
	}
}
