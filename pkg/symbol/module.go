// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"

	"github.com/ianlancetaylor/demangle"
)

// What is read of one file.
const (
	maxSymtab  = 64 << 20 // bytes of .symtab, and of its names
	maxPclntab = 256 << 20
	maxDWARF   = 512 << 20
)

type symbol struct {
	addr, size uint64
	name       string
}

// module is the symbols of one ELF file, not changed once loaded.
type module struct {
	err     error
	loads   []elf.ProgHeader // executable PT_LOADs
	symbols []symbol         // by address
	goTab   *goTable
	lines   *lineTable
	note    string // what the file lacks
}

// loadModule reads an ELF file. debug gives its separate debug file, or nil.
func loadModule(r io.ReaderAt, size int64, lines bool, debug func(id, link string, crc uint32) *os.File) (mod *module) {
	mod = &module{}
	defer func() {
		if e := recover(); e != nil { // debug/elf on a file made to break it
			mod = &module{err: fmt.Errorf("broken ELF file: %v", e)}
		}
	}()
	f, err := elf.NewFile(io.NewSectionReader(r, 0, size))
	if err != nil {
		mod.err = err
		return mod
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 {
			mod.loads = append(mod.loads, p.ProgHeader)
		}
	}
	hasSymtab := mod.addSymbols(f)
	mod.goTab = readGoTable(f, mod.address("runtime.text"))
	if lines {
		mod.lines = readLines(f)
	}
	if !hasSymtab || lines && mod.lines == nil {
		hasSymtab = mod.addDebug(f, lines && mod.lines == nil, debug) || hasSymtab
	}
	mod.sortSymbols()
	if !hasSymtab && mod.goTab == nil {
		mod.note = "stripped: only exported functions have names"
	}
	return mod
}

// addDebug adds what the separate debug file has.
func (mod *module) addDebug(f *elf.File, lines bool, debug func(id, link string, crc uint32) *os.File) bool {
	id := buildID(f)
	link, crc := debugLink(f)
	if debug == nil || id == "" && link == "" {
		return false
	}
	file := debug(id, link, crc)
	if file == nil {
		return false
	}
	defer file.Close()
	d, err := elf.NewFile(file)
	if err != nil || id != "" && buildID(d) != id || d.Machine != f.Machine {
		return false
	}
	if lines {
		mod.lines = readLines(d)
	}
	return mod.addSymbols(d)
}

// addSymbols adds the functions of .symtab and .dynsym, and reports whether there is a .symtab.
func (mod *module) addSymbols(f *elf.File) (symtab bool) {
	for _, typ := range []elf.SectionType{elf.SHT_SYMTAB, elf.SHT_DYNSYM} {
		sec := f.SectionByType(typ)
		if sec == nil || sec.Type == elf.SHT_NOBITS || sec.Size > maxSymtab ||
			int(sec.Link) >= len(f.Sections) || f.Sections[sec.Link].Size > maxSymtab {
			continue
		}
		read := f.Symbols
		if typ == elf.SHT_DYNSYM {
			read = f.DynamicSymbols
		}
		syms, err := read()
		if err != nil {
			continue
		}
		symtab = symtab || typ == elf.SHT_SYMTAB && len(syms) > 0
		for _, s := range syms {
			kind := elf.ST_TYPE(s.Info)
			if (kind == elf.STT_FUNC || kind == elf.STT_GNU_IFUNC) && s.Section != elf.SHN_UNDEF && s.Name != "" {
				mod.symbols = append(mod.symbols, symbol{s.Value, s.Size, s.Name})
			}
		}
	}
	return symtab
}

// sortSymbols orders the functions and keeps one name of those that have
// several: that with the fewest leading underscores, then the shortest.
func (mod *module) sortSymbols() {
	under := func(s string) int { return len(s) - len(strings.TrimLeft(s, "_")) }
	sort.Slice(mod.symbols, func(i, j int) bool {
		a, b := mod.symbols[i], mod.symbols[j]
		switch {
		case a.addr != b.addr:
			return a.addr < b.addr
		case (a.size == 0) != (b.size == 0):
			return b.size == 0
		case under(a.name) != under(b.name):
			return under(a.name) < under(b.name)
		case len(a.name) != len(b.name):
			return len(a.name) < len(b.name)
		}
		return a.name < b.name
	})
	kept := mod.symbols[:0]
	for _, s := range mod.symbols {
		if len(kept) == 0 || kept[len(kept)-1].addr != s.addr {
			kept = append(kept, s)
		}
	}
	mod.symbols = append([]symbol(nil), kept...)
}

// address returns the address of a symbol before sorting, 0 if there is none.
func (mod *module) address(name string) uint64 {
	for _, s := range mod.symbols {
		if s.name == name {
			return s.addr
		}
	}
	return 0
}

// frames names the instruction at an offset in the file, on top of what is in f.
func (mod *module) frames(f Frame, offset uint64) []Frame {
	vaddr, ok := mod.vaddr(offset)
	if !ok {
		f.Offset, f.Note = offset+1, "offset in the file: no segment has it"
		return []Frame{f}
	}
	f.Offset = vaddr + 1
	if mod.goTab != nil && mod.goTab.name(&f, vaddr) {
		// named by Go's table, with a note of its own
	} else if s, ok := mod.find(vaddr); ok {
		f.Function, f.Offset = demangle.Filter(s.name, demangle.NoClones, demangle.MaxLength(12)), vaddr+1-s.addr
		if mod.note != "" && s.size == 0 {
			f.Note = "the nearest exported function"
		}
	} else {
		f.Note = mod.note
	}
	if mod.lines != nil {
		return mod.lines.expand(f, vaddr)
	}
	return []Frame{f}
}

// vaddr turns an offset in the file into an address as linked, which holds for
// any load address (System V ABI, Program Loading).
func (mod *module) vaddr(offset uint64) (uint64, bool) {
	for _, p := range mod.loads {
		if offset >= p.Off && offset-p.Off < p.Filesz {
			return offset - p.Off + p.Vaddr, true
		}
	}
	return 0, false
}

func (mod *module) find(vaddr uint64) (symbol, bool) {
	i := sort.Search(len(mod.symbols), func(i int) bool { return mod.symbols[i].addr > vaddr }) - 1
	if i < 0 || mod.symbols[i].size != 0 && vaddr-mod.symbols[i].addr >= mod.symbols[i].size {
		return symbol{}, false
	}
	return mod.symbols[i], true
}

// buildID returns the GNU build id in hexadecimal, "" if there is none.
func buildID(f *elf.File) string {
	sec := f.Section(".note.gnu.build-id")
	if sec == nil || sec.Size > 4096 {
		return ""
	}
	b, err := sec.Data()
	if err != nil || len(b) < 16 || f.ByteOrder.Uint32(b) != 4 || !bytes.Equal(b[12:16], []byte("GNU\x00")) {
		return ""
	}
	n := f.ByteOrder.Uint32(b[4:])
	if uint64(n) > uint64(len(b)-16) {
		return ""
	}
	return hexID(b[16 : 16+n])
}

// debugLink returns the name and checksum in .gnu_debuglink.
func debugLink(f *elf.File) (string, uint32) {
	sec := f.Section(".gnu_debuglink")
	if sec == nil || sec.Size > 4096 {
		return "", 0
	}
	b, err := sec.Data()
	end := bytes.IndexByte(b, 0)
	if err != nil || end <= 0 || len(b) < 4 || end+1 > len(b)-4 {
		return "", 0
	}
	return string(b[:end]), f.ByteOrder.Uint32(b[len(b)-4:])
}

const maxVDSO = 256 << 10

// loadVDSO reads the code that the kernel maps into each process.
func (p *Process) loadVDSO(m mapping) *module {
	if m.end-m.start > maxVDSO {
		return &module{err: errors.New("the vdso is too large")}
	}
	mem, err := openAt(p.proc, "mem", 0)
	if err != nil {
		return &module{err: err}
	}
	defer mem.Close()
	b := make([]byte, m.end-m.start)
	if _, err := mem.ReadAt(b, int64(m.start)); err != nil {
		return &module{err: err}
	}
	return loadModule(bytes.NewReader(b), int64(len(b)), false, nil)
}
