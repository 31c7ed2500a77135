// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// TestTrampolines: each of them works where the kernel has trampolines at all,
// and where it refuses them the rest works without.
func TestTrampolines(t *testing.T) {
	p := openTier(t, Options{})
	refused := 0
	for _, h := range p.Hooks() {
		if h.Tier != TierTrampolines || h.Err == nil {
			continue
		}
		refused++
		t.Logf("%s: %s", h.Name, firstLine(h.Err))
		if log := (*ebpf.VerifierError)(nil); errors.As(h.Err, &log) && len(log.Log) > 0 {
			t.Logf("%s", strings.Join(log.Log[max(0, len(log.Log)-25):], "\n"))
		}
	}
	if full := os.Getenv("STATED_VM") != "" && runtime.GOARCH == "amd64" && p.cookies; full && refused > 0 {
		t.Errorf("%d trampolines do not work", refused)
	}
	if p = openTier(t, Options{NoTrampolines: true}); p.SeesRequests() || p.SeesTimeWait() {
		t.Error("trampolines although not asked for")
	}
}
