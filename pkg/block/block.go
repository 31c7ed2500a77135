// SPDX-License-Identifier: Apache-2.0

// Package block is the format in which lines are kept on disk, in recordings
// and in the spool: a sequence of blocks, each a zstd skippable frame with a
// header of ours, then one complete zstd frame with checksum that holds the
// lines. `zstd -dc FILE` therefore prints every line.
package block

import (
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
	signature = "stated\x00"
	version   = 2 // 1: the checksum did not cover the header
	bodySize  = len(signature) + 1 + 8 + 4 + 4 + 4
	headSize  = 8 + bodySize
	maxFrame  = MaxLines + MaxLines/16 // a block is never larger, so neither is our memory
	maxPlain  = 4 << 20
	readSize  = 64 << 10
)

// MaxLines is how many bytes of lines a block holds at most.
const MaxLines = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header is what a block says of its lines.
type Header struct {
	First uint64 // sequence number of the first line
	Count uint32 // lines
}

// End returns the sequence number behind the last line.
func (h Header) End() uint64 { return h.First + uint64(h.Count) }

// head is a header on disk, in little-endian order.
type head struct {
	Header
	version uint8
	size    uint32 // bytes of the zstd frame
	crc     uint32 // CRC-32C of first, count and size, then the zstd frame
}

func (h *head) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, skippable)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(bodySize))
	dst = append(append(dst, signature...), h.version)
	dst = binary.LittleEndian.AppendUint64(dst, h.First)
	dst = binary.LittleEndian.AppendUint32(dst, h.Count)
	dst = binary.LittleEndian.AppendUint32(dst, h.size)
	return binary.LittleEndian.AppendUint32(dst, h.crc)
}

func (h *head) checksum(frame []byte) uint32 {
	if h.version == 1 {
		return crc32.Checksum(frame, castagnoli)
	}
	var fields [16]byte
	binary.LittleEndian.PutUint64(fields[0:], h.First)
	binary.LittleEndian.PutUint32(fields[8:], h.Count)
	binary.LittleEndian.PutUint32(fields[12:], h.size)
	return crc32.Update(crc32.Checksum(fields[:], castagnoli), castagnoli, frame)
}

func parseHead(text []byte) (h head, ok bool) {
	le := binary.LittleEndian
	if len(text) < headSize || le.Uint32(text) != skippable || le.Uint32(text[4:]) != uint32(bodySize) ||
		string(text[8:8+len(signature)]) != signature {
		return h, false
	}
	body := text[8+len(signature):]
	h.version = body[0]
	h.First, h.Count, h.size, h.crc = le.Uint64(body[1:]), le.Uint32(body[9:]), le.Uint32(body[13:]), le.Uint32(body[17:])
	return h, h.size <= maxFrame && h.Count <= maxPlain && (h.version == 1 || h.version == version)
}

// Encoder makes blocks. It is not safe for concurrent use.
type Encoder struct{ enc *zstd.Encoder }

// NewEncoder makes an Encoder.
func NewEncoder() (*Encoder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &Encoder{enc}, nil
}

// Append adds a block of h.Count lines, each with its newline, of MaxLines
// bytes at most.
func (e *Encoder) Append(dst []byte, h Header, lines []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, headSize)...)
	dst = e.enc.EncodeAll(lines, dst)
	frame := dst[start+headSize:]
	full := head{Header: h, version: version, size: uint32(len(frame))}
	full.crc = full.checksum(frame)
	full.append(dst[:start])
	return dst
}

// Damage is what a Reader had to leave out.
type Damage struct {
	BadBlocks int    // places in the middle where a block should be and none is whole
	BadBytes  int64  // bytes skipped there
	TornBytes int64  // bytes at the end that are no whole block
	TornLines uint64 // lines in them, as far as headers tell
}

// Reader reads one block after another and goes on behind damaged ones. It is
// not safe for concurrent use.
type Reader struct {
	r       io.Reader
	dec     *zstd.Decoder
	buf     []byte
	pos     int    // in buf, of what was not consumed
	base    int64  // of buf in the stream
	next    uint64 // sequence number behind the last block
	plain   []byte
	skipped int64  // bytes since the last whole block
	claimed uint64 // lines that headers in them promise
	damage  Damage
}

// NewReader makes a Reader of r.
func NewReader(r io.Reader) (*Reader, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPlain))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &Reader{r: r, dec: dec}, nil
}

// Reset goes on with another stream. Damage counts on.
func (s *Reader) Reset(r io.Reader) {
	s.r, s.buf, s.pos, s.base, s.skipped, s.claimed = r, s.buf[:0], 0, 0, 0, 0
}

// Damage returns what had to be left out so far.
func (s *Reader) Damage() Damage { return s.damage }

// Offset returns where the block that Next returned ends, in bytes from the
// beginning of the stream.
func (s *Reader) Offset() int64 { return s.base + int64(s.pos) }

// Close releases memory. The stream is the caller's.
func (s *Reader) Close() { s.dec.Close() }

// Next returns the next whole block and its lines, io.EOF at the end. The lines
// are valid until the next call. When the stream ended between two blocks and
// has grown since, Next goes on.
func (s *Reader) Next() (Header, []byte, error) {
	for {
		if err := s.fill(headSize); err != nil {
			return Header{}, nil, err
		}
		if len(s.buf)-s.pos < headSize {
			return Header{}, nil, s.end()
		}
		if h, ok := parseHead(s.buf[s.pos:]); ok {
			size := headSize + int(h.size)
			if err := s.fill(size); err != nil {
				return Header{}, nil, err
			}
			if s.whole(&h, size) {
				s.pos += size
				s.next = h.End()
				return h.Header, s.plain, nil
			}
			if h.First == s.next+s.claimed {
				s.claimed += uint64(h.Count)
			}
		}
		s.skip()
	}
}

// whole unpacks the block at pos into plain, and settles what was skipped
// before it.
func (s *Reader) whole(h *head, size int) bool {
	if len(s.buf)-s.pos < size {
		return false
	}
	frame := s.buf[s.pos+headSize : s.pos+size]
	if h.checksum(frame) != h.crc {
		return false
	}
	plain, err := s.dec.DecodeAll(frame, s.plain[:0])
	if err != nil || bytes.Count(plain, []byte{'\n'}) != int(h.Count) {
		return false
	}
	s.plain = plain
	if s.skipped > 0 {
		s.damage.BadBlocks++
		s.damage.BadBytes += s.skipped
		s.skipped, s.claimed = 0, 0
	}
	return true
}

// end settles what is behind the last whole block.
func (s *Reader) end() error {
	s.damage.TornBytes += s.skipped + int64(len(s.buf)-s.pos)
	s.damage.TornLines += s.claimed
	s.skipped, s.claimed = 0, 0
	s.pos = len(s.buf)
	return io.EOF
}

var mark = binary.LittleEndian.AppendUint32(nil, skippable)

// skip consumes bytes up to where the next header may begin.
func (s *Reader) skip() {
	rest := s.buf[s.pos+1:]
	n := bytes.Index(rest, mark)
	if n < 0 {
		n = max(0, len(rest)-len(mark)+1)
	}
	s.pos += 1 + n
	s.skipped += int64(1 + n)
}

// fill makes n bytes available behind pos, or all there are.
func (s *Reader) fill(n int) error {
	if len(s.buf)-s.pos >= n {
		return nil
	}
	s.base += int64(s.pos)
	s.buf = s.buf[:copy(s.buf, s.buf[s.pos:])]
	s.pos = 0
	if cap(s.buf) < n || cap(s.buf) < readSize {
		s.buf = append(make([]byte, 0, max(n, readSize)), s.buf...)
	}
	for empty := 0; len(s.buf) < n; {
		got, err := s.r.Read(s.buf[len(s.buf):cap(s.buf)])
		s.buf = s.buf[:len(s.buf)+got]
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case got > 0:
			empty = 0
		default:
			if empty++; empty > 100 {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}
