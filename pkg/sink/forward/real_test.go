// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/json"
	"testing"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

// value is OTLP's AnyValue as JSON, as far as records need it.
type value struct {
	StringValue *string
	BoolValue   *bool
	IntValue    *json.Number
	DoubleValue *float64
	ArrayValue  *struct{ Values []value }
	KvlistValue *struct{ Values []keyValue }
}

type keyValue struct {
	Key   string
	Value value
}

func (v value) plain() any {
	switch {
	case v.StringValue != nil:
		return *v.StringValue
	case v.BoolValue != nil:
		return *v.BoolValue
	case v.IntValue != nil:
		return *v.IntValue
	case v.DoubleValue != nil:
		return *v.DoubleValue
	case v.ArrayValue != nil:
		list := []any{}
		for _, e := range v.ArrayValue.Values {
			list = append(list, e.plain())
		}
		return list
	case v.KvlistValue != nil:
		return plain(v.KvlistValue.Values)
	}
	return nil
}

func plain(list []keyValue) map[string]any {
	m := map[string]any{}
	for _, kv := range list {
		m[kv.Key] = kv.Value.plain()
	}
	return m
}

// TestOTelCollector: what the real one stored is what was sent, also after it
// was killed. It has neither TLS nor a handshake (v0.165).
func TestOTelCollector(t *testing.T) {
	c := sinktest.StartOTelCollector(t, "../../../cmd/stated/docs/collectors")
	s, err := New(Config{Address: c.Forward})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var all []sink.Record
	for range 3 {
		batch := sinktest.Records(1000)
		sinktest.Insist(t, s, batch)
		all = append(all, batch...)
		c.Kill()
		c.Start(t)
	}
	store := sinktest.NewStore()
	c.Stored(t, func() bool {
		n, _ := store.Len()
		return n >= len(all)
	}, func(line []byte) {
		var req struct {
			ResourceLogs []struct {
				ScopeLogs []struct {
					LogRecords []struct {
						Body       value
						Attributes []keyValue
					}
				}
			}
		}
		if json.Unmarshal(line, &req) != nil {
			return // not written to its end yet
		}
		for _, rl := range req.ResourceLogs {
			for _, sl := range rl.ScopeLogs {
				for _, r := range sl.LogRecords {
					m := plain(r.Attributes)
					m["message"] = r.Body.plain()
					delete(m, "fluent.tag")
					b, _ := json.Marshal(m)
					uid, _ := m["log.record.uid"].(string)
					store.Add(uid, b)
				}
			}
		}
	})
	sinktest.Stored(t, store, all)
}
