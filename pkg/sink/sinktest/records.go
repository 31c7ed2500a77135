// SPDX-License-Identifier: Apache-2.0

package sinktest

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
)

// templates are the four kinds of records that sinks get, with what is hard on
// encoders: escapes, text beyond ASCII, nested lists, fractions, and 64-bit
// numbers. They fit the schema.
var templates = []struct {
	event    string
	severity int
	level    string
	rest     string
}{
	{"tcp.state_change", 9, "INFO", connection + `"network.connection.state":"close_wait","stated.state.previous":"established","stated.state.previous_duration_ns":53120000000,"stated.state.previous_known":"seen","stated.state.cause":"fin_received","stated.event.cpu":3,"stated.event.kernel_time_ns":"18446744073709551615","message":"java[4242] 10.0.0.7:48212 → 10.2.3.4:5432 ESTABLISHED → CLOSE_WAIT"`},
	{"tcp.connection", 9, "INFO", connection + `"network.connection.state":"closed","stated.connection.start":"2026-11-23T16:00:00.000000001Z","stated.connection.end":"2026-11-23T16:00:01.000000001Z","stated.connection.duration_ns":9007199254740991,"stated.connection.duration_known":"seen","stated.connection.complete":true,"stated.connection.path":"syn_sent>established>closed","stated.connection.states":[{"state":"syn_sent","known":"seen","offset_ns":0,"duration_ns":812000},{"state":"established","known":"at_least"}],"stated.close.initiator":"local","stated.close.reason":"closed","stated.bytes.sent":0,"stated.bytes.received":1,"stated.tcp.retransmits":0,"stated.tcp.rx_queue_bytes":0,"stated.tcp.tx_queue_bytes":0,"stated.sample.rate":0.1,"message":"a \"quoted\" name\\x1b[31m with ] and \\ and = and tab\tand newline\n done"`},
	{"tcp.leak", 13, "WARN", tuple + `"stated.leak.id":"9f","stated.leak.sockets":1,"stated.leak.verdict":"eof_unread","stated.leak.oldest_age_ns":60000000000,"stated.leak.age_known":"at_least","stated.leak.unread_bytes":0,"stated.leak.growth_per_hour":-90.5,"stated.socket.waited_for":false,"stated.leak.holders":[{"pid":4242,"executable":"b \"c\"","fds":[87,88]},{"pid":1,"executable":"","fds":[0]}],"message":"java[4242] holds 1 socket"`},
	{"stated.gap", 17, "ERROR", `"stated.gap.stage":"ringbuf","stated.gap.events":12,"message":"events lost: the kernel's buffer was full"`},
}

const (
	tuple = `"network.transport":"tcp","network.type":"ipv4","network.local.address":"10.0.0.7","network.local.port":48212,` +
		`"network.peer.address":"10.2.3.4","network.peer.port":5432,"stated.process.source":"connect","process.pid":4242,"process.executable.name":"ж中\u00e9\ud83d\ude00",`
	connection = tuple + `"stated.connection.id":"0000000000001002000000003b9aca00","stated.connection.role":"client",`
)

var sequence atomic.Int64

// Records makes n records with uids that no others of this process have.
func Records(n int) []sink.Record {
	batch := make([]sink.Record, n)
	for i := range batch {
		seq := sequence.Add(1)
		kind := templates[seq%int64(len(templates))]
		batch[i] = record(seq, kind.event, kind.severity, kind.level, kind.rest)
	}
	return batch
}

func record(seq int64, event string, severity int, level, rest string) sink.Record {
	at := time.Unix(1_795_000_000, seq*1_000_003%1_000_000_000).UTC()
	uid := fmt.Sprintf("0193a5b0-7c1e-7f00-8000-00000000abcd-%d", seq)
	line := fmt.Sprintf(`{"schema":"stated/1","timestamp":"%s","event.name":"%s","severity_text":"%s","log.record.uid":"%s","stated.seq":%d,`+
		`"service.name":"stated","service.version":"v1","host.name":"web-1","host.id":"4c1e","stated.boot.id":"b00t","stated.run.id":"0193a5b0","os.type":"linux",%s}`,
		at.Format("2006-01-02T15:04:05.000000000Z"), event, level, uid, seq, rest)
	return sink.Record{Line: []byte(line), Event: event, Time: at.UnixNano(), Severity: severity, UID: uid}
}

// Long is a record whose message has n bytes.
func Long(n int) sink.Record {
	return record(sequence.Add(1), "stated.gap", 17, "ERROR", `"stated.gap.stage":"ringbuf","stated.gap.events":12,"message":"`+strings.Repeat("x", n)+`"`)
}

// Odd is a record that the schema does not allow, with JSON of shapes that a
// later one may have.
func Odd() sink.Record {
	return record(sequence.Add(1), "tcp.leak", 13, "WARN", `"odd.negative":-1,"odd.fraction":-0.25,"odd.list":["a","b \"c\"",1.5,false,[],{}],"odd.nested":[{"deep":[{"er":[]}]}],"odd.object":{"a.b":{"c":true}},"message":"odd"`)
}
