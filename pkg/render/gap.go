// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strconv"
	"time"
)

// Gap is what a record says of records that are missing on their way to a sink.
type Gap struct {
	UID     string
	Wall    int64  // when it was noticed, Unix nanoseconds
	Stage   string // spool
	Sink    string
	Records uint64
	Damaged bool // what was on disk is damaged; else it was dropped for want of room
}

// GapRecord makes a stated.gap record, without its newline.
func GapRecord(h Host, g Gap) []byte {
	b := append([]byte(nil), `{"schema":"stated/1","timestamp":"`...)
	b = time.Unix(0, g.Wall).UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z")
	b = append(b, `","event.name":"stated.gap","severity_text":"ERROR"`...)
	b = appendString(key(b, "log.record.uid"), []byte(g.UID))
	b = append(b, resourceOf(h)...)
	b = text(b, "stated.gap.stage", g.Stage)
	b = text(b, "stated.gap.sink", g.Sink)
	reason, message := "dropped", "records lost: the spool was full, or took none"
	if g.Damaged {
		reason, message = "damaged", "records lost: the spool was damaged"
	}
	b = text(b, "stated.gap.reason", reason)
	b = strconv.AppendUint(key(b, "stated.gap.records"), g.Records, 10)
	return append(text(b, "message", message), '}')
}

// AppendSampled adds a record, without its newline, with the share of its kind
// that the sink gets.
func AppendSampled(dst, line []byte, rate float64) []byte {
	dst = append(dst, line[:len(line)-1]...)
	return append(strconv.AppendFloat(key(dst, "stated.sample.rate"), rate, 'g', -1, 64), '}')
}
