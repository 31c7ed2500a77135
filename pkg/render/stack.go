// SPDX-License-Identifier: Apache-2.0

package render

import (
	"path"
	"slices"
	"strings"

	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/symbol"
)

// What is shown of the stacks of a group; a record has all frames of one.
const (
	shownOrigins = 3
	shownFrames  = 12
)

// plumbing are the packages of Go that lie between any program and its sockets.
var plumbing = []string{"syscall.", "internal/", "runtime.", "runtime/", "net.", "golang.org/x/sys/unix."}

// ordinary reports whether a frame says nothing of the program: the C library,
// and what Go and Node have in its place.
func ordinary(f *symbol.Frame) bool {
	switch {
	case strings.HasSuffix(f.File, ".go"), strings.HasSuffix(f.File, ".s"):
		return slices.ContainsFunc(plumbing, func(p string) bool { return strings.HasPrefix(f.Function, p) })
	case f.Module == "[jit]":
		return strings.Contains(f.Function, " node:")
	}
	lib := path.Base(f.Module)
	return slices.ContainsFunc([]string{"libc.so", "libc-", "ld-musl-", "libpthread"}, func(p string) bool { return strings.HasPrefix(lib, p) })
}

// nameless reports whether a frame is of generated code of which nothing is known.
func nameless(f *symbol.Frame) bool { return f.Module == "[jit]" && f.Function == "" }

// fromProgram leaves out the innermost frames that are not the program's own:
// in front of generated code also those of the machine that runs it.
func fromProgram(frames []symbol.Frame) []symbol.Frame {
	generated := func(f symbol.Frame) bool { return f.Module == "[jit]" && f.Function != "" }
	for _, own := range []func(symbol.Frame) bool{
		func(f symbol.Frame) bool { return generated(f) && !ordinary(&f) },
		generated,
		func(f symbol.Frame) bool { return !ordinary(&f) },
	} {
		if first := slices.IndexFunc(frames, own); first >= 0 {
			return frames[first:]
		}
	}
	return frames
}

// appendFrame says a frame in one line.
func appendFrame(b []byte, f *symbol.Frame) []byte {
	switch {
	case f.Function != "":
		b = EscapeText(b, []byte(f.Function))
	case f.Module != "":
		b = EscapeText(b, []byte(f.Module))
		b = appendHex(append(b, "+0x"...), f.Offset)
	default:
		b = appendHex(append(b, "0x"...), f.Address)
	}
	switch {
	case f.File != "":
		b = EscapeText(append(b, "  "...), []byte(f.File))
		if f.Line > 0 {
			b = appendInt(append(b, ':'), int64(f.Line))
		}
	case f.Function != "" && f.Module != "":
		b = appendHex(append(b, "+0x"...), f.Offset)
		b = EscapeText(append(b, "  "...), []byte(f.Module))
	}
	if f.Note != "" {
		b = append(EscapeText(append(b, "  ("...), []byte(f.Note)), ')')
	}
	return b
}

// textOrigins shows where in the code the sockets of a group were opened, from
// the innermost call of the program itself on.
func (r *Writer) textOrigins(g *leak.Group) {
	origins, unknown := g.Origins()
	for i := range origins {
		if i == shownOrigins {
			b := appendInt(append(r.line[:0], "and at "...), int64(len(origins)-i))
			r.lineOf(2, styleDim, append(b, " more places: --by stack shows them all"...))
			break
		}
		r.textOrigin(&origins[i])
	}
	if unknown > 0 && len(origins) > 0 {
		r.lineOf(2, "", append(appendInt(r.line[:0], int64(unknown)), " opened at a place that is not known"...))
	}
}

func (r *Writer) textOrigin(o *leak.Origin) {
	r.lineOf(2, "", append(appendInt(r.line[:0], int64(o.Sockets)), " opened at"...))
	frames := fromProgram(o.Frames)
	var hints []string
	for shown := 0; len(frames) > 0; shown++ {
		if shown == shownFrames {
			r.lineOf(6, styleDim, append(appendInt(append(r.line[:0], "and "...), int64(len(frames))), " more"...))
			break
		}
		same := 1
		if nameless(&frames[0]) {
			for same < len(frames) && nameless(&frames[same]) && frames[same].Note == frames[0].Note {
				same++
			}
			r.lineOf(6, "", append(appendCount(r.line[:0], same, "frame"), " of generated code"...))
			if hint := frames[0].Note; hint != "" && !slices.Contains(hints, hint) {
				hints = append(hints, hint)
			}
			frames = frames[same:]
			continue
		}
		for same < len(frames) && frames[same] == frames[0] {
			same++
		}
		b := appendFrame(r.line[:0], &frames[0])
		if same > 1 {
			b = append(appendInt(append(b, "  ("...), int64(same)), " times)"...)
		}
		r.lineOf(6, "", b)
		frames = frames[same:]
	}
	for _, hint := range hints {
		r.wrapped(6, styleDim, EscapeText(r.line[:0], []byte(hint)))
	}
	if o.Cut != "" {
		r.wrapped(6, styleDim, EscapeText(r.line[:0], []byte(o.Cut)))
	}
}

// withoutStack counts the findings of which it is not known where they were
// opened, if that was asked for.
func (l *Leaks) withoutStack() (n int) {
	if !l.Stacks {
		return 0
	}
	for i := range l.Findings {
		if l.Findings[i].Stack == nil {
			n++
		}
	}
	return n
}

// jsonOrigin adds where most sockets of a group were opened.
func jsonOrigin(b []byte, g *leak.Group) []byte {
	origins, unknown := g.Origins()
	if len(origins) > 0 {
		o := &origins[0]
		b = append(key(b, "code.stacktrace"), '"')
		for i := range o.Frames {
			if i > 0 {
				b = append(b, `\n`...)
			}
			line := quote(nil, appendFrame(nil, &o.Frames[i]))
			b = append(b, line[1:len(line)-1]...)
		}
		b = append(b, '"')
		b = number(b, "stated.leak.stack.sockets", int64(o.Sockets))
		if o.Cut != "" {
			b = appendString(key(b, "stated.leak.stack.cut"), []byte(o.Cut))
		}
	}
	return number(b, "stated.leak.stack.unknown", int64(unknown))
}
