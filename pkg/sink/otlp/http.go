// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"context"
	"fmt"
	"mime"
	"net/http"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/stated-tcp/stated/pkg/sink/transport"
)

type overHTTP struct {
	client *transport.Client
	split  bool
}

func newHTTP(cfg Config) (*overHTTP, error) {
	client, err := transport.NewClient(cfg.HTTP, "/v1/logs")
	if err != nil {
		return nil, err
	}
	return &overHTTP{client: client, split: cfg.SplitOnInternalError}, nil
}

var header = map[string]string{"Content-Type": "application/x-protobuf"}

func (h *overHTTP) export(ctx context.Context, request []byte, n int) (*collogs.ExportLogsServiceResponse, error) {
	answer, err := h.client.Post(ctx, h.client.URL, header, request)
	if err != nil {
		return nil, err
	}
	if err := answer.Err(n); err != nil {
		if answer.Status == http.StatusInternalServerError && h.split {
			return nil, transport.Refused(n, err)
		}
		return nil, err
	}
	// A proxy's page with status 200 is no acknowledgement.
	var got collogs.ExportLogsServiceResponse
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind == "application/json" {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(answer.Body, &got)
	} else {
		err = proto.Unmarshal(answer.Body, &got)
	}
	if err != nil {
		return nil, fmt.Errorf("the answer (%q) is not OTLP's; check the url: %w", kind, err)
	}
	return &got, nil
}

func (h *overHTTP) close() error {
	h.client.Close()
	return nil
}
