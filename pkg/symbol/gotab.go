// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"debug/elf"
	"debug/gosym"
	"strings"
	"sync"
)

// goTable is Go's own table of functions and lines, which strip(1) and -ldflags
// -s leave in place.
type goTable struct {
	mu  sync.Mutex // gosym caches as it reads
	tab *gosym.Table
}

// readGoTable returns nil if the file is not Go's, or its table cannot be
// placed: offsets in it count from runtime.text, which is the start of .text but
// where a C linker put other code before it, and then only the symbol tells.
func readGoTable(f *elf.File, runtimeText uint64) *goTable {
	sec := f.Section(".gopclntab")
	if sec == nil {
		sec = f.Section(".data.rel.ro.gopclntab")
	}
	text := f.Section(".text")
	if sec == nil || text == nil || sec.Type == elf.SHT_NOBITS || sec.Size > maxPclntab {
		return nil
	}
	data, err := sec.Data()
	if err != nil {
		return nil
	}
	start := runtimeText
	if start == 0 {
		start = text.Addr
	}
	tab, err := gosym.NewTable(nil, gosym.NewLineTable(data, start))
	if err != nil || len(tab.Funcs) == 0 {
		return nil
	}
	if runtimeText == 0 {
		// Linked by Go alone the program begins in its runtime.
		fn := tab.PCToFunc(f.Entry)
		if fn == nil || fn.Entry != f.Entry || !strings.HasPrefix(fn.Name, "_rt0_") {
			return nil
		}
	}
	return &goTable{tab: tab}
}

// name fills in the function at an address; false if it is not Go's.
func (g *goTable) name(f *Frame, vaddr uint64) (ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer func() {
		if recover() != nil { // gosym on a table made to break it
			ok = false
		}
	}()
	file, line, fn := g.tab.PCToLine(vaddr)
	if fn == nil {
		return false
	}
	f.Function, f.File, f.Line, f.Offset = fn.Name, file, line, vaddr+1-fn.Entry
	// The table names the line of an inlined call but not its function: that
	// takes DWARF. A position in another file than the function's gives it away.
	if own, _, _ := g.tab.PCToLine(fn.Entry); own != file {
		f.Note = "the position is in a call inlined into this function"
	}
	return true
}
