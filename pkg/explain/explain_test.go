// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/event"
)

func TestEveryStateIsExplained(t *testing.T) {
	for s := event.StateEstablished; s < event.NumStates; s++ {
		a := article(s)
		for _, key := range []string{"is", "side", "before", "after", "normal", "many", "do", "look", "source"} {
			if a[key] == "" {
				t.Errorf("%s lacks %q", s, key)
			}
		}
		var b strings.Builder
		if err := State(&b, s, event.NamingKernel); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > Width+2 {
				t.Errorf("%s: %d columns: %s", s, n, line)
			}
		}
	}
}

// What the kernel can do, by its callers of inet_sk_set_state, and the mini
// sockets: who names a neighbour must find itself named there.
func TestNeighboursAgree(t *testing.T) {
	edges := make(map[[2]event.State]int)
	for s := event.StateEstablished; s < event.NumStates; s++ {
		a := article(s)
		for key, flip := range map[string]bool{"before": true, "after": false} {
			for word := range strings.FieldsSeq(a[key]) {
				other, err := event.ParseState(word)
				if err != nil {
					t.Fatalf("%s %s: %v", s, key, err)
				}
				edge := [2]event.State{s, other}
				if flip {
					edge = [2]event.State{other, s}
				}
				edges[edge]++
			}
		}
	}
	for edge, n := range edges {
		mini := edge[0] == event.StateNewSynRecv || edge[1] == event.StateNewSynRecv ||
			edge[0] == event.StateBoundInactive || edge[1] == event.StateBoundInactive
		if n != 2 && !mini {
			t.Errorf("%s -> %s is named by one of them only", edge[0], edge[1])
		}
	}
}

func TestDiagramHasEveryState(t *testing.T) {
	for s := event.StateEstablished; s <= event.StateNewSynRecv; s++ {
		if !strings.Contains(Diagram(), s.String()) {
			t.Errorf("no %s", s)
		}
	}
	for line := range strings.Lines(Diagram()) {
		if len(line) > 101 {
			t.Errorf("too wide: %s", line)
		}
	}
}
