// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

func value(v *common.AnyValue) any {
	switch v := v.GetValue().(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	case *common.AnyValue_BoolValue:
		return v.BoolValue
	case *common.AnyValue_IntValue:
		return json.Number(fmt.Sprint(v.IntValue))
	case *common.AnyValue_DoubleValue:
		return v.DoubleValue
	case *common.AnyValue_ArrayValue:
		list := []any{}
		for _, e := range v.ArrayValue.GetValues() {
			list = append(list, value(e))
		}
		return list
	case *common.AnyValue_KvlistValue:
		return attributes(map[string]any{}, v.KvlistValue.GetValues())
	}
	return nil
}

func attributes(m map[string]any, list []*common.KeyValue) map[string]any {
	for _, kv := range list {
		m[kv.GetKey()] = value(kv.GetValue())
	}
	return m
}

// keep makes the flat objects again of a request, and keeps them.
func keep(store *sinktest.Store, req *collogs.ExportLogsServiceRequest) error {
	for _, rl := range req.GetResourceLogs() {
		if rl.GetSchemaUrl() != schemaURL || len(rl.GetScopeLogs()) != 1 || rl.GetScopeLogs()[0].GetScope().GetName() != scope {
			return fmt.Errorf("resource logs %v", rl)
		}
		for _, r := range rl.GetScopeLogs()[0].GetLogRecords() {
			m := attributes(map[string]any{}, rl.GetResource().GetAttributes())
			if m["service.version"] != rl.GetScopeLogs()[0].GetScope().GetVersion() || r.GetObservedTimeUnixNano() == 0 {
				return fmt.Errorf("record %v of %v", r, m)
			}
			attributes(m, r.GetAttributes())
			m["timestamp"] = time.Unix(0, int64(r.GetTimeUnixNano())).UTC().Format("2006-01-02T15:04:05.000000000Z")
			m["event.name"], m["severity_text"], m["message"] = r.GetEventName(), r.GetSeverityText(), value(r.GetBody())
			line, err := json.Marshal(m)
			if err != nil {
				return err
			}
			if want := map[string]int{"INFO": 9, "WARN": 13, "ERROR": 17}[r.GetSeverityText()]; int(r.GetSeverityNumber()) != want {
				return fmt.Errorf("severity %v", r)
			}
			store.Add(fmt.Sprint(m["log.record.uid"]), line)
		}
	}
	return nil
}

func serveHTTP(l net.Listener, store *sinktest.Store) {
	http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				http.Error(w, err.Error(), 400)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		var req collogs.ExportLogsServiceRequest
		if err == nil {
			err = proto.Unmarshal(b, &req)
		}
		if err == nil {
			err = keep(store, &req)
		}
		if err != nil || r.URL.Path != "/v1/logs" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			http.Error(w, fmt.Sprint(err, r.URL), 400)
			return
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
}

func open(protocol string) func(string, *transport.TLS) (sink.Sink, error) {
	return func(address string, secure *transport.TLS) (sink.Sink, error) {
		url := "http://" + address
		if secure != nil {
			url = "https://" + address
		}
		return New(Config{Protocol: protocol, HTTP: transport.HTTP{URL: url, TLS: secure}})
	}
}

func TestHTTP(t *testing.T) {
	sinktest.TestProtocol(t, sinktest.Protocol{Open: open("http"), Serve: serveHTTP, Acked: true})
}

type logsServer struct {
	collogs.UnimplementedLogsServiceServer
	export func(*collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error)
}

func (s logsServer) Export(_ context.Context, r *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	return s.export(r)
}

func serveGRPC(l net.Listener, export func(*collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error)) {
	g := grpc.NewServer()
	collogs.RegisterLogsServiceServer(g, logsServer{export: export})
	g.Serve(l)
	g.Stop()
}

func TestGRPC(t *testing.T) {
	sinktest.TestProtocol(t, sinktest.Protocol{Open: open("grpc"), Acked: true, Serve: func(l net.Listener, store *sinktest.Store) {
		serveGRPC(l, func(r *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
			return &collogs.ExportLogsServiceResponse{}, keep(store, r)
		})
	}})
}

// verdict runs one Send of n records and describes its error.
func verdict(t *testing.T, s sink.Sink, n int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := sinktest.Send(ctx, s, sinktest.Records(n))
	var retry *sink.Retry
	var rejected *sink.Rejected
	var large *sink.TooLarge
	switch {
	case err == nil:
		return "taken"
	case errors.As(err, &rejected):
		return fmt.Sprintf("rejected %v and %d", rejected.Indexes, rejected.Unnamed)
	case errors.As(err, &large):
		return "split"
	case errors.As(err, &retry):
		return fmt.Sprintf("retry after %v", retry.After)
	}
	return "temporary"
}

func TestHTTPAnswers(t *testing.T) {
	partial := func(n int64) string {
		b, _ := proto.Marshal(&collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: n, ErrorMessage: "too old"}})
		return string(b)
	}
	for _, test := range []struct {
		status           int
		kind, body, wait string
		split            bool
		n                int
		want             string
	}{
		{200, "application/x-protobuf", "", "", false, 3, "taken"},
		{200, "application/x-protobuf", partial(2), "", false, 3, "rejected [] and 2"},
		{200, "application/x-protobuf", partial(3), "", false, 3, "rejected [0 1 2] and 0"},
		{200, "application/x-protobuf", partial(0), "", false, 3, "taken"}, // a warning
		{200, "application/json; charset=utf-8", `{"partialSuccess":{"rejectedLogRecords":"1"}}`, "", false, 3, "rejected [] and 1"},
		{200, "text/html", "<html>sign in</html>", "", false, 3, "temporary"},
		{204, "", "", "", false, 3, "taken"},
		{400, "", "bad", "", false, 3, "split"},
		{400, "", "bad", "", false, 1, "rejected [0] and 0"},
		{413, "", "", "", false, 3, "split"},
		{429, "", "", "7", false, 3, "retry after 7s"},
		{503, "", "", "99999999999", false, 3, "retry after 10m0s"},
		{503, "", "", "-5", false, 3, "retry after 0s"},
		{503, "", "", "soon", false, 3, "retry after 0s"},
		{503, "", "", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), false, 3, "retry after 10m0s"},
		{500, "", "", "", false, 3, "retry after 0s"},
		{500, "", "", "", true, 3, "split"},
		{500, "", "", "", true, 1, "rejected [0] and 0"},
		{401, "", "", "", false, 1, "retry after 0s"},
		{404, "", "", "", false, 1, "retry after 0s"},
		{302, "", "", "", false, 1, "retry after 0s"},
	} {
		c := sinktest.StartCollector(t, nil, func(l net.Listener, _ *sinktest.Store) {
			http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", test.kind)
				w.Header().Set("Location", "http://127.0.0.1:1/")
				if test.wait != "" {
					w.Header().Set("Retry-After", test.wait)
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
		})
		s, err := New(Config{HTTP: transport.HTTP{URL: "http://" + c.Address}, SplitOnInternalError: test.split})
		if err != nil {
			t.Fatal(err)
		}
		if got := verdict(t, s, test.n); got != test.want {
			t.Errorf("%d %q %q: %s, want %s", test.status, test.body, test.wait, got, test.want)
		}
		s.Close()
		c.Kill()
	}
}

func TestGRPCAnswers(t *testing.T) {
	fail := func(c codes.Code, wait time.Duration) error {
		s := status.New(c, "no")
		if wait > 0 {
			s, _ = s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
		}
		return s.Err()
	}
	var answer *collogs.ExportLogsServiceResponse
	var failure error
	c := sinktest.StartCollector(t, nil, func(l net.Listener, _ *sinktest.Store) {
		serveGRPC(l, func(*collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
			return answer, failure
		})
	})
	for _, test := range []struct {
		err   error
		split bool
		n     int
		want  string
	}{
		{nil, false, 3, "rejected [] and 2"},
		{fail(codes.InvalidArgument, 0), false, 3, "split"},
		{fail(codes.InvalidArgument, 0), false, 1, "rejected [0] and 0"},
		{fail(codes.ResourceExhausted, 3*time.Second), false, 3, "retry after 3s"},
		{fail(codes.ResourceExhausted, 0), false, 3, "split"},
		{fail(codes.ResourceExhausted, 0), false, 1, "retry after 0s"},
		{fail(codes.Unavailable, time.Hour), false, 3, "retry after 10m0s"},
		{fail(codes.OutOfRange, 0), false, 1, "retry after 0s"},
		{fail(codes.Internal, 0), false, 1, "retry after 0s"},
		{fail(codes.Internal, 0), true, 3, "split"},
		{fail(codes.Unauthenticated, 0), false, 1, "retry after 0s"},
		{fail(codes.Unimplemented, 0), false, 1, "retry after 0s"},
	} {
		answer = &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: 2}}
		failure = test.err
		s, err := New(Config{Protocol: "grpc", HTTP: transport.HTTP{URL: "http://" + c.Address}, SplitOnInternalError: test.split})
		if err != nil {
			t.Fatal(err)
		}
		if got := verdict(t, s, test.n); got != test.want {
			t.Errorf("%v, %d: %s, want %s", test.err, test.n, got, test.want)
		}
		s.Close()
	}
}

// TestEncode: two runs of the agent are two resources, and what cannot be read
// is left out alone.
func TestEncode(t *testing.T) {
	batch := sinktest.Records(6)
	batch[1].Line = []byte(`{"torn`)
	batch[4].Line = []byte("{\"a\":\"\xff\"}")
	for _, i := range []int{3, 5} {
		batch[i].Line = bytes.Replace(batch[i].Line, []byte(`"stated.run.id":"0193a5b0"`), []byte(`"stated.run.id":"other","null":null`), 1)
	}
	var e encoder
	request, broken, err := e.encode(batch)
	if fmt.Sprint(broken) != "[1 4]" || err == nil {
		t.Errorf("broken: %v, %v", broken, err)
	}
	var req collogs.ExportLogsServiceRequest
	if err := proto.Unmarshal(request, &req); err != nil {
		t.Fatal(err)
	}
	if n := len(req.GetResourceLogs()); n != 2 {
		t.Fatalf("%d resources", n)
	}
	for i, want := range []int{2, 2} {
		if n := len(req.GetResourceLogs()[i].GetScopeLogs()[0].GetLogRecords()); n != want {
			t.Errorf("resource %d has %d records", i, n)
		}
	}
}

func TestConfig(t *testing.T) {
	with := func(h transport.HTTP) Config { return Config{HTTP: h} }
	for _, cfg := range []Config{
		{}, with(transport.HTTP{URL: "host:4318"}), with(transport.HTTP{URL: "http://u:p@h"}), with(transport.HTTP{URL: "http://h", TLS: &transport.TLS{}}),
		with(transport.HTTP{URL: "http://h", Compression: "lz4"}), with(transport.HTTP{URL: "http://h", User: "u"}),
		with(transport.HTTP{URL: "http://h", TokenFile: "/nonexistent"}), {Protocol: "udp", HTTP: transport.HTTP{URL: "http://h"}},
		{Protocol: "grpc", HTTP: transport.HTTP{URL: "http://h:1/path"}}, {Protocol: "grpc", HTTP: transport.HTTP{URL: "http://h"}},
		with(transport.HTTP{URL: "https://h", TLS: &transport.TLS{CertFile: "x"}}),
	} {
		if s, err := New(cfg); err == nil {
			s.Close()
			t.Errorf("%+v is taken", cfg)
		} else if strings.Contains(err.Error(), ":p@") {
			t.Errorf("the error shows a password: %v", err)
		}
	}
}

func FuzzEncode(f *testing.F) {
	for _, r := range sinktest.Records(4) {
		f.Add(r.Line)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var e encoder
		request, broken, _ := e.encode([]sink.Record{{Line: line, Time: 1}})
		var req collogs.ExportLogsServiceRequest
		if err := proto.Unmarshal(request, &req); err != nil {
			t.Errorf("%v: %q", err, line)
		}
		if len(broken)+len(req.GetResourceLogs()) != 1 {
			t.Errorf("%d broken, %d resources", len(broken), len(req.GetResourceLogs()))
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	batch := sinktest.Records(1000)
	var e encoder
	b.ReportAllocs()
	for b.Loop() {
		e.encode(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
}
