// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
)

// A cursor says up to where a reader is done. Its file has two lines, written
// in turn and in place, so that one of them is always whole and a full disk
// cannot stop the cursor that would let segments go:
//
//	next 00000000000000001234 turn 00000000000000000007 crc 1a2b3c4d
//
// The line with the larger turn counts. When both are bad the reader begins
// anew at the oldest record: twice is better than never.
type cursor struct {
	torn bool          // neither line was whole
	next atomic.Uint64 // what is durable
	mu   sync.Mutex    // guards what follows
	file File
	turn uint64
}

const cursorLine = len("next 00000000000000001234 turn 00000000000000000007 crc 1a2b3c4d\n")

func formatCursor(next, turn uint64) string {
	text := fmt.Sprintf("next %020d turn %020d", next, turn)
	return fmt.Sprintf("%s crc %08x\n", text, crc32.Checksum([]byte(text), crc32.MakeTable(crc32.Castagnoli)))
}

func parseCursor(line string) (next, turn uint64, ok bool) {
	if n, _ := fmt.Sscanf(line, "next %d turn %d", &next, &turn); n != 2 {
		return 0, 0, false
	}
	return next, turn, formatCursor(next, turn) == line
}

// openCursor opens a cursor, or makes it with next.
func openCursor(fs FS, name string, next uint64) (*cursor, error) {
	f, err := fs.Open(name, true)
	if err != nil {
		return nil, fmt.Errorf("open the cursor: %w", err)
	}
	c := &cursor{file: f}
	c.next.Store(next)
	text := make([]byte, 2*cursorLine)
	n, _ := f.ReadAt(text, 0) // short when new
	found := false
	for half := 0; half < n; half += cursorLine {
		next, turn, ok := parseCursor(string(text[half:min(half+cursorLine, n)]))
		if ok && (!found || turn > c.turn) {
			c.turn, found = turn, true
			c.next.Store(next)
		}
	}
	c.torn = n > 0 && !found
	return c, nil
}

// save makes next durable.
func (c *cursor) save(next uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	turn := c.turn + 1
	if _, err := c.file.WriteAt([]byte(formatCursor(next, turn)), int64(turn%2)*int64(cursorLine)); err != nil {
		return fmt.Errorf("write the cursor: %w", err)
	}
	if err := c.file.Sync(); err != nil {
		return fmt.Errorf("sync the cursor: %w", err)
	}
	c.turn = turn
	c.next.Store(next)
	return nil
}
