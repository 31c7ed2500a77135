// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

// whole is a process of which everything is known.
var whole = Process{
	Executable: "/usr/bin/java", CommandLine: "java -jar a\x1b[31mpp.jar", UserID: 1000, User: "app", Parent: 1, Inner: 7, Start: 123456789,
	Cgroup: "/system.slice/shop.service", Unit: "shop.service", Container: strings.Repeat("0123456789abcdef", 4), ContainerName: "sh\nop", Image: "shop:1",
	Pod: "uid", PodName: "shop-0", Namespace: "default", FDs: 900, FDLimit: 1024,
}

func knowAll(event.Task) *Process { return &whole }

// TestFragments: the part of a record about a process is made anew when more is
// known of it, and what is kept is bounded.
func TestFragments(t *testing.T) {
	now := &Process{Executable: "/bin/a"}
	var b strings.Builder
	w := New(&b, Options{Format: FormatJSON, Processes: func(event.Task) *Process { return now }})
	for range 2 * maxFragments {
		w.Finished(conns()[0])
		now = &Process{Executable: now.Executable}
		if len(w.fragments) > maxFragments {
			t.Fatal(len(w.fragments))
		}
	}
	now = &Process{Executable: "/bin/b"}
	b.Reset()
	w.Finished(conns()[0])
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(b.String(), "\n") || !strings.Contains(b.String()[strings.LastIndex(strings.TrimSpace(b.String()), "\n")+1:], `"process.executable.path":"/bin/b"`) {
		t.Errorf("%s", b.String()[max(0, b.Len()-2000):])
	}
}
