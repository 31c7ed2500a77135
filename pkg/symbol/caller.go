// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Image tells the program that the process runs from the one after an
// execve(): where its code and its stack begin, fields 26 and 28 of
// /proc/PID/stat (proc(5)). If it is what was noted with a stack, the layout
// that Open read is that program's.
func (p *Process) Image() (image [2]uint64, err error) {
	f, err := openAt(p.proc, "stat", 0)
	if err != nil {
		return image, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return image, fmt.Errorf("read the state of the process: %w", err)
	}
	words := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from field 3 on
	if len(words) < 26 {
		return image, errors.New("read the state of the process: too short")
	}
	for i, field := range [...]int{26, 28} {
		if image[i], err = strconv.ParseUint(words[field-3], 10, 64); err != nil {
			return image, fmt.Errorf("read the state of the process: %w", err)
		}
	}
	return image, nil
}

// maxRestored is how many calls without a frame are looked for.
const maxRestored = 3

// Restore adds to a stack that was taken by frame pointers the callers that
// they miss at its inner end: a function without a frame of its own, as the
// system calls of glibc and of Go are, leaves its caller's frame pointer in
// place. top are the words from the stack pointer on. One of them is a caller's
// if it lies behind a call instruction whose target is the function that is
// missing a caller, directly or through the linkage table. Only amd64.
func (p *Process) Restore(stack, top []uint64) []uint64 {
	if len(stack) == 0 || len(top) == 0 {
		return stack
	}
	if p.mem == nil {
		mem, err := openAt(p.proc, "mem", 0)
		if err != nil {
			return stack
		}
		p.mem, p.starts, p.callers = mem, make(map[uint64]uint64), make(map[[2]uint64]bool)
	}
	inner, outer := stack[:1:1], stack[1:]
	callee, ok := p.function(stack[0])
	if !ok || len(outer) > 0 && p.calls(outer[0], callee) {
		return stack
	}
	for _, addr := range top {
		if len(outer) > 0 && addr == outer[0] || len(inner) > maxRestored {
			break
		}
		if !p.calls(addr, callee) {
			continue
		}
		inner = append(inner, addr)
		if callee, ok = p.function(addr); !ok {
			break
		}
	}
	return append(inner, outer...)
}

// function returns where the function begins that a call returns to. It is
// remembered: a program that leaks has the same few places again and again.
func (p *Process) function(addr uint64) (uint64, bool) {
	start, known := p.starts[addr]
	if !known {
		frames := p.frame(addr)
		if f := frames[len(frames)-1]; f.Function != "" {
			start = addr - f.Offset
		}
		p.starts[addr] = start
	}
	return start, start != 0
}

// calls reports whether the instruction before addr calls the function that
// begins at callee.
func (p *Process) calls(addr, callee uint64) bool {
	if !p.executable(addr - 1) {
		return false
	}
	key := [2]uint64{addr, callee}
	does, known := p.callers[key]
	if !known {
		does = p.readCall(addr, callee)
		p.callers[key] = does
	}
	return does
}

func (p *Process) readCall(addr, callee uint64) bool {
	var b [6]byte
	if _, err := p.mem.ReadAt(b[:], int64(addr-6)); err != nil {
		return false
	}
	target := addr + uint64(int64(int32(binary.LittleEndian.Uint32(b[2:]))))
	switch {
	case b[1] == 0xe8: // call rel32
		return target == callee || p.linked(target) == callee
	case b[0] == 0xff && b[1] == 0x15: // call *rel32(%rip)
		return p.pointer(target) == callee
	}
	return false
}

// linked returns where an entry of the procedure linkage table jumps to (System
// V ABI AMD64, 5.2: jmp *rel32(%rip), behind endbr64 and bnd where there are
// any), 0 if it is none.
func (p *Process) linked(addr uint64) uint64 {
	if !p.executable(addr) {
		return 0
	}
	var b [11]byte
	if _, err := p.mem.ReadAt(b[:], int64(addr)); err != nil {
		return 0
	}
	code := bytes.TrimPrefix(b[:], []byte{0xf3, 0x0f, 0x1e, 0xfa})
	code = bytes.TrimPrefix(code, []byte{0xf2})
	if len(code) < 6 || code[0] != 0xff || code[1] != 0x25 {
		return 0
	}
	next := addr + uint64(len(b)-len(code)) + 6
	return p.pointer(next + uint64(int64(int32(binary.LittleEndian.Uint32(code[2:])))))
}

func (p *Process) pointer(addr uint64) uint64 {
	var b [8]byte
	if _, err := p.mem.ReadAt(b[:], int64(addr)); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}
