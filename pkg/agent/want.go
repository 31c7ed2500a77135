// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"hash/fnv"
	"math"
	"slices"

	"github.com/stated-tcp/stated/pkg/ecs"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/flat"
)

// defaultRecords is what a sink gets that does not say.
var defaultRecords = []string{"tcp.connection", "tcp.leak", "stated.gap"}

// selector decides which records go to a sink. It belongs to one goroutine.
type selector struct {
	records []string
	match   map[string][]string
	sample  SampleConfig
	ecs     *ecs.Converter // nil: records stay as they are
	line    []byte
	text    []byte
	doc     []byte
}

func newSelector(c *SinkConfig) *selector {
	s := &selector{records: c.Records, match: c.Match, sample: c.Sample, text: make([]byte, 0, 256)}
	if len(s.records) == 0 {
		s.records = defaultRecords
	}
	if c.Format == "ecs" {
		s.ecs = new(ecs.Converter)
	}
	return s
}

// want is sink.WorkerOptions.Want: whether a record goes to the sink, and in
// which form.
func (s *selector) want(r *sink.Record) bool {
	if !s.chosen(r) {
		return false
	}
	if s.ecs != nil {
		doc, err := s.ecs.Append(s.doc[:0], r.Line)
		if s.doc = doc; err == nil {
			r.Line = doc
		} // else the sink rejects it, as it is
	}
	return true
}

// chosen: a gap goes to every sink, whatever it asked for: what is missing may
// have been for it.
func (s *selector) chosen(r *sink.Record) bool {
	switch {
	case r.Event == "stated.gap":
		return true
	case !slices.Contains(s.records, r.Event):
		return false
	case len(s.match) == 0 && s.sample.ShorterThan == 0:
		return true
	}
	matched := 0
	var id []byte
	duration := int64(math.MaxInt64)
	healthy := r.Event == "tcp.connection" && r.Severity <= 9
	for scan := flat.Scan(r.Line); scan.Next(); {
		switch string(scan.Key) {
		case "stated.connection.id":
			id = scan.Value.Raw
		case "stated.connection.duration_ns":
			duration = scan.Value.Int
		case "stated.connection.complete":
			healthy = healthy && scan.Value.Int == 1
		}
		if values, ok := s.match[string(scan.Key)]; ok {
			if !slices.Contains(values, string(scan.Value.Text(s.text[:0]))) {
				return false
			}
			matched++
		}
	}
	if matched < len(s.match) {
		return false // what is unknown does not match
	}
	if !healthy || duration >= int64(s.sample.ShorterThan) {
		return true
	}
	return s.sampled(r, id)
}

// sampled chooses by the identity of the connection, so that all sinks of the
// same rate have the same connections, and says the rate in the record.
func (s *selector) sampled(r *sink.Record, id []byte) bool {
	h := fnv.New64a()
	h.Write(id)
	x := h.Sum64()
	x ^= x >> 32 // the end of the hash of similar texts differs most
	x *= 0x9e3779b97f4a7c15
	if float64(x>>11)/(1<<53) >= s.sample.Rate {
		return false
	}
	s.line = render.AppendSampled(s.line[:0], r.Line, s.sample.Rate)
	r.Line = s.line
	return true
}
