// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/stated-tcp/stated/pkg/symbol"
)

// Stack is where in the code a socket was opened: at connect(), or where
// accept() returned it.
type Stack struct {
	Key    string         // the same for the same calls, in any process of the program
	Frames []symbol.Frame // innermost first
	Cut    string         // why outer frames may be missing; "" if none are
}

// NewStack makes a Stack of frames, innermost first. It ends with the function
// that its thread began with, and before a frame in no mapping: that is no
// caller, but what a function without frame pointers had in that register, and
// differs from call to call. deeper says that there were more frames than could
// be taken.
func NewStack(frames []symbol.Frame, deeper bool) *Stack {
	known := frames
	for i := range frames {
		if symbol.Cut(frames[:i+1]) == "" {
			known, frames, deeper = frames[:i+1], frames[:i+1], false
			break
		}
		if frames[i].Module == "" && i > 0 {
			known, frames, deeper = frames[:i], frames[:i+1], false
			break
		}
	}
	s := &Stack{Frames: known, Cut: symbol.Cut(frames)}
	if deeper {
		s.Cut = "cut: the stack is deeper than what was taken"
	}
	for i := range known {
		s.Key += place(&known[i]) + "\n"
	}
	return s
}

// place is the same for a frame of the same call in any process of a program,
// as near as is known: the line, or else the function, as compilers copy calls.
func place(f *symbol.Frame) string {
	switch {
	case f.Line > 0:
		return f.Function + " " + f.File + ":" + strconv.Itoa(f.Line)
	case f.Function != "":
		return f.Function + " " + f.Module
	case f.Module != "":
		return f.Module + "+" + strconv.FormatUint(f.Offset, 16)
	}
	return strconv.FormatUint(f.Address, 16)
}

// Origin is a place in the code and how many sockets of a group come from there.
type Origin struct {
	*Stack
	Sockets int
}

// Origins returns where in the code the sockets of the group were opened, the
// most frequent first, and of how many that is not known.
func (g *Group) Origins() (origins []Origin, unknown int) {
	index := make(map[string]int)
	for i := range g.Findings {
		s := g.Findings[i].Stack
		if s == nil {
			unknown++
			continue
		}
		at, ok := index[s.Key]
		if !ok {
			at = len(origins)
			index[s.Key] = at
			origins = append(origins, Origin{Stack: s})
		}
		origins[at].Sockets++
	}
	slices.SortStableFunc(origins, func(a, b Origin) int {
		return cmp.Or(cmp.Compare(b.Sockets, a.Sockets), cmp.Compare(a.Key, b.Key))
	})
	return origins, unknown
}
