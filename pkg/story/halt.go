// SPDX-License-Identifier: Apache-2.0

package story

import (
	"strconv"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/render"
)

// halted says of each process that has to do with a socket that it does nothing at
// all.
func (t *Teller) halted(b []byte, s *census.Socket) []byte {
	for _, task := range s.Owners() {
		p := t.Processes(task)
		if text := render.AppendHalt(nil, &task, &p); text != nil {
			b = paragraph(b, append(text, '.'))
		}
	}
	return b
}

// allHalted reports whether nobody can do anything with a socket for now.
func (t *Teller) allHalted(s *census.Socket) bool {
	owners := s.Owners()
	for _, task := range owners {
		if p := t.Processes(task); !p.Halts() {
			return false
		}
	}
	return len(owners) > 0
}

// resume gives the commands that let processes go on.
func (t *Teller) resume(b []byte, s *census.Socket) []byte {
	b = paragraph(b, []byte("Next: let it go on, then look again."))
	before := len(b)
	for _, task := range s.Owners() {
		if p := t.Processes(task); p.Halted == render.HaltStopped {
			b = append(strconv.AppendUint(append(b, "  kill -CONT "...), uint64(task.PID), 10), '\n')
		}
	}
	if len(b) > before {
		b = append(b, '\n')
	}
	return b
}
