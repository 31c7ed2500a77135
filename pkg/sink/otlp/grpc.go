// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // the compressor
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

type overGRPC struct {
	conn  *grpc.ClientConn
	cfg   Config
	split bool
}

const maxRetryDelay = 10 * time.Minute // a collector may be wrong about its future

func newGRPC(cfg Config) (*overGRPC, error) {
	checked, err := transport.NewClient(cfg.HTTP, "") // the same keys, the same errors
	if err != nil {
		return nil, err
	}
	u := checked.URL
	if u.Path != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("url %q: gRPC has no path", u)
	}
	if u.Port() == "" {
		return nil, fmt.Errorf("url %q: gRPC wants a port, usually 4317", u)
	}
	secure := insecure.NewCredentials()
	if u.Scheme == "https" {
		c, err := cfg.TLS.Config(u.Hostname())
		if err != nil {
			return nil, err
		}
		secure = credentials.NewTLS(c)
	}
	call := []grpc.CallOption{grpc.ForceCodec(codec{})}
	if cfg.Compression != "none" {
		call = append(call, grpc.UseCompressor("gzip"))
	}
	conn, err := grpc.NewClient("dns:///"+u.Host,
		grpc.WithTransportCredentials(secure),
		grpc.WithDefaultCallOptions(call...),
		grpc.WithUserAgent("stated"),
		grpc.WithDisableServiceConfig(), // a TXT record could turn on retries
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		// The caller backs off already; here only so much that the next try
		// finds a connection being made.
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 10 * time.Second,
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: time.Second},
		}))
	if err != nil {
		return nil, err
	}
	return &overGRPC{conn: conn, cfg: cfg, split: cfg.SplitOnInternalError}, nil
}

// codec sends a request that is encoded already.
type codec struct{}

func (codec) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (codec) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }
func (codec) Name() string                    { return "proto" }

func (g *overGRPC) export(ctx context.Context, request []byte, n int) (*collogs.ExportLogsServiceResponse, error) {
	md, err := g.metadata()
	if err != nil {
		return nil, err
	}
	// grpc may still be writing after a call that was cancelled, and the
	// encoder uses its buffer again.
	request = append([]byte(nil), request...)
	var got collogs.ExportLogsServiceResponse
	err = g.conn.Invoke(metadata.NewOutgoingContext(ctx, md), collogs.LogsService_Export_FullMethodName, request, &got)
	if err != nil {
		return nil, transport.Cause(ctx, g.judge(err, n))
	}
	return &got, nil
}

func (g *overGRPC) metadata() (metadata.MD, error) {
	md := metadata.MD{}
	for k, v := range g.cfg.Headers {
		md.Set(strings.ToLower(k), v)
	}
	if g.cfg.User != "" {
		password, err := g.cfg.PasswordFile.Read()
		if err != nil {
			return nil, err
		}
		md.Set("authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(g.cfg.User+":"+password)))
	}
	if g.cfg.TokenFile != "" {
		token, err := g.cfg.TokenFile.Read()
		if err != nil {
			return nil, err
		}
		md.Set("authorization", "Bearer "+token)
	}
	return md, nil
}

// judge follows OTLP's table of status codes, but for those of which the
// operator can mend the cause: there records wait.
func (g *overGRPC) judge(err error, n int) error {
	s := status.Convert(err)
	var after time.Duration
	told := false
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			told = true
			after = max(0, min(info.GetRetryDelay().AsDuration(), maxRetryDelay))
		}
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	case codes.InvalidArgument:
		return transport.Refused(n, err)
	case codes.ResourceExhausted:
		// Without RetryInfo it is not about time: the message is too large.
		// One record is not, so then the collector has not said all.
		if !told && n > 1 {
			return transport.Refused(n, err)
		}
	case codes.Internal:
		if g.split {
			return transport.Refused(n, err)
		}
	case codes.Unauthenticated, codes.PermissionDenied:
		err = fmt.Errorf("check the credentials: %w", err)
	case codes.Unimplemented:
		err = fmt.Errorf("check the url: %w", err)
	}
	return &sink.Retry{After: after, Err: err}
}

func (g *overGRPC) close() error { return g.conn.Close() }
