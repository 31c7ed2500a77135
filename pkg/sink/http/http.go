// SPDX-License-Identifier: Apache-2.0

// Package http posts records to collectors that take JSON, in the form that a
// preset names.
package http

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/flat"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// Config says where records go and in which form.
type Config struct {
	// Preset is
	//   - ndjson: a record a line (Vector, Logstash, VictoriaLogs); any 2xx is
	//     the acknowledgement,
	//   - elasticsearch: _bulk, also OpenSearch's; each record is created with
	//     its uid as _id, so that none is stored twice,
	//   - loki: /loki/api/v1/push,
	//   - clickhouse: INSERT ... FORMAT JSONEachRow,
	//   - splunk_hec: the HTTP Event Collector, whose token is in token_file;
	//     the acknowledgement is of the receipt, not of the indexing.
	Preset string `yaml:"preset"`
	// HTTP has the URL, headers, credentials, compression and TLS. The path is
	// the preset's unless the URL has one.
	transport.HTTP `yaml:",inline"`
	// Index is Elasticsearch's index or data stream, logs-stated-default
	// unless set, or Splunk's index, the token's unless set.
	Index string `yaml:"index"`
	// Table is ClickHouse's, with its database before a dot if need be;
	// stated unless set. Fields that it has no column for are left out.
	Table string `yaml:"table"`
	// Labels are added to Loki's service_name, host_name and event_name.
	Labels map[string]string `yaml:"labels"`
}

// Sink is a sink.Sink.
type Sink struct {
	client *transport.Client
	form   form
	body   []byte
	sent   []int // indexes in the batch of the records in the body
	closed bool
}

// A form is what a preset makes of a batch.
type form interface {
	// header of each request.
	header() map[string]string
	// reset begins a body, add adds a record to it, and finish ends it. what
	// is known of the record beyond r is in f.
	reset(dst []byte) []byte
	add(dst []byte, r *sink.Record, f *facts) []byte
	finish(dst []byte) []byte
	// judge reads the answer to n records. A *sink.Rejected has indexes among
	// these n.
	judge(a *transport.Answer, n int) error
}

// facts are what forms want to know of a record.
type facts struct {
	host        []byte // host.name, as JSON text without quotes
	atTimestamp bool   // there is an @timestamp
}

func read(r *sink.Record) (f facts, err error) {
	s := flat.Scan(r.Line)
	for s.Next() {
		switch string(s.Key) {
		case "host.name":
			if s.Value.Kind == flat.String {
				f.host = s.Value.Raw
			}
		case "host": // of ECS
			if name, _ := s.Value.Member("name"); name.Kind == flat.String {
				f.host = name.Raw
			}
		case "@timestamp":
			f.atTimestamp = true
		}
	}
	return f, s.Err()
}

var presets = []string{"ndjson", "elasticsearch", "loki", "clickhouse", "splunk_hec"}

// New checks cfg. It does not connect: a collector may be down.
func New(cfg Config) (*Sink, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	return s, nil
}

var (
	tableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$`)
	indexName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`) // Elasticsearch's rule and Splunk's, the stricter of both
	labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
)

func open(cfg Config) (*Sink, error) {
	for _, only := range []struct {
		key, presets string
		set          bool
	}{
		{"index", "elasticsearch splunk_hec", cfg.Index != ""},
		{"table", "clickhouse", cfg.Table != ""},
		{"labels", "loki", len(cfg.Labels) > 0},
	} {
		if only.set && !slices.Contains(strings.Fields(only.presets), cfg.Preset) {
			return nil, fmt.Errorf("%s is not of the preset %s", only.key, cfg.Preset)
		}
	}
	if cfg.Index != "" && !indexName.MatchString(cfg.Index) {
		return nil, fmt.Errorf("index %q: want lower-case letters, digits, and . _ - between them", cfg.Index)
	}
	s := &Sink{}
	var path string
	query := url.Values{}
	switch cfg.Preset {
	case "ndjson":
		s.form, path = ndjson{}, "/"
	case "elasticsearch":
		if cfg.Index == "" {
			cfg.Index = "logs-stated-default"
		}
		s.form, path = elasticsearch{index: cfg.Index}, "/_bulk"
		query.Set("filter_path", "errors,items.*.status,items.*.error.type,items.*.error.reason")
	case "loki":
		for k := range cfg.Labels {
			if !labelName.MatchString(k) {
				return nil, fmt.Errorf("label %q: want letters, digits and _", k)
			}
		}
		s.form, path = newLoki(cfg.Labels), "/loki/api/v1/push"
	case "clickhouse":
		if cfg.Table == "" {
			cfg.Table = "stated"
		}
		if !tableName.MatchString(cfg.Table) {
			return nil, fmt.Errorf("table %q: want TABLE or DATABASE.TABLE of letters, digits and _", cfg.Table)
		}
		s.form, path = clickhouse{}, "/"
		query.Set("query", "INSERT INTO "+cfg.Table+" FORMAT JSONEachRow")
		query.Set("input_format_skip_unknown_fields", "1")
		query.Set("date_time_input_format", "best_effort")
		query.Set("wait_end_of_query", "1")
	case "splunk_hec":
		if cfg.TokenFile == "" {
			return nil, fmt.Errorf("the preset splunk_hec wants its token in token_file")
		}
		s.form, path = splunk{index: cfg.Index}, "/services/collector/event"
	default:
		return nil, fmt.Errorf("preset %q: want one of %s", cfg.Preset, strings.Join(presets, ", "))
	}
	client, err := transport.NewClient(cfg.HTTP, path)
	if err != nil {
		return nil, err
	}
	own := client.URL.Query() // what the URL says counts
	for k := range query {
		if !own.Has(k) {
			own.Set(k, query.Get(k))
		}
	}
	client.URL.RawQuery = own.Encode()
	if cfg.Preset == "splunk_hec" {
		client.Scheme = "Splunk"
	}
	s.client = client
	return s, nil
}

// Send implements sink.Sink.
func (s *Sink) Send(ctx context.Context, batch []sink.Record) error {
	if s.closed {
		return net.ErrClosed
	}
	rejected := sink.Rejected{}
	s.body, s.sent = s.form.reset(s.body[:0]), s.sent[:0]
	for i := range batch {
		f, err := read(&batch[i])
		if err != nil {
			rejected.Indexes, rejected.Err = append(rejected.Indexes, i), err
			continue
		}
		s.body = s.form.add(s.body, &batch[i], &f)
		s.sent = append(s.sent, i)
	}
	if len(s.sent) > 0 {
		s.body = s.form.finish(s.body)
		answer, err := s.client.Post(ctx, s.client.URL, s.form.header(), s.body)
		if err == nil {
			err = s.form.judge(answer, len(s.sent))
		}
		if r := (*sink.Rejected)(nil); errors.As(err, &r) {
			for _, i := range r.Indexes {
				rejected.Indexes = append(rejected.Indexes, s.sent[i])
			}
			rejected.Err = r.Err
		} else if err != nil {
			return fmt.Errorf("http: %w", err)
		}
	}
	if len(rejected.Indexes) > 0 {
		slices.Sort(rejected.Indexes)
		rejected.Err = fmt.Errorf("http: %w", rejected.Err)
		return &rejected
	}
	return nil
}

// Close ends the connections. It may be called again.
func (s *Sink) Close() error {
	s.closed = true
	s.client.Close()
	return nil
}
