// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// imports is the architecture: what each package may import of ours and of
// others. The standard library and golang.org/x are free.
var imports = map[string][]string{
	"pkg/event":             {"github.com/agnivade/levenshtein"},
	"pkg/probe":             {"pkg/event", "pkg/diag", "pkg/proc", "github.com/cilium/ebpf"},
	"pkg/diag":              {"pkg/event"},
	"pkg/ecs":               {"pkg/sink/flat"},
	"pkg/lifecycle":         {"pkg/event"},
	"pkg/block":             {"github.com/klauspost/compress"},
	"pkg/recording":         {"pkg/event", "pkg/block"},
	"pkg/spool":             {"pkg/block"},
	"pkg/explain":           {"pkg/event"},
	"pkg/proc":              {"pkg/event"},
	"pkg/census":            {"pkg/event", "pkg/lifecycle"},
	"pkg/leak":              {"pkg/event", "pkg/lifecycle", "pkg/census", "pkg/symbol"},
	"pkg/filter":            {"pkg/event", "pkg/lifecycle", "pkg/census"},
	"pkg/story":             {"pkg/event", "pkg/lifecycle", "pkg/census", "pkg/leak", "pkg/explain", "pkg/render"},
	"pkg/render":            {"pkg/ecs", "pkg/event", "pkg/lifecycle", "pkg/census", "pkg/leak", "pkg/symbol"},
	"pkg/metrics":           {"pkg/event", "pkg/lifecycle", "pkg/leak", "pkg/render", "pkg/probe", "pkg/spool", "pkg/sink", "github.com/prometheus/client_golang"},
	"pkg/kerneltest":        {}, // its tests: anything
	"pkg/symbol":            {"github.com/ianlancetaylor/demangle"},
	"pkg/sink/flat":         {},
	"pkg/sink/transport":    {"pkg/sink", "github.com/klauspost/compress"},
	"pkg/sink/sinktest":     {"pkg/sink", "pkg/sink/transport", "pkg/render", "github.com/santhosh-tekuri/jsonschema"},
	"pkg/sink/syslog":       {"pkg/sink", "pkg/sink/flat", "pkg/sink/transport"},
	"pkg/sink/otlp":         {"pkg/sink", "pkg/sink/flat", "pkg/sink/transport", "google.golang.org/grpc", "google.golang.org/protobuf", "google.golang.org/genproto", "go.opentelemetry.io/proto/otlp"},
	"pkg/sink/http":         {"pkg/sink", "pkg/sink/flat", "pkg/sink/transport"},
	"pkg/sink/forward":      {"pkg/sink", "pkg/sink/flat", "pkg/sink/transport", "github.com/google/uuid", "github.com/klauspost/compress"},
	"pkg/sink/journald":     {"pkg/sink", "pkg/sink/flat", "pkg/sink/transport"},
	"pkg/sink":              {"pkg/spool", "pkg/sink/flat"},
	"pkg/sink/file":         {"pkg/sink", "pkg/block"},
	"pkg/kerneltest/vminit": {},
	"pkg/kerneltest/churn":  {},
	"pkg/kerneltest/floor":  {"github.com/cilium/ebpf"},
	"pkg/kerneltest/hoard":  {},
	"pkg/kerneltest/peer":   {},
	"pkg/kerneltest/uring":  {},
	"pkg/agent": {"pkg/ecs", "pkg/event", "pkg/lifecycle", "pkg/census", "pkg/leak", "pkg/filter", "pkg/render", "pkg/recording", "pkg/symbol", "pkg/proc",
		"pkg/block", "pkg/spool", "pkg/sink", "pkg/sink/flat", "pkg/sink/file", "pkg/sink/forward", "pkg/sink/http",
		"pkg/sink/journald", "pkg/sink/otlp", "pkg/sink/syslog", "github.com/agnivade/levenshtein", "go.yaml.in/yaml/v3", "kernel.org/pub/linux/libs/security/libcap/cap"},
}

func TestImports(t *testing.T) {
	const module = "github.com/stated-tcp/stated/"
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"pkg/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		pkg := strings.TrimPrefix(words[0], module)
		allowed, ok := imports[pkg]
		if !ok {
			t.Errorf("%s has no row in the table", pkg)
		}
		for _, path := range words[1:] {
			first, _, _ := strings.Cut(path, "/")
			if !strings.Contains(first, ".") || strings.HasPrefix(path, "golang.org/x/") {
				continue
			}
			path = strings.TrimPrefix(path, module)
			if !slices.ContainsFunc(allowed, func(a string) bool { return path == a || strings.HasPrefix(path, a+"/") && strings.Contains(a, ".") }) {
				t.Errorf("%s imports %s", pkg, path)
			}
		}
	}
}
