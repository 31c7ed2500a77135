// SPDX-License-Identifier: Apache-2.0

package http

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// stub serves one path. read gives each record of a body to keep, and the
// answer comes only then.
func stub(path string, kind string, answer func(n int) string, read func(body []byte, keep func([]byte)) error) func(net.Listener, *sinktest.Store) {
	return func(l net.Listener, store *sinktest.Store) {
		http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			z, err := gzip.NewReader(r.Body)
			if err != nil || r.URL.Path != path || r.Header.Get("Content-Type") != kind {
				http.Error(w, fmt.Sprint(r.URL, err), 404)
				return
			}
			body, err := io.ReadAll(z)
			n := 0
			if err == nil {
				err = read(body, func(line []byte) {
					var m struct {
						UID string `json:"log.record.uid"`
					}
					json.Unmarshal(line, &m)
					store.Add(m.UID, line)
					n++
				})
			}
			if err != nil {
				http.Error(w, err.Error(), 404)
				return
			}
			io.WriteString(w, answer(n))
		}))
	}
}

func lines(body []byte, keep func([]byte)) error {
	s := bufio.NewScanner(bytes.NewReader(body))
	for s.Scan() {
		keep(s.Bytes())
	}
	return s.Err()
}

func token(t *testing.T) transport.Secret {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return transport.Secret(path)
}

func TestPresets(t *testing.T) {
	secret := token(t)
	none := func(int) string { return "" }
	for _, p := range []struct {
		cfg   Config
		serve func(net.Listener, *sinktest.Store)
	}{
		{Config{Preset: "ndjson"}, stub("/", "application/x-ndjson", none, lines)},
		{Config{Preset: "clickhouse"}, stub("/", "application/x-ndjson", none, lines)},
		{Config{Preset: "loki", Labels: map[string]string{"team": "net"}}, stub("/loki/api/v1/push", "application/json", none, readLoki)},
		{Config{Preset: "elasticsearch"}, stub("/_bulk", "application/x-ndjson", func(n int) string {
			return `{"errors":false,"items":[` + strings.Repeat(`{"create":{"status":201}},`, n-1) + `{"create":{"status":201}}]}`
		}, readBulk)},
		{Config{Preset: "splunk_hec", Index: "net", HTTP: transport.HTTP{TokenFile: secret}}, stub("/services/collector/event", "application/json",
			func(int) string { return `{"text":"Success","code":0}` }, readSplunk)},
	} {
		t.Run(p.cfg.Preset, func(t *testing.T) {
			sinktest.TestProtocol(t, sinktest.Protocol{Acked: true, Serve: p.serve, Open: func(address string, secure *transport.TLS) (sink.Sink, error) {
				cfg := p.cfg
				cfg.URL, cfg.HTTP.TLS = "http://"+address, secure
				if secure != nil {
					cfg.URL = "https://" + address
				}
				return New(cfg)
			}})
		})
	}
}

func readLoki(body []byte, keep func([]byte)) error {
	var push struct {
		Streams []struct {
			Stream map[string]string
			Values [][2]string
		}
	}
	if err := json.Unmarshal(body, &push); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, s := range push.Streams {
		labels := fmt.Sprint(s.Stream)
		if seen[labels] || s.Stream["service_name"] != "stated" || s.Stream["host_name"] != "web-1" || s.Stream["team"] != "net" {
			return fmt.Errorf("stream %s", labels)
		}
		seen[labels] = true
		for _, v := range s.Values {
			if !strings.Contains(v[1], fmt.Sprintf(`"event.name":%q`, s.Stream["event_name"])) || len(v[0]) != 19 {
				return fmt.Errorf("entry %v of %s", v, labels)
			}
			keep([]byte(v[1]))
		}
	}
	return nil
}

func readBulk(body []byte, keep func([]byte)) error {
	var action struct {
		Create struct {
			Index string `json:"_index"`
			ID    string `json:"_id"`
		}
	}
	return lines(body, func(b []byte) {
		if action.Create.ID == "" {
			json.Unmarshal(b, &action)
			return
		}
		var m map[string]any
		json.Unmarshal(b, &m)
		if m["@timestamp"] == m["timestamp"] && m["log.record.uid"] == action.Create.ID && action.Create.Index == "logs-stated-default" {
			delete(m, "@timestamp")
			b, _ = json.Marshal(m)
			keep(b)
		}
		action.Create.ID = ""
	})
}

func readSplunk(body []byte, keep func([]byte)) error {
	for d := json.NewDecoder(bytes.NewReader(body)); d.More(); {
		var e struct {
			Time        json.Number
			Host, Index string
			Event       json.RawMessage
		}
		if err := d.Decode(&e); err != nil {
			return err
		}
		if len(e.Time) != 20 || e.Host != "web-1" || e.Index != "net" {
			return fmt.Errorf("event %+v", e)
		}
		keep(e.Event)
	}
	return nil
}

func TestAnswers(t *testing.T) {
	secret := token(t)
	bulk := func(status ...int) string {
		var items []string
		for _, s := range status {
			items = append(items, fmt.Sprintf(`{"create":{"status":%d,"error":{"type":"t","reason":"r"}}}`, s))
		}
		return `{"errors":true,"items":[` + strings.Join(items, ",") + `]}`
	}
	for _, test := range []struct {
		preset string
		status int
		code   string // of ClickHouse
		body   string
		n      int
		want   string
	}{
		{"ndjson", 429, "", "", 3, "retry after 5s"},
		{"ndjson", 400, "", "", 3, "split"},
		{"ndjson", 422, "", "", 1, "rejected [0]"},
		{"elasticsearch", 200, "", bulk(201, 400, 409), 3, "rejected [1]"},
		{"elasticsearch", 200, "", bulk(201, 409, 200), 3, "taken"},
		{"elasticsearch", 200, "", bulk(400, 429, 201), 3, "retry after 5s"},
		{"elasticsearch", 200, "", bulk(201, 403, 201), 3, "retry after 5s"}, // a full disk makes indexes read-only
		{"elasticsearch", 200, "", bulk(201, 400), 3, "temporary"},
		{"elasticsearch", 200, "", "<html>", 3, "temporary"},
		{"elasticsearch", 200, "", "{}", 3, "temporary"},
		{"elasticsearch", 413, "", "", 3, "split"},
		{"loki", 400, "", "entry too far behind", 2, "split"},
		{"clickhouse", 500, "27", "Cannot parse input", 3, "split"},
		{"clickhouse", 400, "117", "", 1, "rejected [0]"},
		{"clickhouse", 200, "241", "Memory limit exceeded", 3, "retry after 5s"},
		{"clickhouse", 400, "62", "Syntax error", 3, "retry after 5s"},
		{"clickhouse", 500, "", "Code: 27, e.displayText() = DB::Exception: Cannot parse input", 3, "split"}, // 18.16
		{"clickhouse", 200, "", "Code: 27. DB::Exception: Cannot parse input", 1, "rejected [0]"},
		{"clickhouse", 500, "", "Code: 241. DB::Exception: Memory limit", 1, "retry after 5s"},
		{"clickhouse", 404, "60", "Unknown table", 1, "retry after 5s"},
		{"splunk_hec", 400, "", `{"text":"Invalid data format","code":6,"invalid-event-number":1}`, 3, "split"},
		{"splunk_hec", 400, "", `{"text":"Incorrect index","code":7}`, 3, "retry after 5s"},
		{"splunk_hec", 503, "", `{"text":"Server is busy","code":9}`, 3, "retry after 5s"},
		{"splunk_hec", 200, "", `sign in`, 3, "temporary"},
		{"splunk_hec", 413, "", ``, 3, "split"},
	} {
		c := sinktest.StartCollector(t, nil, func(l net.Listener, _ *sinktest.Store) {
			http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Splunk s3cret" && test.preset == "splunk_hec" {
					w.WriteHeader(401)
					return
				}
				w.Header().Set("Retry-After", "5")
				if test.code != "" {
					w.Header().Set("X-ClickHouse-Exception-Code", test.code)
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
		})
		cfg := Config{Preset: test.preset, HTTP: transport.HTTP{URL: "http://" + c.Address}}
		if test.preset == "splunk_hec" {
			cfg.TokenFile = secret
		}
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := verdict(sinktest.Send(t.Context(), s, sinktest.Records(test.n))); got != test.want {
			t.Errorf("%s: %d %q %s: %s, want %s", test.preset, test.status, test.body, test.code, got, test.want)
		}
		s.Close()
		c.Kill()
	}
}

func verdict(err error) string {
	var retry *sink.Retry
	var rejected *sink.Rejected
	var large *sink.TooLarge
	switch {
	case err == nil:
		return "taken"
	case errors.As(err, &rejected):
		return fmt.Sprintf("rejected %v", rejected.Indexes)
	case errors.As(err, &large):
		return "split"
	case errors.As(err, &retry):
		return fmt.Sprintf("retry after %v", retry.After)
	}
	return "temporary"
}

// TestBroken: what is no JSON is rejected, and the indexes that the collector
// names are those of the others.
func TestBroken(t *testing.T) {
	c := sinktest.StartCollector(t, nil, func(l net.Listener, _ *sinktest.Store) {
		http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, password, _ := r.BasicAuth()
			if user != "u" || password != "s3cret" || r.Header.Get("X-Scope-OrgID") != "tenant" {
				w.WriteHeader(401)
				return
			}
			io.WriteString(w, `{"errors":true,"items":[{"create":{"status":201}},{"create":{"status":400}}]}`)
		}))
	})
	s, err := New(Config{Preset: "elasticsearch", HTTP: transport.HTTP{
		URL: "http://" + c.Address, User: "u", PasswordFile: token(t), Headers: map[string]string{"X-Scope-OrgID": "tenant"}, Compression: "none"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Records(3)
	batch[0].Line = []byte(`{"torn`)
	if got := verdict(s.Send(context.Background(), batch)); got != "rejected [0 2]" {
		t.Error(got)
	}
}

// TestECS: a document of ECS is understood as the record that it is.
func TestECS(t *testing.T) {
	r := sinktest.Records(1)[0]
	r.Line = []byte(`{"@timestamp":"2026-11-18T11:06:40Z","host":{"boot":{"id":"b"},"name":"web-1"}}`)
	f, err := read(&r)
	if err != nil || string(f.host) != "web-1" || !f.atTimestamp {
		t.Errorf("%+v, %v", f, err)
	}
	if body := string(elasticsearch{index: "i"}.add(nil, &r, &f)); strings.Count(body, "@timestamp") != 1 {
		t.Error(body)
	}
}

func TestConfig(t *testing.T) {
	h := transport.HTTP{URL: "http://h"}
	for _, cfg := range []Config{
		{HTTP: h}, {Preset: "kafka", HTTP: h}, {Preset: "ndjson"}, {Preset: "ndjson", HTTP: h, Index: "x"}, {Preset: "loki", HTTP: h, Labels: map[string]string{"a-b": "c"}},
		{Preset: "clickhouse", HTTP: h, Table: "a; DROP TABLE b"}, {Preset: "elasticsearch", HTTP: h, Index: "Up"}, {Preset: "splunk_hec", HTTP: h},
		{Preset: "elasticsearch", HTTP: h, Table: "t"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
	s, err := New(Config{Preset: "clickhouse", HTTP: transport.HTTP{URL: "http://h:8123/?database=net&wait_end_of_query=0"}})
	if err != nil {
		t.Fatal(err)
	}
	if q := s.client.URL.Query(); q.Get("wait_end_of_query") != "0" || q.Get("database") != "net" || q.Get("query") != "INSERT INTO stated FORMAT JSONEachRow" {
		t.Errorf("query %v", q)
	}
}
