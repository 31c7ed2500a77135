// SPDX-License-Identifier: Apache-2.0

package ecs

import (
	"cmp"
	"slices"
	"strings"
)

// Version is the version of the Elastic Common Schema whose fields are used.
const Version = "9.4.0"

// renamed says what becomes of a record's field, in the order of the document,
// where fields of one object stand together. Those without a name in the record
// are made in derive.go. A field of a record that is neither here nor in kept is
// a mistake that TestTableKnowsTheSchema finds.
var renamed = []struct{ record, document string }{
	{"timestamp", "@timestamp"},
	{"severity_text", "log.level"},
	{"message", "message"},
	{"", "ecs.version"},
	{"", "event.kind"},
	{"", "event.category"},
	{"", "event.type"},
	{"event.name", "event.action"},
	{"", "event.outcome"},
	{"stated.close.reason", "event.reason"}, // each of these is of another kind of record
	{"stated.state.cause", "event.reason"},
	{"stated.leak.verdict", "event.reason"},
	{"", "event.module"},
	{"", "event.dataset"},
	{"log.record.uid", "event.id"},
	{"stated.seq", "event.sequence"},
	{"stated.connection.start", "event.start"},
	{"stated.connection.end", "event.end"},
	{"stated.connection.duration_ns", "event.duration"},
	{"service.name", "agent.type"},
	{"service.version", "agent.version"},
	{"stated.run.id", "agent.ephemeral_id"},
	{"host.name", "host.name"},
	{"host.id", "host.id"},
	{"stated.boot.id", "host.boot.id"},
	{"os.type", "host.os.type"},
	{"network.transport", "network.transport"},
	{"network.type", "network.type"},
	{"", "network.direction"},
	{"", "network.community_id"},
	{"", "network.bytes"},
	{"", "source.address"},
	{"", "source.ip"},
	{"", "source.port"},
	{"", "source.bytes"},
	{"", "destination.address"},
	{"", "destination.ip"},
	{"", "destination.port"},
	{"", "destination.bytes"},
	{"", "client.address"},
	{"", "client.ip"},
	{"", "client.port"},
	{"", "client.bytes"},
	{"", "server.address"},
	{"", "server.ip"},
	{"", "server.port"},
	{"", "server.bytes"},
	{"process.pid", "process.pid"},
	{"process.vpid", "process.vpid"},
	{"process.executable.name", "process.name"},
	{"process.executable.path", "process.executable"},
	{"process.command_line", "process.command_line"},
	{"process.creation.time", "process.start"},
	{"process.parent_pid", "process.parent.pid"},
	{"process.user.id", "process.user.id"},
	{"process.user.name", "process.user.name"},
	{"user.id", "user.id"},
	{"container.id", "container.id"},
	{"container.name", "container.name"},
	{"container.image.name", "container.image.name"},
	{"", "orchestrator.type"},
	{"k8s.namespace.name", "orchestrator.namespace"},
	{"", "orchestrator.resource.type"},
	{"k8s.pod.uid", "orchestrator.resource.id"},
	{"k8s.pod.name", "orchestrator.resource.name"},
	{"stated.errno", "error.code"}, // as text
}

// aside are the fields that the ends are made of, see ends.
var aside = strings.Fields(`network.local.address network.local.port network.peer.address network.peer.port
	stated.bytes.sent stated.bytes.received`)

// kept are the fields for which ECS has no name. They keep their own, below
// stated.
var kept = strings.Fields(`
	schema code.stacktrace k8s.container.name network.connection.state process.linux.cgroup
	stated.accept.wait_ns stated.cgroup.id
	stated.close.initiator stated.close.unknown_why
	stated.closer.process.executable.name stated.closer.process.executable.path stated.closer.process.pid
	stated.comparison.after.connections stated.comparison.after.duration_ns stated.comparison.after.gap
	stated.comparison.after.leaked stated.comparison.after.leaked_per_hour
	stated.comparison.after.stuck_at_end stated.comparison.after.stuck_before
	stated.comparison.before.connections stated.comparison.before.duration_ns stated.comparison.before.gap
	stated.comparison.before.leaked stated.comparison.before.leaked_per_hour
	stated.comparison.before.stuck_at_end stated.comparison.before.stuck_before
	stated.comparison.min_age_ns stated.comparison.verdict
	stated.connection.complete stated.connection.duration_known stated.connection.gap stated.connection.id
	stated.connection.incomplete_reason stated.connection.path stated.connection.role
	stated.connection.role_known stated.connection.states stated.connection.subflows
	stated.descriptor.open
	stated.event.cpu stated.event.kernel_time_ns
	stated.gap.events stated.gap.reason stated.gap.records stated.gap.sink stated.gap.stage
	stated.handshake.cookie
	stated.leak.age_known stated.leak.close_wait.entered stated.leak.close_wait.left stated.leak.container
	stated.leak.examples stated.leak.fd.exhaustion_ns stated.leak.fd.limit stated.leak.fd.used
	stated.leak.growth_per_hour stated.leak.holders stated.leak.id stated.leak.idle_before_fin_ns
	stated.leak.oldest_age_ns stated.leak.opened_by stated.leak.sockets
	stated.leak.sockets_by_state.close_wait stated.leak.sockets_by_state.closed stated.leak.sockets_by_state.closing
	stated.leak.sockets_by_state.established stated.leak.sockets_by_state.fin_wait_1
	stated.leak.sockets_by_state.fin_wait_2 stated.leak.sockets_by_state.last_ack
	stated.leak.sockets_by_state.syn_received stated.leak.sockets_by_state.syn_sent
	stated.leak.sockets_by_state.time_wait
	stated.leak.sockets_by_verdict.data_unread stated.leak.sockets_by_verdict.drained
	stated.leak.sockets_by_verdict.eof_unread stated.leak.sockets_by_verdict.hidden
	stated.leak.sockets_by_verdict.not_accepted stated.leak.sockets_by_verdict.shut_down
	stated.leak.sockets_by_verdict.unknown
	stated.leak.stack.cut stated.leak.stack.sockets stated.leak.stack.unknown
	stated.leak.unknown_why stated.leak.unread_bytes
	stated.listener.overflows stated.listener.queue stated.listener.queue_full stated.listener.queue_limit
	stated.mptcp stated.netns.inode stated.process.source stated.reset.reason stated.sample.rate
	stated.snapshot
	stated.socket.cookie stated.socket.held_elsewhere stated.socket.holders stated.socket.inode
	stated.socket.kernel stated.socket.not_accepted stated.socket.wait stated.socket.wait_call stated.socket.wait_thread
	stated.socket.waited_for
	stated.state.age_at_most_ns stated.state.age_known stated.state.age_ns
	stated.state.duration_known stated.state.duration_ns stated.state.known
	stated.state.previous stated.state.previous_duration_ns stated.state.previous_known
	stated.subflow.connection.id stated.systemd.unit
	stated.tcp.probes stated.tcp.retransmits stated.tcp.rx_queue_age_ns stated.tcp.rx_queue_bytes stated.tcp.srtt_us
	stated.tcp.timeouts stated.tcp.tx_queue_bytes stated.tcp.window_closed
	stated.time_wait.full`)

// unmapped holds, under their own names, fields that are in no table: those of
// a stated that is newer than this one.
const unmapped = "stated.unmapped"

// row is a field of the document.
type row struct {
	path    string
	parents []string // the objects around it, from the outside
	key     []byte   // its name there, as JSON, with a colon
}

// rows are in the order of the document; byPath has the row of a field of the
// document, byName the one that a record's field becomes.
var rows, byPath, byName = layout()

func layout() (rows []row, byPath, byName map[string]int) {
	byPath, byName = make(map[string]int), make(map[string]int)
	add := func(name, path string) {
		i, ok := byPath[path]
		if !ok {
			i = len(rows)
			byPath[path] = i
			words := strings.Split(path, ".")
			last := len(words) - 1
			rows = append(rows, row{path, words[:last], []byte(`"` + words[last] + `":`)})
		}
		if name != "" {
			byName[name] = i
		}
	}
	for _, f := range renamed {
		add(f.record, f.document)
	}
	order := func(name string) string { return strings.ReplaceAll(keptPath(name), ".", "\x00") } // members of an object together
	for _, name := range slices.SortedFunc(slices.Values(kept), func(a, b string) int { return cmp.Compare(order(a), order(b)) }) {
		add(name, keptPath(name))
	}
	add("", unmapped)
	return rows, byPath, byName
}

func keptPath(name string) string {
	if strings.HasPrefix(name, "stated.") {
		return name
	}
	return "stated." + name
}
