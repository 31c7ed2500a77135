// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/flat"
)

// What Forward needs of MessagePack (github.com/msgpack/msgpack, spec.md).

// appendEntry adds [EventTime, record]; dst is returned as it was on an error.
func (s *Sink) appendEntry(dst []byte, r *sink.Record) ([]byte, error) {
	if !utf8.Valid(r.Line) {
		return dst, errors.New("the record is not UTF-8")
	}
	b := append(dst, 0x92, 0xd7, 0) // an array of two; extension 0 of 8 bytes
	b = binary.BigEndian.AppendUint32(b, uint32(r.Time/1e9))
	b = binary.BigEndian.AppendUint32(b, uint32(r.Time%1e9))
	b, err := s.appendAll(b, flat.Scan(r.Line), true)
	if err != nil {
		return dst, err
	}
	return b, nil
}

// appendAll adds what is scanned as a map or an array, with lengths of 32 bits,
// which are known only afterwards.
func (s *Sink) appendAll(b []byte, in flat.Scanner, object bool) ([]byte, error) {
	kind := byte(0xdd)
	if object {
		kind = 0xdf
	}
	b = append(b, kind, 0, 0, 0, 0)
	start, n := len(b), uint32(0)
	for ; in.Next(); n++ {
		if object {
			b = appendString(b, in.Key)
		}
		var err error
		switch v := in.Value; v.Kind {
		case flat.String:
			b = appendString(b, v.Text(s.text))
		case flat.Int:
			b = appendInt(b, v.Int)
		case flat.Float:
			b = binary.BigEndian.AppendUint64(append(b, 0xcb), math.Float64bits(v.Float()))
		case flat.Bool:
			b = append(b, 0xc2+byte(v.Int))
		case flat.Null:
			b = append(b, 0xc0)
		default:
			b, err = s.appendAll(b, v.Scan(), v.Kind == flat.Object)
		}
		if err != nil {
			return b, err
		}
	}
	binary.BigEndian.PutUint32(b[start-4:], n)
	return b, in.Err()
}

func appendString(b, s []byte) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n < 1<<8:
		b = append(b, 0xd9, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, s...)
}

func appendBin(b, s []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(len(s)))
	return append(b, s...)
}

func appendInt(b []byte, v int64) []byte {
	switch {
	case v >= -32 && v < 128:
		return append(b, byte(v))
	case v >= math.MinInt32 && v <= math.MaxInt32:
		return binary.BigEndian.AppendUint32(append(b, 0xd2), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v))
}

// reader reads a collector's answers, within limits.
type reader struct {
	in   *bufio.Reader
	left int // bytes that the answer may still have
}

const maxAnswer = 64 << 10

func newReader(in *bufio.Reader) *reader { return &reader{in: in, left: maxAnswer} }

var errNoAnswer = errors.New("the collector speaks something else than Forward")

func (r *reader) bytes(n int) ([]byte, error) {
	if r.left -= n; n < 0 || r.left < 0 {
		return nil, fmt.Errorf("%w: an answer of more than %d KiB", errNoAnswer, maxAnswer>>10)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r.in, b)
	return b, err
}

// number reads a big-endian number of size bytes.
func (r *reader) number(size int) (int64, error) {
	b, err := r.bytes(size)
	if err != nil {
		return 0, err
	}
	var v uint64
	for _, x := range b {
		v = v<<8 | uint64(x)
	}
	return int64(v), nil
}

// value reads nil, bool, int64, string (of str and bin), []any or
// map[string]any; that is all that handshake and acknowledgement have.
func (r *reader) value(depth int) (any, error) {
	head, err := r.bytes(1)
	if err != nil {
		return nil, err
	}
	c := head[0]
	var n int64
	switch {
	case depth > 4:
		return nil, fmt.Errorf("%w: nested too deep", errNoAnswer)
	case c < 0x80:
		return int64(c), nil
	case c >= 0xe0:
		return int64(int8(c)), nil
	case c == 0xc0:
		return nil, nil
	case c == 0xc2 || c == 0xc3:
		return c == 0xc3, nil
	case c >= 0xcc && c <= 0xcf:
		return r.number(1 << (c - 0xcc))
	case c >= 0xa0 && c < 0xc0:
		return r.text(int64(c & 31))
	case c >= 0xc4 && c <= 0xc6:
		if n, err = r.number(1 << (c - 0xc4)); err != nil {
			return nil, err
		}
		return r.text(n)
	case c >= 0xd9 && c <= 0xdb:
		if n, err = r.number(1 << (c - 0xd9)); err != nil {
			return nil, err
		}
		return r.text(n)
	case c >= 0x90 && c < 0xa0:
		return r.list(int64(c&15), depth)
	case c == 0xdc || c == 0xdd:
		if n, err = r.number(2 << (c - 0xdc)); err != nil {
			return nil, err
		}
		return r.list(n, depth)
	case c < 0x90:
		return r.dict(int64(c&15), depth)
	case c == 0xde || c == 0xdf:
		if n, err = r.number(2 << (c - 0xde)); err != nil {
			return nil, err
		}
		return r.dict(n, depth)
	}
	return nil, fmt.Errorf("%w (byte %#x)", errNoAnswer, c)
}

func (r *reader) text(n int64) (any, error) {
	if n > maxAnswer {
		n = maxAnswer + 1
	}
	b, err := r.bytes(int(n))
	return string(b), err
}

func (r *reader) list(n int64, depth int) (any, error) {
	var list []any
	for range n { // each takes a byte of what is left
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func (r *reader) dict(n int64, depth int) (any, error) {
	dict := map[string]any{}
	for range n {
		k, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		dict[text(k)] = v
	}
	return dict, nil
}

func text(v any) string {
	s, _ := v.(string)
	return s
}
