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
	Kind       string   `json:"kind"`
	Time       int64    `json:"time_ns,omitempty"`
	Began      int64    `json:"began_ns,omitempty"`
	Seq        uint64   `json:"seq,omitempty"`
	CPU        uint16   `json:"cpu,omitempty"`
	Socket     uint64   `json:"socket,string,omitempty"`
	MPTCP      uint64   `json:"mptcp,string,omitempty"`
	Old        uint8    `json:"old,omitempty"`
	New        uint8    `json:"new,omitempty"`
	Flags      uint16   `json:"flags,omitempty"`
	Netns      uint32   `json:"netns,omitempty"`
	Protocol   uint16   `json:"protocol,omitempty"`
	Family     uint16   `json:"family,omitempty"`
	Local      string   `json:"local,omitempty"`
	Peer       string   `json:"peer,omitempty"`
	PID        uint32   `json:"pid,omitempty"`
	TID        uint32   `json:"tid,omitempty"`
	TaskStart  int64    `json:"task_start_ns,omitempty"`
	Comm       string   `json:"comm,omitempty"`
	UID        uint32   `json:"uid,omitempty"`
	Cgroup     uint64   `json:"cgroup,string,omitempty"`
	OwnerPID   uint32   `json:"owner_pid,omitempty"`
	OwnerStart int64    `json:"owner_start_ns,omitempty"`
	OwnerComm  string   `json:"owner_comm,omitempty"`
	Source     uint8    `json:"owner_source,omitempty"`
	Sent       uint64   `json:"bytes_sent,omitempty"`
	Resent     uint64   `json:"bytes_resent,omitempty"`
	Acked      uint64   `json:"bytes_acked,omitempty"`
	Received   uint64   `json:"bytes_received,omitempty"`
	SRTT       uint32   `json:"srtt_us,omitempty"`
	Retrans    uint32   `json:"retransmits,omitempty"`
	Unread     uint32   `json:"unread,omitempty"`
	Unsent     uint32   `json:"unsent,omitempty"`
	Err        uint16   `json:"errno,omitempty"`
	Shutdown   uint8    `json:"shutdown,omitempty"`
	Reset      uint8    `json:"reset,omitempty"`
	Cause      uint8    `json:"cause,omitempty"`
	FD         int32    `json:"fd,omitempty"`
	Process    *process `json:"process,omitempty"`
	Wall       int64    `json:"wall_ns,omitempty"`
	Count      uint64   `json:"count,omitempty"`
}

// process is an event.Process, its text in the same way.
type process struct {
	Image    uint32 `json:"image,omitempty"`
	PPID     uint32 `json:"ppid,omitempty"`
	InnerPID uint32 `json:"inner_pid,omitempty"`
	PIDNS    uint32 `json:"pidns,omitempty"`
	UID      uint32 `json:"uid,omitempty"`
	Cgroup   uint64 `json:"cgroup,string,omitempty"`
	Group    string `json:"group,omitempty"`
	User     string `json:"user,omitempty"`
	Exe      string `json:"exe,omitempty"`
	Deleted  uint8  `json:"exe_deleted,omitempty"`
}

// appendEvent adds e as a line, its end included.
func appendEvent(b []byte, e *event.Event) []byte {
	b = append(b, `{"kind":"`...)
	b = append(b, e.Kind.String()...)
	b = append(b, '"')
	b = num(b, "time_ns", e.Time)
	b = num(b, "began_ns", e.Began)
	b = num(b, "seq", e.Seq)
	b = num(b, "cpu", e.CPU)
	b = id(b, "socket", uint64(e.Socket))
	b = id(b, "mptcp", uint64(e.MPTCP))
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
	if e.Process != nil {
		b = appendProcess(b, e.Process)
	}
	b = num(b, "wall_ns", e.Wall)
	b = num(b, "count", e.Count)
	return append(b, '}', '\n')
}

func appendProcess(b []byte, p *event.Process) []byte {
	b = append(b, `,"process":{"image":`...)
	b = strconv.AppendUint(b, uint64(p.Image), 10)
	b = num(b, "ppid", p.PPID)
	b = num(b, "inner_pid", p.InnerPID)
	b = num(b, "pidns", p.PIDNS)
	b = num(b, "uid", p.UID)
	b = id(b, "cgroup", p.Cgroup)
	b = text(b, "group", p.Group)
	b = text(b, "user", p.User)
	b = text(b, "exe", p.Exe)
	if p.ExeDeleted {
		b = num(b, "exe_deleted", uint8(1))
	}
	return append(b, '}')
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

func comm(b []byte, name string, c *event.Comm) []byte { return text(b, name, c.Bytes()) }

func text[T string | []byte](b []byte, name string, s T) []byte {
	if len(s) == 0 {
		return b
	}
	b = append(key(b, name), '"')
	for i := range len(s) {
		x := s[i]
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
		Time: l.Time, Began: l.Began, Seq: l.Seq, CPU: l.CPU, Socket: event.SocketID(l.Socket), MPTCP: event.SocketID(l.MPTCP),
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
	if l.Process != nil {
		var err error
		if e.Process, err = l.Process.parse(); err != nil {
			return err
		}
	}
	return parseComm("owner_comm", l.OwnerComm, &e.Owner.Comm)
}

func (l *process) parse() (*event.Process, error) {
	p := &event.Process{Image: l.Image, PPID: l.PPID, InnerPID: l.InnerPID, PIDNS: l.PIDNS, UID: l.UID, Cgroup: l.Cgroup, ExeDeleted: l.Deleted != 0}
	for _, f := range []struct {
		name, text string
		to         *string
	}{{"group", l.Group, &p.Group}, {"user", l.User, &p.User}, {"exe", l.Exe, &p.Exe}} {
		b, err := parseText(f.name, f.text, maxPath)
		if err != nil {
			return nil, err
		}
		*f.to = string(b)
	}
	return p, nil
}

func parseComm(name, text string, c *event.Comm) error {
	b, err := parseText(name, text, len(c))
	copy(c[:], b)
	return err
}

const maxPath = 4096 // PATH_MAX

func parseText(name, text string, most int) ([]byte, error) {
	if n := utf8.RuneCountInString(text); n > most {
		return nil, fmt.Errorf("decode an event: %s has %d bytes, more than %d", name, n, most)
	}
	b := make([]byte, 0, len(text))
	for _, r := range text {
		if r == 0 || r > 0xff {
			return nil, fmt.Errorf("decode an event: %s: %U is no byte of a name", name, r)
		}
		b = append(b, byte(r))
	}
	return b, nil
}
