// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
)

// templates are the four kinds of records, with what is hard on encoders:
// escapes, text beyond ASCII, nested lists, fractions, and 64-bit numbers.
var templates = []struct {
	event    string
	severity int
	level    string
	rest     string
}{
	{"tcp.state_change", 9, "INFO", `"network.connection.state":"close_wait","stated.state.previous":"established","stated.state.previous_duration_ns":53120000000,"stated.state.cause":"fin_received","stated.event.cpu":3,"stated.event.kernel_time_ns":"18446744073709551615","message":"java[4242] 10.0.0.7:48212 → 10.2.3.4:5432 ESTABLISHED → CLOSE_WAIT"`},
	{"tcp.connection", 9, "INFO", `"network.connection.state":"closed","stated.connection.start":"2026-11-23T16:00:00.000000001Z","stated.connection.duration_ns":9007199254740991,"stated.connection.complete":true,"stated.connection.path":"syn_sent>established>closed","stated.connection.states":[{"state":"syn_sent","known":"seen","offset_ns":0,"duration_ns":812000},{"state":"established","known":"at_least"}],"stated.bytes.sent":0,"stated.bytes.received":-1,"message":"a \"quoted\" name\\x1b[31m with ] and \\ and = and tab\tand newline\n done"`},
	{"tcp.leak", 13, "WARN", `"stated.leak.id":"9f","stated.leak.sockets":312,"stated.leak.confidence":0.97,"stated.leak.growth_per_hour":90.5,"stated.leak.evidence":["a","b \"c\"",1.5,false],"stated.leak.examples":[{"local":"10.0.0.7:1","fd":87,"nested":{"deep":[]}}],"process.executable.name":"ж中\u00e9\ud83d\ude00","message":"java[4242] holds 312 sockets"`},
	{"stated.gap", 17, "ERROR", `"stated.gap.stage":"ringbuf","stated.gap.events":12,"message":"events lost: the kernel's buffer was full"`},
}

var sequence atomic.Int64

// Records makes n records with uids that no others of this process have.
func Records(n int) []sink.Record {
	batch := make([]sink.Record, n)
	for i := range batch {
		seq := sequence.Add(1)
		kind := templates[seq%int64(len(templates))]
		at := time.Unix(1_795_000_000, seq*1_000_003%1_000_000_000).UTC()
		uid := fmt.Sprintf("0193a5b0-7c1e-7f00-8000-00000000abcd-%d", seq)
		line := fmt.Sprintf(`{"schema":"stated/1","timestamp":"%s","event.name":"%s","severity_text":"%s","log.record.uid":"%s","stated.seq":%d,`+
			`"service.name":"stated","service.version":"v1","host.name":"web-1","host.id":"4c1e","stated.boot.id":"b00t","stated.run.id":"0193a5b0","os.type":"linux",`+
			`"network.transport":"tcp","network.type":"ipv4","network.local.address":"10.0.0.7","network.local.port":48212,`+
			`"network.peer.address":"10.2.3.4","network.peer.port":5432,"process.pid":4242,%s}`,
			at.Format("2006-01-02T15:04:05.000000000Z"), kind.event, kind.level, uid, seq, kind.rest)
		batch[i] = sink.Record{Line: []byte(line), Event: kind.event, Time: at.UnixNano(), Severity: kind.severity, UID: uid}
	}
	return batch
}

// Long is a record whose message has n bytes.
func Long(n int) sink.Record {
	r := Records(1)[0]
	r.Line = append(r.Line[:len(r.Line)-1], `,"stated.test.filler":"`+strings.Repeat("x", n)+`"}`...)
	return r
}
