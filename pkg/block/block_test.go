// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
)

// blocks makes n blocks of per lines each, numbered from 0.
func blocks(t testing.TB, n, per int) [][]byte {
	enc, err := NewEncoder()
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for b := range n {
		var lines []byte
		for i := range per {
			lines = fmt.Appendf(lines, "{\"n\":%d}\n", b*per+i)
		}
		out = append(out, enc.Append(nil, Header{First: uint64(b * per), Count: uint32(per)}, lines))
	}
	return out
}

func readAll(t testing.TB, r io.Reader) (first []uint64, d Damage) {
	rd, err := NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	for {
		h, lines, err := rd.Next()
		if errors.Is(err, io.EOF) {
			return first, rd.Damage()
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(lines, []byte{'\n'}); n != int(h.Count) {
			t.Fatalf("%d lines in a block of %d", n, h.Count)
		}
		first = append(first, h.First)
	}
}

// A header that lies about the size of its block hides nothing behind it.
func TestLyingSize(t *testing.T) {
	all := blocks(t, 4, 3)
	for _, size := range []uint32{0, 1, 100, 1000, maxFrame} {
		bad := slices.Clone(all)
		bad[1] = bytes.Clone(all[1])
		binary.LittleEndian.PutUint32(bad[1][headSize-8:], size)
		first, d := readAll(t, bytes.NewReader(bytes.Join(bad, nil)))
		if !slices.Equal(first, []uint64{0, 6, 9}) || d.BadBlocks != 1 || d.BadBytes != int64(len(all[1])) || d.TornBytes != 0 {
			t.Errorf("size %d: blocks %v, %+v", size, first, d)
		}
	}
}

func TestTornTailTellsItsLines(t *testing.T) {
	all := blocks(t, 3, 5)
	text := bytes.Join(all, nil)
	first, d := readAll(t, bytes.NewReader(text[:len(text)-1]))
	if !slices.Equal(first, []uint64{0, 5}) || d != (Damage{TornBytes: int64(len(all[2]) - 1), TornLines: 5}) {
		t.Errorf("blocks %v, %+v", first, d)
	}
}

// A file that is still written is read as far as it is, and then on.
func TestFollow(t *testing.T) {
	all := blocks(t, 3, 2)
	var file bytes.Buffer // a bytes.Buffer gives io.EOF at its end, and more once there is more
	rd, err := NewReader(&file)
	if err != nil {
		t.Fatal(err)
	}
	offset := int64(0)
	for i, b := range all {
		if _, _, err := rd.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("before block %d: %v", i, err)
		}
		file.Write(b)
		h, _, err := rd.Next()
		offset += int64(len(b))
		if err != nil || h.First != uint64(2*i) || rd.Offset() != offset {
			t.Fatalf("block %d: %+v at %d, %v", i, h, rd.Offset(), err)
		}
	}
	if d := rd.Damage(); d != (Damage{}) {
		t.Errorf("%+v", d)
	}
}

// Recordings of version 1 had no checksum over the header.
func TestVersion1(t *testing.T) {
	b := blocks(t, 1, 2)[0]
	b[8+len(signature)] = 1
	binary.LittleEndian.PutUint32(b[headSize-4:], crc32.Checksum(b[headSize:], castagnoli))
	if first, d := readAll(t, bytes.NewReader(b)); len(first) != 1 || d != (Damage{}) {
		t.Errorf("%v, %+v", first, d)
	}
}

// The largest block that may be written can be read.
func TestLargest(t *testing.T) {
	enc, err := NewEncoder()
	if err != nil {
		t.Fatal(err)
	}
	lines := make([]byte, MaxLines)
	state := uint32(1)
	for i := range lines { // hardly compressible
		state = state*1664525 + 1013904223
		lines[i] = byte(state>>24) | 0x80
	}
	lines[len(lines)-1] = '\n'
	if first, d := readAll(t, bytes.NewReader(enc.Append(nil, Header{Count: 1}, lines))); len(first) != 1 || d != (Damage{}) {
		t.Errorf("%v, %+v", first, d)
	}
}

func FuzzReader(f *testing.F) {
	all := bytes.Join(blocks(f, 3, 2), nil)
	f.Add(all, 7)
	f.Add(all[:len(all)-1], 1)
	f.Add([]byte(strings.Repeat(string(mark), 50)), 3)
	f.Fuzz(func(t *testing.T, data []byte, chunk int) {
		whole, d := readAll(t, bytes.NewReader(data))
		if d.BadBytes+d.TornBytes > int64(len(data)) {
			t.Fatalf("%+v of %d bytes", d, len(data))
		}
		// how the bytes come does not matter
		pieces, d2 := readAll(t, &chunked{data, 1 + chunk&0xff})
		if !slices.Equal(whole, pieces) || d != d2 {
			t.Fatalf("%v %+v in one piece, %v %+v in pieces", whole, d, pieces, d2)
		}
	})
}

type chunked struct {
	rest []byte
	n    int
}

func (c *chunked) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(c.n, len(p))], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
