// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"strings"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// Slow remembers, for each state, who stayed in it for longest. The nil Slow
// remembers nothing.
type Slow struct {
	states [event.NumStates]struct {
		longest  int64
		inferred bool
		who      string
	}
}

// Finished takes a connection into account.
func (s *Slow) Finished(c *lifecycle.Conn) {
	for i, span := range c.Spans.All() {
		if span.Start == 0 || span.State == event.StateListen {
			continue
		}
		worst := &s.states[span.State]
		if d := c.SpanEnd(i, c.LastEvent) - span.Start; d > worst.longest {
			worst.longest, worst.inferred = d, span.Known == lifecycle.Inferred
			worst.who = string(appendTuple(append(appendOwner(nil, c), ' '), c))
		}
	}
}

func (s *Slow) write(b *strings.Builder) {
	if s == nil {
		return
	}
	for state, worst := range s.states {
		if worst.longest > 0 {
			mark := ""
			if worst.inferred {
				mark = "~"
			}
			fmt.Fprintf(b, "longest %-12s %8s  %s\n", mark+event.State(state).String(), AppendDuration(nil, worst.longest), worst.who)
		}
	}
}
