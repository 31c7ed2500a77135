// SPDX-License-Identifier: Apache-2.0

package story

import (
	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/render"
)

// halfOpen tells whose a connection will be that is only a request as yet.
func (t *Teller) halfOpen(s *census.Socket) []byte {
	b := []byte("It is half-open: no process has it before accept(); its listener ")
	owners := s.Owners()
	switch {
	case len(s.Listeners) == 0:
		return append(b, "was not found."...)
	case len(owners) == 0:
		return append(render.AppendAddr(append(b, "is on "...), s.Listeners[0].Local), ", and no process was found that holds that."...)
	case len(owners) > 1:
		b = append(b, "is that of one of "...)
	default:
		b = append(b, "is "...)
	}
	for i := range owners {
		if i > 0 {
			b = append(b, "; "...)
		}
		b = t.who(append(render.AppendTask(b, &owners[i]), ": "...), owners[i])
	}
	return append(b, '.')
}
