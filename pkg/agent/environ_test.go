// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"
)

// TestIgnored: a slip of the pen is told with what was meant, and nothing of what
// is right or somebody else's.
func TestIgnored(t *testing.T) {
	for _, tt := range []struct {
		environ []string
		want    []string
	}{
		{nil, nil},
		{[]string{"STATED_SPOOL_DIR=/x", "STATED_DRAIN=1s", "PATH=/bin", "STATEDIR=/y", "XSTATED_SPOL_DIR=/z"}, nil},
		{[]string{"STATED_SPOL_DIR=/x=y"}, []string{"STATED_SPOL_DIR (STATED_SPOOL_DIR?)"}},
		{[]string{"STATED_MAX_CONNECTION=5", "STATED_LISTENS"}, []string{"STATED_LISTENS (STATED_LISTEN?)", "STATED_MAX_CONNECTION (STATED_MAX_CONNECTIONS?)"}},
		{[]string{"STATED_SPOOL_MAXBYTES=1"}, []string{"STATED_SPOOL_MAXBYTES (STATED_SPOOL_MAX_BYTES?)"}},
		{[]string{"STATED_spool_dir=/x"}, []string{"STATED_spool_dir"}},
		{[]string{"STATED_FILTER_PORTS=80"}, []string{"STATED_FILTER_PORTS (a list: --set 'filter.ports=[...]' sets it)"}},
		{[]string{"STATED_SINKS=x"}, []string{"STATED_SINKS (a list: --set 'sinks=[...]' sets it)"}},
		{[]string{"STATED_SERVICE_HOST=10.0.0.1", "STATED_PORT_9465_TCP=tcp://10.0.0.1:9465", "STATED_=", "STATED_PORT=tcp://10.0.0.1:9465"},
			[]string{"STATED_", "STATED_PORT", "STATED_PORT_9465_TCP", "STATED_SERVICE_HOST"}},
	} {
		if got := Ignored(tt.environ); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.environ, got, tt.want)
		}
	}
}
