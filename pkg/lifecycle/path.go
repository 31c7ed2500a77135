// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"iter"

	"github.com/stated-tcp/stated/pkg/event"
)

// Span is a state and when the connection entered it. It lasts until the next
// span begins, the last one until Conn.End.
type Span struct {
	Start int64 // nanoseconds since boot; 0 when AtLeast and nothing is known
	State event.State
	Known Known
}

// Path is the states that a connection went through, in order: 8 bytes for
// each, and room for as many as nearly all connections have.
type Path struct {
	first [4]step
	rest  *[]step // nil: there is no fifth
}

// step is a Span in 8 bytes, never 0: 58 bits for the start (9 years after
// boot), 4 for the state, 2 for how it is known, which is kept as one more.
type step uint64

func pack(s Span) step {
	return step(min(max(s.Start, 0), 1<<58-1))<<6 | step(s.State&0xf)<<2 | step(s.Known+1)
}

func (s step) span() Span {
	return Span{Start: int64(s >> 6), State: event.State(s >> 2 & 0xf), Known: Known(s&3) - 1}
}

// PathOf makes a path of spans.
func PathOf(spans ...Span) (p Path) {
	for _, s := range spans {
		p.Add(s)
	}
	return p
}

// Len returns how many spans there are: in a table never 0.
func (p *Path) Len() int {
	if p.rest != nil {
		return len(p.first) + len(*p.rest)
	}
	n := len(p.first)
	for n > 0 && p.first[n-1] == 0 {
		n--
	}
	return n
}

// At returns span i.
func (p *Path) At(i int) Span { return p.step(i).span() }

// Last returns the span that was entered last. The span of the final CLOSE is not
// part of a path.
func (p *Path) Last() Span { return p.At(p.Len() - 1) }

// All yields each span and its number.
func (p *Path) All() iter.Seq2[int, Span] {
	return func(yield func(int, Span) bool) {
		for i := range p.Len() {
			if !yield(i, p.At(i)) {
				return
			}
		}
	}
}

// Add enters one more span.
func (p *Path) Add(s Span) {
	if n := p.Len(); n < len(p.first) {
		p.first[n] = pack(s)
		return
	}
	if p.rest == nil {
		p.rest = new([]step)
	}
	*p.rest = append(*p.rest, pack(s))
}

func (p *Path) set(i int, s Span) { *p.step(i) = pack(s) }

func (p *Path) step(i int) *step {
	if i < len(p.first) {
		return &p.first[i]
	}
	return &(*p.rest)[i-len(p.first)]
}
