// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/event"
)

// line is an event as a line of JSON. Absent is zero. Numbers of 64 bits that
// are identities are strings, as JSON numbers end at 2^53 in many readers.
// Process names are bytes: each is the code point of its value.
type line struct {
	Kind       string `json:"kind"`
	Time       int64  `json:"time_ns,omitempty"`
	Seq        uint64 `json:"seq,omitempty"`
	CPU        uint16 `json:"cpu,omitempty"`
	Socket     uint64 `json:"socket,string,omitempty"`
	Old        uint8  `json:"old,omitempty"`
	New        uint8  `json:"new,omitempty"`
	Flags      uint16 `json:"flags,omitempty"`
	Netns      uint32 `json:"netns,omitempty"`
	Protocol   uint16 `json:"protocol,omitempty"`
	Family     uint16 `json:"family,omitempty"`
	Local      string `json:"local,omitempty"`
	Peer       string `json:"peer,omitempty"`
	PID        uint32 `json:"pid,omitempty"`
	TID        uint32 `json:"tid,omitempty"`
	TaskStart  int64  `json:"task_start_ns,omitempty"`
	Comm       string `json:"comm,omitempty"`
	UID        uint32 `json:"uid,omitempty"`
	Cgroup     uint64 `json:"cgroup,string,omitempty"`
	OwnerPID   uint32 `json:"owner_pid,omitempty"`
	OwnerStart int64  `json:"owner_start_ns,omitempty"`
	OwnerComm  string `json:"owner_comm,omitempty"`
	Source     uint8  `json:"owner_source,omitempty"`
	Sent       uint64 `json:"bytes_sent,omitempty"`
	Resent     uint64 `json:"bytes_resent,omitempty"`
	Acked      uint64 `json:"bytes_acked,omitempty"`
	Received   uint64 `json:"bytes_received,omitempty"`
	SRTT       uint32 `json:"srtt_us,omitempty"`
	Retrans    uint32 `json:"retransmits,omitempty"`
	Unread     uint32 `json:"unread,omitempty"`
	Unsent     uint32 `json:"unsent,omitempty"`
	Err        uint16 `json:"errno,omitempty"`
	Shutdown   uint8  `json:"shutdown,omitempty"`
	Reset      uint8  `json:"reset,omitempty"`
	Cause      uint8  `json:"cause,omitempty"`
	FD         int32  `json:"fd,omitempty"`
	Wall       int64  `json:"wall_ns,omitempty"`
	Count      uint64 `json:"count,omitempty"`
}

// appendEvent adds e as a line, its end included.
func appendEvent(b []byte, e *event.Event) []byte {
	b = append(b, `{"kind":"`...)
	b = append(b, e.Kind.String()...)
	b = append(b, '"')
	b = num(b, "time_ns", e.Time)
	b = num(b, "seq", e.Seq)
	b = num(b, "cpu", e.CPU)
	b = id(b, "socket", uint64(e.Socket))
	b = num(b, "old", e.Old)
	b = num(b, "new", e.New)
	b = num(b, "flags", e.Flags)
	b = num(b, "netns", e.Netns)
	b = num(b, "protocol", e.Protocol)
	b = num(b, "family", e.Family)
	b = endpoint(b, "local", e.Local)
	b = endpoint(b, "peer", e.Peer)
	b = num(b, "pid", e.Task.PID)
	b = num(b, "tid", e.TID)
	b = num(b, "task_start_ns", e.Task.Start)
	b = comm(b, "comm", &e.Task.Comm)
	b = num(b, "uid", e.UID)
	b = id(b, "cgroup", e.Cgroup)
	b = num(b, "owner_pid", e.Owner.PID)
	b = num(b, "owner_start_ns", e.Owner.Start)
	b = comm(b, "owner_comm", &e.Owner.Comm)
	b = num(b, "owner_source", e.OwnerSource)
	b = num(b, "bytes_sent", e.BytesSent)
	b = num(b, "bytes_resent", e.BytesResent)
	b = num(b, "bytes_acked", e.BytesAcked)
	b = num(b, "bytes_received", e.BytesReceived)
	b = num(b, "srtt_us", e.SRTT)
	b = num(b, "retransmits", e.Retransmits)
	b = num(b, "unread", e.Unread)
	b = num(b, "unsent", e.Unsent)
	b = num(b, "errno", e.Err)
	b = num(b, "shutdown", e.Shutdown)
	b = num(b, "reset", e.Reset)
	b = num(b, "cause", e.Cause)
	b = num(b, "fd", e.FD)
	b = num(b, "wall_ns", e.Wall)
	b = num(b, "count", e.Count)
	return append(b, '}', '\n')
}

type integer interface {
	~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int32 | ~int64
}

func key(b []byte, name string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	return append(b, '"', ':')
}

func num[T integer](b []byte, name string, v T) []byte {
	switch {
	case v == 0:
		return b
	case v < 0:
		return strconv.AppendInt(key(b, name), int64(v), 10)
	}
	return strconv.AppendUint(key(b, name), uint64(v), 10)
}

func id(b []byte, name string, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = append(key(b, name), '"')
	return append(strconv.AppendUint(b, v, 10), '"')
}

func endpoint(b []byte, name string, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	b = append(key(b, name), '"')
	return append(a.AppendTo(b), '"')
}

const hexDigits = "0123456789abcdef"

func comm(b []byte, name string, c *event.Comm) []byte {
	text := c.Bytes()
	if len(text) == 0 {
		return b
	}
	b = append(key(b, name), '"')
	for _, x := range text {
		if x < ' ' || x > '~' || x == '"' || x == '\\' {
			b = append(b, '\\', 'u', '0', '0', hexDigits[x>>4], hexDigits[x&15])
		} else {
			b = append(b, x)
		}
	}
	return append(b, '"')
}

// parseEvent is the inverse of appendEvent. Unknown keys are ignored: a later
// version may have written them.
func parseEvent(text []byte, e *event.Event) error {
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return fmt.Errorf("decode an event: %w", err)
	}
	kind, ok := event.ParseKind(l.Kind)
	if !ok {
		return fmt.Errorf("decode an event: unknown kind %q", l.Kind)
	}
	*e = event.Event{
		Kind: kind, Old: event.State(l.Old), New: event.State(l.New), Flags: event.Flags(l.Flags),
		Time: l.Time, Seq: l.Seq, CPU: l.CPU, Socket: event.SocketID(l.Socket),
		Netns: l.Netns, Protocol: l.Protocol, Family: l.Family,
		Task: event.Task{PID: l.PID, Start: l.TaskStart}, TID: l.TID, UID: l.UID, Cgroup: l.Cgroup,
		Owner: event.Task{PID: l.OwnerPID, Start: l.OwnerStart}, OwnerSource: event.OwnerSource(l.Source),
		BytesSent: l.Sent, BytesResent: l.Resent, BytesAcked: l.Acked, BytesReceived: l.Received,
		SRTT: l.SRTT, Retransmits: l.Retrans, Unread: l.Unread, Unsent: l.Unsent,
		Err: l.Err, Shutdown: l.Shutdown, Reset: event.ResetReason(l.Reset), Cause: event.EndCause(l.Cause), FD: l.FD, Wall: l.Wall, Count: l.Count,
	}
	if e.Old >= event.NumStates || e.New >= event.NumStates {
		return fmt.Errorf("decode an event: states %d and %d: there is none above %d", e.Old, e.New, event.NumStates-1)
	}
	for _, a := range []struct {
		name, text string
		to         *netip.AddrPort
	}{{"local", l.Local, &e.Local}, {"peer", l.Peer, &e.Peer}} {
		if a.text == "" {
			continue
		}
		var err error
		if *a.to, err = netip.ParseAddrPort(a.text); err != nil {
			return fmt.Errorf("decode an event: %s: %w", a.name, err)
		}
	}
	if err := parseComm("comm", l.Comm, &e.Task.Comm); err != nil {
		return err
	}
	return parseComm("owner_comm", l.OwnerComm, &e.Owner.Comm)
}

func parseComm(name, text string, c *event.Comm) error {
	if n := utf8.RuneCountInString(text); n > len(c) {
		return fmt.Errorf("decode an event: %s has %d bytes, more than %d", name, n, len(c))
	}
	i := 0
	for _, r := range text {
		if r == 0 || r > 0xff {
			return fmt.Errorf("decode an event: %s: %U is no byte of a name", name, r)
		}
		c[i] = byte(r)
		i++
	}
	return nil
}
