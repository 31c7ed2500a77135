// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"testing"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

// TestOTelCollector: what the real one stored is what was sent, also after it
// was killed between and during batches.
func TestOTelCollector(t *testing.T) {
	c := sinktest.StartOTelCollector(t, "../../../cmd/stated/docs/collectors")
	var all []sink.Record
	for protocol, address := range map[string]string{"http": c.HTTP, "grpc": c.GRPC} {
		s, err := open(protocol)(address, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for range 3 {
			batch := sinktest.Records(1000)
			sinktest.Insist(t, s, batch)
			all = append(all, batch...)
			c.Kill()
			c.Start(t)
		}
		batch := sinktest.Records(1000)
		attempts := sinktest.Insist(t, s, batch)
		all = append(all, batch...)
		t.Logf("%s: the last batch took %d attempts", protocol, attempts)
	}
	store := sinktest.NewStore()
	c.Stored(t, func() bool {
		n, _ := store.Len()
		return n >= len(all)
	}, func(line []byte) {
		var req collogs.ExportLogsServiceRequest
		if err := protojson.Unmarshal(line, &req); err != nil {
			return // not written to its end yet
		}
		if err := keep(store, &req); err != nil {
			t.Error(err)
		}
	})
	sinktest.Stored(t, store, all)
}
