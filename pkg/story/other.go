// SPDX-License-Identifier: Apache-2.0

package story

import (
	"strconv"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/render"
)

// other says who has the other end where that is here, too.
func (t *Teller) other(b []byte, s *census.Socket) []byte {
	if s.Other == nil {
		return b
	}
	if len(b) > 0 {
		b = append(b, ' ')
	}
	owners := s.Other.Owners()
	if len(owners) == 0 {
		b = append(b, "Its other end is here, in "...)
		b = append(b, s.Other.New.Name(t.Names)...)
		if s.Other.Inode != 0 {
			return append(b, ", and no process was found that has it."...)
		}
		return append(b, ", and no process has it."...)
	}
	b = append(b, "Its other end is here: "...)
	if len(s.Other.Holders) == 0 {
		b = append(b, "not accepted, listener "...)
	}
	for i := range owners {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = render.AppendTask(b, &owners[i])
	}
	return append(b, '.')
}

// peer says where to look at the process of the other end.
func (t *Teller) peer(b []byte, s *census.Socket) []byte {
	if s.Other == nil || len(s.Other.Owners()) == 0 {
		text := render.AppendAddr([]byte("Next: look at the peer's process and what its threads do: on its host, stated explain "), s.Peer)
		return paragraph(b, append(text, '.'))
	}
	b = paragraph(b, []byte("Next: look at the process of the other end, which is here, and what its threads do:"))
	if len(s.Other.Holders) > 0 {
		h := &s.Other.Holders[0]
		b = strconv.AppendUint(append(b, "  stated explain "...), uint64(h.PID), 10)
		b = strconv.AppendInt(append(b, '/'), int64(h.FDs[0]), 10)
	} else {
		b = strconv.AppendUint(append(b, "  stated explain "...), uint64(s.Other.Owners()[0].PID), 10)
	}
	return t.halted(append(b, '\n', '\n'), s.Other)
}
