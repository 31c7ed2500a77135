// SPDX-License-Identifier: Apache-2.0

package syslog

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/flat"
)

// encoder makes messages of records.
type encoder struct {
	facility   int
	app        string // APP-NAME and PROCID
	id         string // SD-ID
	structured bool
	max        int

	host   []byte
	params []byte
	text   []byte // scratch for unescaping
	human  []byte
}

// scratch holds nearly every string that has escapes; a longer one is allotted.
const scratch = 1 << 10

var facilities = strings.Fields("kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock local0 local1 local2 local3 local4 local5 local6 local7")

func newEncoder(cfg Config) (encoder, error) {
	e := encoder{facility: -1, app: cfg.AppName, id: cfg.StructuredDataID, max: cfg.MaxBytes, text: make([]byte, 0, scratch)}
	if cfg.Facility == "" {
		cfg.Facility = "daemon"
	}
	for i, name := range facilities {
		if name == cfg.Facility {
			e.facility = i
		}
	}
	if e.facility < 0 {
		return e, fmt.Errorf("facility %q: want one of %s", cfg.Facility, strings.Join(facilities, ", "))
	}
	if e.app == "" {
		e.app = "stated"
	}
	if string(appendPrintable(nil, []byte(e.app), 48)) != e.app {
		return e, fmt.Errorf("app_name %q: want up to 48 visible ASCII characters", e.app)
	}
	e.app += " " + strconv.Itoa(os.Getpid())
	if e.id == "" {
		e.id = "stated@32473"
	}
	name, number, ok := strings.Cut(e.id, "@")
	if string(appendName(nil, []byte(e.id))) != e.id || !ok || name == "" || strings.Trim(number, "0123456789.") != "" || number == "" {
		return e, fmt.Errorf("structured_data_id %q: want NAME@ENTERPRISE-NUMBER, up to 32 characters", e.id)
	}
	switch cfg.Format {
	case "", "json":
	case "structured":
		e.structured = true
	default:
		return e, fmt.Errorf("format %q: want json or structured", cfg.Format)
	}
	if e.max == 0 {
		e.max = 8096
	}
	if e.max < 480 || e.max > 1<<20 {
		return e, fmt.Errorf("max_bytes %d: want 480 to %d", e.max, 1<<20)
	}
	return e, nil
}

// append adds the message for r. There is no byte order mark: RFC 5424, 6.4,
// leaves it out where the text is not declared as UTF-8, and parsers of JSON
// stumble over it.
func (e *encoder) append(dst []byte, r *sink.Record) ([]byte, error) {
	if err := e.scan(r); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = append(dst, '<')
	dst = strconv.AppendInt(dst, int64(e.facility*8+severity(r.Severity)), 10)
	dst = append(dst, ">1 "...)
	dst = appendTime(dst, r.Time)
	dst = append(append(dst, ' '), e.host...)
	dst = append(append(dst, ' '), e.app...)
	dst = appendPrintable(append(dst, ' '), []byte(r.Event), 32)
	dst = append(append(dst, " ["...), e.id...)
	if e.structured {
		dst = append(dst, e.params...)
	} else {
		dst = appendParam(dst, []byte("uid"), []byte(r.UID))
	}
	dst = append(dst, ` t_ns="`...)
	dst = strconv.AppendInt(dst, r.Time, 10)
	dst = append(dst, `"] `...)
	if e.structured {
		dst = append(dst, e.human...)
	} else {
		for _, c := range r.Line {
			if c < ' ' { // between tokens: inside of strings JSON has none
				c = ' '
			}
			dst = append(dst, c)
		}
	}
	if n := len(dst) - start; n > e.max {
		return dst[:start], fmt.Errorf("a message of %d bytes is longer than max_bytes, %d", n, e.max)
	}
	return dst, nil
}

// scan finds in the record what the header and the structured data want.
func (e *encoder) scan(r *sink.Record) error {
	e.host, e.params, e.human = append(e.host[:0], '-'), e.params[:0], e.human[:0]
	s := flat.Scan(r.Line)
	for s.Next() {
		switch string(s.Key) {
		case "host.name":
			e.host = appendPrintable(e.host[:0], s.Value.Text(e.text), 255)
		case "host": // of ECS
			if name, ok := s.Value.Member("name"); ok {
				e.host = appendPrintable(e.host[:0], name.Text(e.text), 255)
			}
		case "message":
			if e.structured {
				e.human = appendVisible(e.human, s.Value.Text(e.text))
				continue
			}
		}
		if e.structured && len(s.Key) > 0 {
			e.params = appendParam(e.params, s.Key, s.Value.Text(e.text))
		}
	}
	if err := s.Err(); err != nil {
		return err
	}
	if !utf8.Valid(r.Line) {
		return errors.New("the record is not UTF-8")
	}
	return nil
}

// severity maps OpenTelemetry's number (logs data model, SeverityNumber) to
// RFC 5424's: fatal to critical, error, warning, informational, debug.
func severity(otel int) int {
	switch {
	case otel >= 21:
		return 2
	case otel >= 17:
		return 3
	case otel >= 13:
		return 4
	case otel >= 9 || otel <= 0:
		return 6
	}
	return 7
}

// appendTime cuts to microseconds: RFC 5424, 6.2.3, allows no more digits, and
// rsyslog 8.2302 stores a garbage byte where it gets nine.
func appendTime(dst []byte, ns int64) []byte {
	return time.Unix(0, ns).UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
}

// appendPrintable adds a header's field: PRINTUSASCII of at most limit bytes,
// or the nil value.
func appendPrintable(dst, s []byte, limit int) []byte {
	if len(s) == 0 {
		return append(dst, '-')
	}
	for _, c := range s[:min(len(s), limit)] {
		if c <= ' ' || c > '~' {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// appendName adds an SD-NAME: 1 to 32 visible ASCII characters but for = ] "
// (RFC 5424, 6.3.2). A longer one loses its first words.
func appendName(dst, name []byte) []byte {
	for len(name) > 32 {
		dot := 0
		for dot < len(name) && name[dot] != '.' {
			dot++
		}
		if dot+1 >= len(name) {
			name = name[:32]
			break
		}
		name = name[dot+1:]
	}
	for _, c := range name {
		if c <= ' ' || c > '~' || c == '=' || c == ']' || c == '"' {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// appendParam adds SP name="value".
func appendParam(dst, name, value []byte) []byte {
	dst = appendName(append(dst, ' '), name)
	dst = append(dst, '=', '"')
	for _, c := range value {
		switch {
		case c == '"' || c == '\\' || c == ']':
			dst = append(dst, '\\', c)
		case c < ' ' || c == 0x7f:
			dst = append(dst, '\\', '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

const hexDigits = "0123456789abcdef"

// appendVisible adds text with control characters made visible.
func appendVisible(dst, s []byte) []byte {
	for _, c := range s {
		if c < ' ' || c == 0x7f {
			dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
			continue
		}
		dst = append(dst, c)
	}
	return dst
}
