// SPDX-License-Identifier: Apache-2.0

package render

import (
	"unicode"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// EscapeText adds s with everything made visible that could move a cursor, end
// a line or reorder text: a process chooses its own name.
func EscapeText(dst, s []byte) []byte {
	for len(s) > 0 {
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

// appendString adds s as a JSON string, made visible like EscapeText's.
func appendString(dst []byte, s []byte) []byte {
	dst = append(dst, '"')
	var buf [64]byte
	for _, b := range EscapeText(buf[:0], s) {
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
