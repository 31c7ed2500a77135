// SPDX-License-Identifier: Apache-2.0

package http

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/stated-tcp/stated/pkg/ecs"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

const docs = "../../../cmd/stated/docs/collectors/"

// victoriaLogs starts the real one and makes the sinks of victorialogs.yaml.
func victoriaLogs(t *testing.T) (d *sinktest.Daemon, address string, configs []Config) {
	root := sinktest.Collectors(t)
	text, err := os.ReadFile(docs + "victorialogs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	address = sinktest.FreePort(t, "tcp")
	var file struct {
		Sinks []struct{ HTTP Config }
	}
	text = []byte(strings.NewReplacer("127.0.0.1:9428", address, "/etc/stated/hec-token", string(token(t))).Replace(string(text)))
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, s := range file.Sinks {
		configs = append(configs, s.HTTP)
	}
	d = sinktest.StartDaemon(t, []string{root + "/victoria-logs", "-storageDataPath=" + t.TempDir(), "-httpListenAddr=" + address,
		"-retentionPeriod=100y", "-futureRetention=100y"}) // whatever the clock says of the records' time
	return d, address, configs
}

// entries reads all that VictoriaLogs has: text by name, for each uid.
func entries(address string) map[string]map[string]string {
	all := make(map[string]map[string]string)
	answer, err := http.PostForm("http://"+address+"/select/logsql/query", url.Values{"query": {"*"}})
	if err != nil {
		return all
	}
	defer answer.Body.Close()
	in := bufio.NewScanner(answer.Body)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var e map[string]string
		if json.Unmarshal(in.Bytes(), &e) != nil {
			continue
		}
		if _, ok := e["event.event.name"]; ok { // by Splunk's preset
			inner := make(map[string]string)
			for key, value := range e {
				inner[strings.TrimPrefix(key, "event.")] = value
			}
			e = inner
		}
		all[e["log.record.uid"]+e["event.id"]] = e
	}
	return all
}

// nanoseconds makes a time of VictoriaLogs, without zeros at its end, that of a record.
func nanoseconds(text string) string {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return text
	}
	return at.UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// TestVictoriaLogs: by each preset, what the real one stored is what was sent,
// also when it is stopped during batches.
func TestVictoriaLogs(t *testing.T) {
	d, address, configs := victoriaLogs(t)
	for _, cfg := range configs {
		t.Run(cfg.Preset, func(t *testing.T) {
			s, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var all []sink.Record
			attempts := 0
			for range 3 {
				restarted := make(chan struct{})
				go func() {
					defer close(restarted)
					d.Stop()
					d.Start(t)
				}()
				batch := sinktest.Records(1000)
				attempts += sinktest.Insist(t, s, batch)
				all = append(all, batch...)
				<-restarted
			}
			var got map[string]map[string]string
			await(t, all, func() map[string]map[string]string { got = entries(address); return got })
			store := sinktest.NewStore()
			for _, r := range all {
				e := got[r.UID]
				store.Add(r.UID, sinktest.Typed(r.Event, func(key string) (string, bool) {
					value, ok := e[key]
					switch {
					case key == "message":
						value, ok = e["_msg"]
					case key == "timestamp" && !ok: // it became _time
						value, ok = nanoseconds(e["_time"]), true
					}
					return value, ok
				}))
			}
			sinktest.Stored(t, store, all)
			t.Logf("%d records stored as they were sent, in %d attempts", len(all), attempts)
		})
	}
}

// await reads until all of a batch is there.
func await[E any](t *testing.T, batch []sink.Record, read func() map[string]E) {
	t.Helper()
	sinktest.Await(t, "all records are stored", func() bool {
		got := read()
		return !slices.ContainsFunc(batch, func(r sink.Record) bool {
			_, ok := got[r.UID]
			return !ok
		})
	})
}

// TestVictoriaLogsECS: documents of ECS by _bulk.
func TestVictoriaLogsECS(t *testing.T) {
	_, address, configs := victoriaLogs(t)
	s, err := New(configs[slices.IndexFunc(configs, func(c Config) bool { return c.Preset == "elasticsearch" })])
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Records(100)
	var c ecs.Converter
	for i := range batch {
		if batch[i].Line, err = c.Append(nil, batch[i].Line); err != nil {
			t.Fatal(err)
		}
	}
	sinktest.Insist(t, s, batch)
	var got map[string]map[string]string
	await(t, batch, func() map[string]map[string]string { got = entries(address); return got })
	for _, r := range batch {
		want := make(map[string]string)
		if err := flatten(want, "", r.Line); err != nil {
			t.Fatal(err)
		}
		e := got[r.UID]
		e["message"], e["@timestamp"] = e["_msg"], nanoseconds(e["_time"])
		maps.DeleteFunc(e, func(key, _ string) bool { return key[0] == '_' })
		if !maps.Equal(e, want) {
			t.Fatalf("stored %v\nsent   %v", e, want)
		}
	}
}

// flatten adds the fields of nested objects as text by their dotted names.
func flatten(to map[string]string, prefix string, object []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(object, &fields); err != nil {
		return err
	}
	for key, raw := range fields {
		var text string
		switch {
		case raw[0] == '{':
			if err := flatten(to, prefix+key+".", raw); err != nil {
				return err
			}
			continue
		case json.Unmarshal(raw, &text) != nil:
			text = string(raw)
		}
		to[prefix+key] = text
	}
	return nil
}

var update = flag.Bool("update", false, "rewrite clickhouse.sql")

// clickhouseTypes are the types of columns for those of the schema. Numbers may
// be absent; of text, absent is empty. Lists have no column: the version that
// the tests have cannot read them as text.
var clickhouseTypes = map[string]string{"string": "String", "integer": "Nullable(Int64)", "number": "Nullable(Float64)", "boolean": "Nullable(UInt8)"}

// columns are the fields that have a column, and its type.
func columns() map[string]string {
	all := make(map[string]string)
	for _, record := range render.SchemaRecords() {
		for key, kind := range sinktest.Types(record) {
			if c, ok := clickhouseTypes[kind]; ok && slices.Contains(sink.EventNames, record) {
				all[key] = c
			}
		}
	}
	return all
}

// TestClickHouseTable: clickhouse.sql has all fields of the schema.
func TestClickHouseTable(t *testing.T) {
	var b strings.Builder
	b.WriteString(`-- A table for stated's sink http, preset clickhouse, with a column for each field
-- of 'stated schema' but the lists. Columns may be left out: so are their fields.
-- The tests of pkg/sink/http run it against ClickHouse 18.16. The timestamp is
-- text, which sorts by time.
CREATE TABLE stated
(
`)
	all := columns()
	for i, key := range slices.Sorted(maps.Keys(all)) {
		comma := ","
		if i == len(all)-1 {
			comma = ""
		}
		fmt.Fprintf(&b, "    `%s` %s%s\n", key, all[key], comma)
	}
	b.WriteString(")\nENGINE = MergeTree\nORDER BY (`event.name`, `timestamp`)\n")
	if *update {
		if err := os.WriteFile(docs+"clickhouse.sql", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(docs + "clickhouse.sql"); err != nil || string(got) != b.String() {
		t.Errorf("clickhouse.sql does not fit the schema (%v); go test ./pkg/sink/http -update writes it anew", err)
	}
}

const clickhouseServer = `<yandex>
  <logger><console>1</console><level>warning</level></logger>
  <http_port>%s</http_port><listen_host>127.0.0.1</listen_host>
  <path>%[2]s/</path><tmp_path>%[2]s/tmp/</tmp_path><mark_cache_size>1048576</mark_cache_size>
  <users_config>%[2]s/users.xml</users_config><default_profile>default</default_profile><default_database>default</default_database>
</yandex>
`

const clickhouseUsers = `<yandex><profiles><default/></profiles><quotas><default/></quotas><users>
  <default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default>
  <stated><password>s3cret</password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></stated>
</users></yandex>
`

// TestClickHouse: what the real one stored is what was sent, also after it was
// killed during a batch; and what it says of bad rows is understood.
func TestClickHouse(t *testing.T) {
	root := sinktest.Collectors(t)
	address, dir := sinktest.FreePort(t, "tcp"), t.TempDir()
	_, port, _ := strings.Cut(address, ":")
	for name, text := range map[string]string{"config.xml": fmt.Sprintf(clickhouseServer, port, dir), "users.xml": clickhouseUsers} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := sinktest.StartDaemon(t, []string{root + "/usr/sbin/clickhouse-server", "--config-file=" + filepath.Join(dir, "config.xml")})
	query := func(text string) (string, error) {
		answer, err := http.Post("http://"+address+"/", "text/plain", strings.NewReader(text))
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err == nil && answer.StatusCode != 200 {
			err = fmt.Errorf("%.60s: %s", text, body)
		}
		return string(body), err
	}
	sinktest.Await(t, "ClickHouse answers", func() bool { _, err := query("SELECT 1"); return err == nil })
	table, err := os.ReadFile(docs + "clickhouse.sql")
	if err == nil {
		_, err = query(string(table))
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Preset: "clickhouse", HTTP: transport.HTTP{URL: "http://" + address, User: "stated", PasswordFile: token(t)}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var all []sink.Record
	attempts := 0
	for range 3 {
		batch := sinktest.Records(1000)
		restarted := make(chan struct{})
		go func() {
			defer close(restarted)
			d.Kill()
			d.Start(t)
		}()
		attempts += sinktest.Insist(t, s, batch)
		all = append(all, batch...)
		<-restarted
	}
	sinktest.Await(t, "ClickHouse answers", func() bool { _, err := query("SELECT 1"); return err == nil })
	stored, err := query("SELECT * FROM stated FORMAT JSONEachRow")
	if err != nil {
		t.Fatal(err)
	}
	sinktest.Stored(t, rows(t, stored, all), all)
	t.Logf("%d records stored as they were sent, in %d attempts", len(all), attempts)

	bad := sinktest.Records(3)
	bad[1].Line = []byte(`{"stated.seq":"many"}`)
	if got := verdict(sinktest.Send(t.Context(), s, bad)); got != "split" {
		t.Errorf("a batch with a row that does not fit: %s", got)
	}
	if got := verdict(sinktest.Send(t.Context(), s, bad[1:2])); got != "rejected [0]" {
		t.Errorf("a row that does not fit: %s", got)
	}
	if _, err := query("DROP TABLE stated"); err != nil {
		t.Fatal(err)
	}
	if got := verdict(sinktest.Send(t.Context(), s, bad[:1])); got != "retry after 0s" {
		t.Errorf("no table: %s", got)
	}
}

// rows makes records of ClickHouse's rows. Lists, which have no column, are
// taken from what was sent.
func rows(t *testing.T, stored string, sent []sink.Record) *sinktest.Store {
	t.Helper()
	lists := make(map[string]map[string]any)
	for _, r := range sent {
		var fields map[string]any
		if err := json.Unmarshal(r.Line, &fields); err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(fields, func(_ string, v any) bool { _, list := v.([]any); return !list })
		lists[r.UID] = fields
	}
	store := sinktest.NewStore()
	types := columns()
	for line := range strings.Lines(stored) {
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber() // 64-bit integers come as strings
		var row map[string]any
		if err := d.Decode(&row); err != nil {
			t.Fatal(err)
		}
		for key, v := range row {
			if v == nil || v == "" {
				delete(row, key)
			} else if types[key] == clickhouseTypes["boolean"] {
				row[key] = v == json.Number("1")
			} else if types[key] != clickhouseTypes["string"] {
				row[key] = json.Number(fmt.Sprint(v))
			}
		}
		uid, _ := row["log.record.uid"].(string)
		maps.Copy(row, lists[uid])
		b, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		store.Add(uid, b)
	}
	return store
}
