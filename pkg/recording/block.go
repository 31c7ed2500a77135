// SPDX-License-Identifier: Apache-2.0

// Package recording keeps the event stream on disk and gives it back: the same
// events in the same order, so that a replay prints what the live run printed.
//
// A file is a sequence of blocks. A block is a zstd skippable frame with a
// header of ours, then one complete zstd frame with checksum that holds lines
// of JSON. `zstd -dc FILE` therefore prints every line.
package recording

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	skippable = 0x184d2a5e // RFC 8878 3.1.2: 0x184d2a50 to 5f
	signature = "stated\x00\x01"
	bodySize  = len(signature) + 8 + 4 + 4 + 4 // signature, first, count, frame size, crc32c
	headSize  = 8 + bodySize
	maxFrame  = 16 << 20 // a compressed block is never larger, so neither is our memory
	maxPlain  = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// block is what the header says of the frame behind it.
type block struct {
	first uint64 // sequence number of the first line
	count uint32 // lines
	size  uint32 // bytes of the zstd frame
	crc   uint32 // CRC-32C of the zstd frame
}

func (b *block) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, skippable)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(bodySize))
	dst = append(dst, signature...)
	dst = binary.LittleEndian.AppendUint64(dst, b.first)
	dst = binary.LittleEndian.AppendUint32(dst, b.count)
	dst = binary.LittleEndian.AppendUint32(dst, b.size)
	return binary.LittleEndian.AppendUint32(dst, b.crc)
}

func parseHead(head []byte) (b block, ok bool) {
	le := binary.LittleEndian
	if len(head) < headSize || le.Uint32(head) != skippable || le.Uint32(head[4:]) != uint32(bodySize) ||
		string(head[8:8+len(signature)]) != signature {
		return b, false
	}
	body := head[8+len(signature):]
	b = block{first: le.Uint64(body), count: le.Uint32(body[8:]), size: le.Uint32(body[12:]), crc: le.Uint32(body[16:])}
	return b, b.size <= maxFrame
}

// Damage is what a Reader had to leave out.
type Damage struct {
	BadBlocks  int    // blocks in the middle whose checksum or contents were wrong
	BadBytes   int64  // bytes between blocks that belong to none
	TornBytes  int64  // bytes at the end that are no complete block
	LostEvents uint64 // events that were in what was left out, as far as the sequence tells
}

// errNoBlock says that the stream does not begin with a block.
var errNoBlock = errors.New("not a stated recording")

// blocks reads one block after another and goes on behind damaged ones.
type blocks struct {
	r      *bufio.Reader
	dec    *zstd.Decoder
	frame  []byte
	plain  []byte
	damage Damage
}

func newBlocks(r io.Reader) (*blocks, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPlain))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &blocks{r: bufio.NewReaderSize(r, 1<<20), dec: dec}, nil
}

// next returns the next whole block and its lines, io.EOF at the end. The lines
// are valid until the next call.
func (s *blocks) next() (block, []byte, error) {
	for {
		head, err := s.r.Peek(headSize)
		if len(head) == 0 && errors.Is(err, io.EOF) {
			return block{}, nil, io.EOF
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return block{}, nil, err
		}
		b, ok := parseHead(head)
		if !ok {
			if err != nil { // too short for a header
				return block{}, nil, s.torn(int64(len(head)))
			}
			if err := s.resync(); err != nil {
				return block{}, nil, err
			}
			continue
		}
		lines, err := s.body(b)
		if errors.Is(err, io.EOF) || err == nil {
			return b, lines, err
		}
		if !errors.Is(err, errBad) {
			return block{}, nil, err
		}
		s.damage.BadBlocks++
	}
}

var errBad = errors.New("bad block")

func (s *blocks) body(b block) ([]byte, error) {
	if _, err := s.r.Discard(headSize); err != nil {
		return nil, err
	}
	s.frame = append(s.frame[:0], make([]byte, b.size)...)
	if n, err := io.ReadFull(s.r, s.frame); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, s.torn(int64(headSize + n))
		}
		return nil, err
	}
	if crc32.Checksum(s.frame, castagnoli) != b.crc {
		return nil, errBad
	}
	plain, err := s.dec.DecodeAll(s.frame, s.plain[:0])
	if err != nil || bytes.Count(plain, []byte{'\n'}) != int(b.count) {
		return nil, errBad
	}
	s.plain = plain
	return plain, nil
}

func (s *blocks) torn(n int64) error {
	s.damage.TornBytes += n
	return io.EOF
}

// resync skips to where a header may begin.
func (s *blocks) resync() error {
	mark := binary.LittleEndian.AppendUint32(nil, skippable)
	for {
		if _, err := s.r.Discard(1); err != nil {
			return err
		}
		s.damage.BadBytes++
		window, err := s.r.Peek(4096)
		if i := bytes.Index(window, mark); i >= 0 {
			s.damage.BadBytes += int64(i)
			_, err := s.r.Discard(i)
			return err
		}
		if err != nil {
			s.damage.TornBytes, s.damage.BadBytes = s.damage.BadBytes+int64(len(window)), 0
			return io.EOF
		}
		skip := len(window) - len(mark)
		s.damage.BadBytes += int64(skip)
		if _, err := s.r.Discard(skip); err != nil {
			return err
		}
	}
}
