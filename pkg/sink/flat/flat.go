// SPDX-License-Identifier: Apache-2.0

// Package flat reads the flat JSON objects that records are, for sinks that
// speak something else than JSON. It does not allocate. Strings are unescaped
// only where they are wanted.
package flat

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Kind is the type of a JSON value.
type Kind uint8

const (
	Invalid Kind = iota
	Null
	Bool
	Int   // a number without fraction and exponent that an int64 holds
	Float // any other number
	String
	Array
	Object
)

// Value is one JSON value; it refers to the line it was read from.
type Value struct {
	Kind Kind
	// Raw is the JSON text; of a String, without the quotes, still escaped.
	Raw []byte
	// Int is the value of an Int, and 1 for true.
	Int     int64
	escaped bool
}

// Float is the number of an Int or a Float.
func (v Value) Float() float64 {
	if v.Kind == Int {
		return float64(v.Int)
	}
	f, _ := strconv.ParseFloat(string(v.Raw), 64)
	return f
}

// Text is the string, unescaped, or the JSON text of anything else. It is
// appended to buf only if something had to be unescaped; then it is valid
// until buf is used again.
func (v Value) Text(buf []byte) []byte {
	if !v.escaped {
		return v.Raw
	}
	return unescape(buf[:0], v.Raw)
}

// JSON is the value as JSON text.
func (v Value) JSON(dst []byte) []byte {
	if v.Kind != String {
		return append(dst, v.Raw...)
	}
	return append(append(append(dst, '"'), v.Raw...), '"')
}

// maxDepth is enough for a record and keeps a hostile one off the stack.
const maxDepth = 16

var errTruncated = errors.New("it ends early")

// Scanner goes through the members of an object or the elements of an array:
//
//	for s := flat.Scan(line); s.Next(); {
//		... s.Key, s.Value
//	}
//	err := s.Err()
type Scanner struct {
	Key   []byte // unescaped as it stands: keys of the schema need no escapes
	Value Value

	text   []byte
	pos    int
	depth  int
	closer byte
	first  bool
	done   bool
	err    error
}

// Scan begins with a JSON object, which must be all of line but for space.
func Scan(line []byte) Scanner {
	s := begin(line, 0)
	if s.err == nil && s.closer != '}' {
		s.fail(errors.New("not an object"))
	}
	return s
}

// Member is the member of an Object, if it has it.
func (v Value) Member(key string) (Value, bool) {
	if v.Kind != Object {
		return Value{}, false
	}
	for s := v.Scan(); s.Next(); {
		if string(s.Key) == key {
			return s.Value, true
		}
	}
	return Value{}, false
}

// Scan goes through an Array or an Object.
func (v Value) Scan() Scanner { return begin(v.Raw, 1) }

func begin(text []byte, depth int) Scanner {
	s := Scanner{text: text, depth: depth, first: true}
	s.space()
	switch s.peek() {
	case '{':
		s.closer = '}'
	case '[':
		s.closer = ']'
	default:
		s.fail(errors.New("not an object"))
	}
	s.pos++
	return s
}

// Err is what is wrong with the text, once Next returned false.
func (s *Scanner) Err() error { return s.err }

func (s *Scanner) fail(err error) bool {
	if s.err == nil {
		s.err = fmt.Errorf("parse the record at byte %d: %w", s.pos, err)
	}
	return false
}

// Next reads the next member or element. It returns false at the end and at
// the first error.
func (s *Scanner) Next() bool {
	if s.err != nil || s.done {
		return false
	}
	s.space()
	if s.peek() == s.closer {
		return s.end()
	}
	if !s.first {
		if s.peek() != ',' {
			return s.fail(s.unexpected("a comma"))
		}
		s.pos++
		s.space()
	}
	s.first = false
	if s.closer == '}' {
		key, _, ok := s.str()
		if !ok {
			return false
		}
		s.Key = key
		s.space()
		if s.peek() != ':' {
			return s.fail(s.unexpected("a colon"))
		}
		s.pos++
		s.space()
	}
	return s.value()
}

func (s *Scanner) end() bool {
	s.done = true
	s.pos++
	s.space()
	if s.pos < len(s.text) {
		return s.fail(s.unexpected("nothing"))
	}
	return false
}

func (s *Scanner) unexpected(wanted string) error {
	if s.pos >= len(s.text) {
		return errTruncated
	}
	return fmt.Errorf("%q where %s belongs", s.text[s.pos], wanted)
}

// peek is the next byte, or 0 at the end; 0 is in no JSON text.
func (s *Scanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

func (s *Scanner) space() {
	for s.pos < len(s.text) {
		switch s.text[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// str reads a string: its text without quotes, and whether it has escapes.
func (s *Scanner) str() (text []byte, escaped, ok bool) {
	if s.peek() != '"' {
		return nil, false, s.fail(s.unexpected("a string"))
	}
	start := s.pos + 1
	text = s.text[start:]
	for i := 0; i < len(text); i++ { // the hottest loop of all sinks
		c := text[i]
		if plain[c] {
			continue
		}
		switch c {
		case '"':
			s.pos = start + i + 1
			return text[:i], escaped, true
		case '\\':
			escaped = true
			i++
		default:
			s.pos = start + i
			return nil, false, s.fail(s.unexpected("an escape"))
		}
	}
	s.pos = len(s.text)
	return nil, false, s.fail(errTruncated)
}

// plain are the bytes that stand for themselves in a string.
var plain = func() (set [256]bool) {
	for c := range set {
		set[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return set
}()

func (s *Scanner) value() bool {
	start := s.pos
	switch c := s.peek(); {
	case c == '"':
		text, escaped, ok := s.str()
		s.Value = Value{Kind: String, Raw: text, escaped: escaped}
		return ok
	case c == '{' || c == '[':
		if !s.skip() {
			return false
		}
		s.Value = Value{Kind: Object, Raw: s.text[start:s.pos]}
		if c == '[' {
			s.Value.Kind = Array
		}
		return true
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	}
	for _, w := range [...]struct {
		text  string
		value Value
	}{{"true", Value{Kind: Bool, Int: 1}}, {"false", Value{Kind: Bool}}, {"null", Value{Kind: Null}}} {
		if bytes.HasPrefix(s.text[s.pos:], []byte(w.text)) {
			s.pos += len(w.text)
			s.Value = w.value
			s.Value.Raw = s.text[start:s.pos]
			return true
		}
	}
	return s.fail(s.unexpected("a value"))
}

func (s *Scanner) number() bool {
	start := s.pos
	kind := Int
	for s.pos < len(s.text) {
		c := s.text[s.pos]
		if c == '.' || c == 'e' || c == 'E' || c == '+' {
			kind = Float
		} else if c != '-' && (c < '0' || c > '9') {
			break
		}
		s.pos++
	}
	raw := s.text[start:s.pos]
	s.Value = Value{Kind: kind, Raw: raw}
	if kind == Int {
		if n, ok := integer(raw); ok {
			s.Value.Int = n
			return true
		}
		s.Value.Kind = Float
	}
	if _, err := strconv.ParseFloat(string(raw), 64); err != nil && !errors.Is(err, strconv.ErrRange) {
		return s.fail(fmt.Errorf("%q is no number", raw))
	}
	return true
}

// integer parses up to 18 digits itself, which is nearly always enough.
func integer(b []byte) (int64, bool) {
	digits, negative := b, false
	if b[0] == '-' {
		digits, negative = b[1:], true
	}
	if len(digits) == 0 || len(digits) > 18 {
		n, err := strconv.ParseInt(string(b), 10, 64)
		return n, err == nil
	}
	var n int64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if negative {
		n = -n
	}
	return n, true
}

// skip passes an array or object, whose inside it checks by scanning it.
func (s *Scanner) skip() bool {
	if s.depth >= maxDepth {
		return s.fail(errors.New("nested too deep"))
	}
	inner := Scanner{text: s.text, pos: s.pos + 1, depth: s.depth + 1, closer: ']', first: true}
	if s.text[s.pos] == '{' {
		inner.closer = '}'
	}
	for inner.nextInside() {
	}
	s.pos = inner.pos
	if inner.err != nil {
		s.err = inner.err
		return false
	}
	return true
}

// nextInside is Next but for the end, after which there may be more.
func (s *Scanner) nextInside() bool {
	s.space()
	if s.peek() == s.closer && s.err == nil {
		s.pos++
		return false
	}
	return s.Next()
}

func unescape(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			dst = append(dst, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'n':
			dst = append(dst, '\n')
		case 't':
			dst = append(dst, '\t')
		case 'r':
			dst = append(dst, '\r')
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'u':
			r := hex4(s[i+1:])
			i += min(4, len(s)-i-1)
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if i+2 < len(s) && s[i+1] == '\\' && s[i+2] == 'u' {
					low = hex4(s[i+3:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
		default: // " \ /
			dst = append(dst, s[i])
		}
	}
	return dst
}

func hex4(s []byte) rune {
	if len(s) < 4 {
		return utf8.RuneError
	}
	n, err := strconv.ParseUint(string(s[:4]), 16, 32)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}
