// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
)

// TestHaltedLeaks: where all that hold a socket are stopped, that is the next step;
// where one of them is, it is one.
func TestHaltedLeaks(t *testing.T) {
	const next = "next: java[4242] is stopped (SIGSTOP or a debugger)"
	for _, tt := range []struct {
		name   string
		halted func(uint32) bool
		advice bool // of a group that two processes hold
	}{
		{"all", func(uint32) bool { return true }, false},
		{"one", func(pid uint32) bool { return pid == 4242 }, true},
	} {
		l := leaksOf(leak.ByProcess, false)
		l.Processes = func(t event.Task) (p Process) {
			if tt.halted(t.PID) {
				p.Halted = HaltStopped
			}
			return p
		}
		text := render(Options{}, func(w *Writer) { w.Leaks(l) })
		for group := range strings.SplitSeq(text, "\n\n") {
			shared := strings.Contains(group, "[7], java[4242]: ")
			if !shared && !strings.HasPrefix(group, "java[4242]: ") {
				continue
			}
			if advice := strings.Contains(group, "gdb"); !strings.Contains(group, next) || advice != (shared && tt.advice) {
				t.Errorf("%s:\n%s", tt.name, group)
			}
		}
		if !strings.Contains(text, next) {
			t.Errorf("%s: no %q in\n%s", tt.name, next, text)
		}
	}
}
