// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"strconv"
	"unicode"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// EscapeText adds s with everything made visible that could move a cursor, end
// a line or reorder text: a process chooses its own name.
func EscapeText(dst, s []byte) []byte {
	for len(s) > 0 {
		if plain := plainPrefix(s); plain > 0 {
			dst, s = append(dst, s[:plain]...), s[plain:]
			continue
		}
		r, n := utf8.DecodeRune(s)
		switch {
		case r == utf8.RuneError && n == 1:
			dst = append(dst, '\\', 'x', hexDigits[s[0]>>4], hexDigits[s[0]&15])
		case r == '\\':
			dst = append(dst, '\\', '\\')
		case unicode.IsPrint(r): // letters, marks, numbers, punctuation, symbols and the ASCII space
			dst = append(dst, s[:n]...)
		case r < 0x80:
			dst = append(dst, '\\', 'x', hexDigits[r>>4], hexDigits[r&15])
		default:
			dst = append(dst, '\\', 'u', '{')
			dst = appendHex(dst, uint64(r))
			dst = append(dst, '}')
		}
		s = s[n:]
	}
	return dst
}

// Unescape gives back what EscapeText was given: a person copies a name from what was
// shown. What EscapeText does not write stays as it is.
func Unescape(s []byte) []byte {
	var out []byte
	for len(s) > 0 {
		n := 1
		switch {
		case bytes.HasPrefix(s, []byte(`\\`)):
			out, n = append(out, '\\'), 2
		case bytes.HasPrefix(s, []byte(`\x`)) && len(s) >= 4:
			if b, err := strconv.ParseUint(string(s[2:4]), 16, 8); err == nil {
				out, n = append(out, byte(b)), 4
				break
			}
			out = append(out, s[0])
		case bytes.HasPrefix(s, []byte(`\u{`)) && bytes.IndexByte(s, '}') > 0:
			end := bytes.IndexByte(s, '}')
			if r, err := strconv.ParseUint(string(s[3:end]), 16, 21); err == nil {
				out, n = utf8.AppendRune(out, rune(r)), end+1
				break
			}
			out = append(out, s[0])
		default:
			out = append(out, s[0])
		}
		s = s[n:]
	}
	return out
}

// plainPrefix is how many bytes at the start of s are printable ASCII that stays
// as it is: nearly all of most names.
func plainPrefix(s []byte) int {
	for i, b := range s {
		if b < ' ' || b > '~' || b == '\\' {
			return i
		}
	}
	return len(s)
}

// appendString adds s as a JSON string, made visible like EscapeText's.
func appendString(dst []byte, s []byte) []byte {
	var buf [64]byte
	return quote(dst, EscapeText(buf[:0], s))
}

// quote adds as a JSON string what EscapeText has escaped.
func quote(dst, escaped []byte) []byte {
	dst = append(dst, '"')
	if bytes.IndexByte(escaped, '"') < 0 && bytes.IndexByte(escaped, '\\') < 0 { // nearly always
		dst = append(dst, escaped...)
		return append(dst, '"')
	}
	for _, b := range escaped {
		if b == '"' || b == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, b)
	}
	return append(dst, '"')
}

func appendHex(dst []byte, v uint64) []byte {
	shift := 60
	for shift > 0 && v>>shift == 0 {
		shift -= 4
	}
	for ; shift >= 0; shift -= 4 {
		dst = append(dst, hexDigits[v>>shift&15])
	}
	return dst
}
