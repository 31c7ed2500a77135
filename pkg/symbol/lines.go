// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"debug/dwarf"
	"debug/elf"
	"strings"
	"sync"

	"github.com/ianlancetaylor/demangle"
)

const maxInlined = 64 // calls compiled into one instruction

// lineTable is the DWARF of a file.
type lineTable struct {
	mu sync.Mutex // dwarf.Data parses as it is asked
	d  *dwarf.Data
}

// readLines returns nil if the file has no DWARF, or too much.
func readLines(f *elf.File) *lineTable {
	info := false
	var total uint64
	for _, s := range f.Sections {
		if strings.HasPrefix(s.Name, ".debug_") {
			total += s.Size // once decompressed
			info = info || s.Name == ".debug_info" && s.Type != elf.SHT_NOBITS
		}
		if total > maxDWARF || strings.HasPrefix(s.Name, ".zdebug_") { // debug/elf trusts the length in those
			return nil
		}
	}
	if !info {
		return nil
	}
	d, err := f.DWARF()
	if err != nil {
		return nil
	}
	return &lineTable{d: d}
}

// expand adds line and inlined calls to a frame, innermost first.
func (l *lineTable) expand(f Frame, pc uint64) (out []Frame) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out = []Frame{f}
	defer func() {
		if recover() != nil { // debug/dwarf on a file made to break it
			out = []Frame{f}
		}
	}()
	r := l.d.Reader()
	cu, err := r.SeekPC(pc)
	if err != nil {
		return out
	}
	lr, err := l.d.LineReader(cu)
	if err != nil || lr == nil {
		return out
	}
	var line dwarf.LineEntry
	if lr.SeekPC(pc, &line) != nil && !seekSequences(lr, pc, &line) {
		return out
	}
	chain := l.inlined(r, pc)
	file, num := "", line.Line
	if line.File != nil {
		file = line.File.Name
	}
	files := lr.Files()
	var frames []Frame
	for i := len(chain) - 1; i >= 0; i-- {
		frames = append(frames, Frame{Address: f.Address, Function: l.name(chain[i], 0), File: file, Line: num, Module: f.Module, Inlined: true})
		file, num = callSite(chain[i], files)
	}
	f.File, f.Line, f.Note = file, num, ""
	return append(frames, f)
}

// seekSequences finds what LineReader.SeekPC gives up on: an address below that
// of the first sequence of its compile unit, as main() is, which GCC puts into
// .text.startup in front of .text.
func seekSequences(lr *dwarf.LineReader, pc uint64, line *dwarf.LineEntry) bool {
	var next dwarf.LineEntry
	within := false
	for lr.Reset(); lr.Next(&next) == nil; {
		if within && line.Address <= pc && pc < next.Address {
			return true
		}
		*line, within = next, !next.EndSequence
	}
	return false
}

// inlined returns the inlined calls at pc in the compile unit that r is in, outermost first.
func (l *lineTable) inlined(r *dwarf.Reader, pc uint64) (chain []*dwarf.Entry) {
	for depth := 0; ; {
		e, err := r.Next()
		if err != nil || e == nil || e.Tag == dwarf.TagCompileUnit || len(chain) >= maxInlined {
			return chain
		}
		if e.Tag == 0 {
			if depth--; depth < 0 {
				return chain
			}
			continue
		}
		enter := false
		switch e.Tag {
		case dwarf.TagSubprogram, dwarf.TagInlinedSubroutine, dwarf.TagLexDwarfBlock:
			enter = l.covers(e, pc)
		case dwarf.TagNamespace, dwarf.TagModule:
			enter = true
		}
		if enter && e.Tag == dwarf.TagInlinedSubroutine {
			chain = append(chain, e)
		}
		if e.Tag == dwarf.TagSubprogram && enter {
			depth = -1 // nothing after it is of interest
			if !e.Children {
				return chain
			}
		}
		switch {
		case e.Children && enter:
			depth++
		case e.Children:
			r.SkipChildren()
		}
	}
}

func (l *lineTable) covers(e *dwarf.Entry, pc uint64) bool {
	ranges, err := l.d.Ranges(e)
	for _, r := range ranges {
		if err == nil && r[0] <= pc && pc < r[1] {
			return true
		}
	}
	return false
}

// name follows abstract origins to the name of an inlined function.
func (l *lineTable) name(e *dwarf.Entry, depth int) string {
	if s, ok := e.Val(dwarf.AttrLinkageName).(string); ok {
		return demangle.Filter(s, demangle.NoClones, demangle.MaxLength(12))
	}
	for _, attr := range []dwarf.Attr{dwarf.AttrAbstractOrigin, dwarf.AttrSpecification} {
		if off, ok := e.Val(attr).(dwarf.Offset); ok && depth < 4 {
			r := l.d.Reader()
			r.Seek(off)
			if origin, err := r.Next(); err == nil && origin != nil {
				return l.name(origin, depth+1)
			}
		}
	}
	s, _ := e.Val(dwarf.AttrName).(string)
	return s
}

func callSite(e *dwarf.Entry, files []*dwarf.LineFile) (string, int) {
	line, _ := e.Val(dwarf.AttrCallLine).(int64)
	i, ok := e.Val(dwarf.AttrCallFile).(int64)
	if !ok || i < 0 || int(i) >= len(files) || files[i] == nil {
		return "", int(line)
	}
	return files[i].Name, int(line)
}
