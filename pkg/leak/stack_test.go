// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"slices"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/symbol"
)

// TestNewStack: where a stack ends, and why.
func TestNewStack(t *testing.T) {
	f := func(names ...string) (frames []symbol.Frame) {
		for i, name := range names {
			frame := symbol.Frame{Address: uint64(i), Function: name, Module: "/bin/a"}
			if name == "?" {
				frame = symbol.Frame{Address: 1 << 63}
			}
			frames = append(frames, frame)
		}
		return frames
	}
	for _, tt := range []struct {
		frames []symbol.Frame
		deeper bool
		kept   int
		cut    string
	}{
		{f("connect", "main", "_start"), false, 3, ""},
		{f("connect", "main", "_start", "chance"), false, 3, ""},
		{f("connect", "main", "__libc_start_main", "?"), true, 3, ""},
		{f("connect", "main"), false, 2, "a or its caller has no frame pointers"},
		{f("connect", "main", "?"), false, 2, "no frame pointers"},
		{f("connect", "main", "?", "chance"), true, 2, "no frame pointers"},
		{f("connect", "main"), true, 2, "deeper"},
		{f("?", "?"), false, 1, "no frame pointers"},
		{nil, false, 0, "no stack"},
	} {
		s := NewStack(tt.frames, tt.deeper)
		if len(s.Frames) != tt.kept || (s.Cut == "") != (tt.cut == "") || !strings.Contains(s.Cut, tt.cut) {
			t.Errorf("%v: %d frames, %q", tt.frames, len(s.Frames), s.Cut)
		}
	}
}

// TestByStack: the same calls are one group in whatever process, other calls
// another, and what is not known is with its process.
func TestByStack(t *testing.T) {
	stack := func(base uint64, names ...string) *Stack {
		var frames []symbol.Frame
		for i, name := range append(names, "_start") {
			frames = append(frames, symbol.Frame{Address: base + uint64(i), Function: name, Module: "/bin/a"})
		}
		return NewStack(frames, false)
	}
	var r Report
	for _, s := range []*Stack{stack(0x1000, "connect", "get"), stack(0x9000, "connect", "get"), stack(0x1000, "connect", "put"), nil, nil} {
		f := Judge(waiting(census.Age{Min: 60 * second}, nil))
		f.Stack = s
		r.Findings = append(r.Findings, f)
	}
	var sizes []int
	for _, g := range r.Group(ByStack) {
		sizes = append(sizes, len(g.Findings))
	}
	if !slices.Equal(sizes, []int{2, 2, 1}) {
		t.Errorf("groups of %v", sizes)
	}
	all := r.Group(ByProcess)
	origins, unknown := all[0].Origins()
	if len(origins) != 2 || origins[0].Sockets != 2 || origins[1].Sockets != 1 || unknown != 2 {
		t.Errorf("%+v, %d unknown", origins, unknown)
	}
}
