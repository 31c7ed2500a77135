// SPDX-License-Identifier: Apache-2.0

package ecs

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"strconv"

	"github.com/stated-tcp/stated/pkg/sink/flat"
)

// facts are what a record says that more than one field of ECS follows from.
type facts struct {
	event, role, state, cause, reason, severity []byte
	local, peer                                 end
	transport, ended, snapshot, pod             bool
}

// end is one end of a connection, as JSON text; bytes are those that it sent.
type end struct{ address, port, bytes flat.Value }

// note keeps a fact. It reports whether the field has no row of its own.
func (c *Converter) note(key []byte, v *flat.Value) bool {
	f := &c.facts
	switch string(key) {
	case "network.local.address":
		f.local.address = *v
	case "network.local.port":
		f.local.port = *v
	case "network.peer.address":
		f.peer.address = *v
	case "network.peer.port":
		f.peer.port = *v
	case "stated.bytes.sent":
		f.local.bytes = *v
	case "stated.bytes.received":
		f.peer.bytes = *v
	case "stated.errno":
		c.put(byPath["error.code"], v.Raw, v.Kind != flat.Object && v.Kind != flat.Array) // a keyword
	default:
		f.fact(key, v)
		return false
	}
	return true
}

func (f *facts) fact(key []byte, v *flat.Value) {
	var word []byte
	if v.Kind == flat.String {
		word = v.Raw
	}
	switch string(key) {
	case "event.name":
		f.event = word
	case "severity_text":
		f.severity = word
	case "stated.connection.role":
		f.role = word
	case "stated.leak.opened_by":
		if f.role == nil {
			f.role = word
		}
	case "network.connection.state":
		f.state = word
	case "stated.state.cause":
		f.cause = word
	case "stated.close.reason":
		f.reason = word
	case "network.transport":
		f.transport = true
	case "stated.connection.end":
		f.ended = true
	case "stated.snapshot":
		f.snapshot = true
	case "k8s.pod.uid", "k8s.pod.name":
		f.pod = true
	}
}

// say sets a row to a word.
func (c *Converter) say(path, word string) {
	start := len(c.text)
	c.text = append(c.text, word...)
	c.put(byPath[path], c.text[start:], true)
}

// derive sets the rows that follow from the facts.
func (c *Converter) derive() {
	f := &c.facts
	c.say("ecs.version", Version)
	c.say("event.module", "stated")
	c.say("event.kind", kind(f.event))
	start := len(c.text)
	c.text = append(c.text, "stated."...)
	c.text = append(c.text, f.event[lastDot(f.event):]...)
	c.put(byPath["event.dataset"], c.text[start:], true)
	if outcome := f.outcome(); outcome != "" {
		c.say("event.outcome", outcome)
	}
	if f.pod {
		c.say("orchestrator.type", "kubernetes")
		c.say("orchestrator.resource.type", "pod")
	}
	if f.transport {
		c.put(byPath["event.category"], category, false)
		c.put(byPath["event.type"], f.types(), false)
		c.ends()
	}
}

// lastDot is where the last word of a name begins.
func lastDot(name []byte) int {
	for i := len(name); i > 0; i-- {
		if name[i-1] == '.' {
			return i
		}
	}
	return 0
}

// kind is event.kind: a finding is an alert; what is there now, a state; and
// pipeline_error says that data is missing.
func kind(event []byte) string {
	switch string(event) {
	case "tcp.leak":
		return "alert"
	case "tcp.socket":
		return "state"
	case "stated.gap":
		return "pipeline_error"
	}
	return "event"
}

// outcome is event.outcome, which only a connection has.
func (f *facts) outcome() string {
	switch {
	case string(f.event) != "tcp.connection":
		return ""
	case string(f.reason) == "unknown", string(f.reason) == "open":
		return "unknown"
	case string(f.severity) == "INFO":
		return "success"
	}
	return "failure"
}

var (
	category = []byte(`["network"]`)
	// by phase, and whether it is about a connection or about a listener
	eventTypes = [3][2][]byte{
		{[]byte(`["info"]`), []byte(`["connection","info"]`)},
		{[]byte(`["start"]`), []byte(`["connection","start"]`)},
		{[]byte(`["end"]`), []byte(`["connection","end"]`)},
	}
)

func (f *facts) types() []byte {
	phase, connection := 0, 1
	switch string(f.event) {
	case "tcp.connection":
		if f.ended {
			phase = 2
		}
	case "tcp.state_change":
		if f.snapshot || string(f.cause) == "none" {
			break
		}
		switch string(f.state) {
		case "syn_sent", "syn_received", "listen":
			phase = 1
		case "closed":
			phase = 2
		}
	}
	if string(f.role) == "listener" {
		connection = 0
	}
	return eventTypes[phase][connection]
}

// side are the rows of one of ECS's four ends.
type side struct{ address, ip, port, bytes string }

var (
	source      = side{"source.address", "source.ip", "source.port", "source.bytes"}
	destination = side{"destination.address", "destination.ip", "destination.port", "destination.bytes"}
	client      = side{"client.address", "client.ip", "client.port", "client.bytes"}
	server      = side{"server.address", "server.ip", "server.port", "server.bytes"}
)

// ends says which end is which. The source is who called. Where nobody knows,
// we are it, and there is neither client nor server.
func (c *Converter) ends() {
	f := &c.facts
	from, to, direction := &f.local, &f.peer, "unknown"
	switch string(f.role) {
	case "client":
		direction = "egress"
	case "server", "listener":
		from, to, direction = &f.peer, &f.local, "ingress"
	}
	c.say("network.direction", direction)
	c.end(source, from)
	c.end(destination, to)
	if direction != "unknown" {
		c.end(client, from)
		c.end(server, to)
	}
	if f.local.bytes.Kind == flat.Int && f.peer.bytes.Kind == flat.Int {
		start := len(c.text)
		c.text = strconv.AppendInt(c.text, f.local.bytes.Int+f.peer.bytes.Int, 10)
		c.put(byPath["network.bytes"], c.text[start:], false)
	}
	c.communityID(from, to)
}

func (c *Converter) end(s side, e *end) {
	for _, v := range [...]struct {
		path  string
		value *flat.Value
	}{{s.address, &e.address}, {s.ip, &e.address}, {s.port, &e.port}, {s.bytes, &e.bytes}} {
		if v.value.Kind != flat.Invalid {
			c.put(byPath[v.path], v.value.Raw, v.value.Kind == flat.String)
		}
	}
}

// communityID sets network.community_id, by which tools that watch the network
// know the same flow (https://github.com/corelight/community-id-spec, version 1
// without a seed).
func (c *Converter) communityID(a, b *end) {
	if a.address.Kind != flat.String || b.address.Kind != flat.String || a.port.Kind != flat.Int || b.port.Kind != flat.Int {
		return
	}
	from, err := netip.ParseAddr(string(a.address.Raw))
	if err != nil {
		return
	}
	to, err := netip.ParseAddr(string(b.address.Raw))
	if err != nil || from.Is4() != to.Is4() {
		return
	}
	start := len(c.text)
	c.text = appendCommunityID(c.text, netip.AddrPortFrom(from, uint16(a.port.Int)), netip.AddrPortFrom(to, uint16(b.port.Int)))
	c.put(byPath["network.community_id"], c.text[start:], true)
}

func appendCommunityID(dst []byte, a, b netip.AddrPort) []byte {
	if a.Compare(b) > 0 { // by address, then port
		a, b = b, a
	}
	var flow [40]byte
	data := flow[:2] // the seed: 0
	for _, addr := range [...]netip.Addr{a.Addr(), b.Addr()} {
		if addr.Is4() {
			ip := addr.As4()
			data = append(data, ip[:]...)
		} else {
			ip := addr.As16()
			data = append(data, ip[:]...)
		}
	}
	data = append(data, 6, 0) // TCP, padding
	data = binary.BigEndian.AppendUint16(data, a.Port())
	data = binary.BigEndian.AppendUint16(data, b.Port())
	hash := sha1.Sum(data)
	return base64.StdEncoding.AppendEncode(append(dst, "1:"...), hash[:])
}
