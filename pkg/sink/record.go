// SPDX-License-Identifier: Apache-2.0

package sink

import (
	"time"

	"github.com/stated-tcp/stated/pkg/sink/flat"
)

// severities are the severity numbers of OpenTelemetry's logs data model.
var severities = map[string]int{"DEBUG": 5, "INFO": 9, "WARN": 13, "ERROR": 17}

// Parse makes a Record of a line of the schema, which it keeps. The fields it
// needs come first in what stated writes, so it reads no further than that.
func Parse(line []byte) (Record, error) {
	r := Record{Line: line}
	var buf [64]byte
	scan := flat.Scan(line)
	for (r.Event == "" || r.Time == 0 || r.Severity == 0 || r.UID == "") && scan.Next() {
		switch string(scan.Key) {
		case "timestamp":
			if at, err := time.Parse(time.RFC3339Nano, string(scan.Value.Text(buf[:0]))); err == nil {
				r.Time = at.UnixNano()
			}
		case "event.name":
			r.Event = eventName(scan.Value.Text(buf[:0]))
		case "severity_text":
			r.Severity = severities[string(scan.Value.Text(buf[:0]))]
		case "log.record.uid":
			r.UID = string(scan.Value.Text(buf[:0]))
		}
	}
	return r, scan.Err()
}

// EventNames are all kinds of records.
var EventNames = []string{"tcp.state_change", "tcp.connection", "tcp.leak", "stated.gap"}

func eventName(text []byte) string {
	for _, name := range EventNames {
		if string(text) == name {
			return name
		}
	}
	return string(text)
}
