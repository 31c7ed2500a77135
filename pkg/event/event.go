// SPDX-License-Identifier: Apache-2.0

package event

import (
	"errors"
	"net/netip"
	"strings"
)

// ErrIdle is what a live source's Read returns when nothing happened for a
// short while: the moment to flush output and to let time pass. It is not a
// failure and the next Read may be called at once.
var ErrIdle = errors.New("no event for now")

// Kind says which hook an event comes from. The numbers up to KindKernelMax are
// the wire contract with bpf/event.h.
type Kind uint8

// Kinds of events.
const (
	KindNone Kind = iota
	// KindState is one call of inet_sk_set_state: Old -> New. Old == New is not
	// a transition: it means that the application called close() after an
	// earlier shutdown() (tcp_close_state in net/ipv4/tcp.c).
	KindState
	// KindSnapshot is a socket that an iterator found in state New.
	KindSnapshot
	// KindDestroy is tcp_destroy_sock for a socket that the application still
	// held when it became CLOSE: only now is the descriptor gone.
	KindDestroy
	// KindResetSent is a RST that this socket sent, with its Reset reason.
	KindResetSent
	// KindResetReceived is tcp_reset() for this socket. The kernel also calls
	// it when data arrives after our close: then a KindResetSent follows.
	KindResetReceived
	// KindAccept is an accept() that returned the socket to Task as FD.
	KindAccept
	// KindHolder is a descriptor FD of Task that an iterator found to be open
	// on the socket; with FD -1, Task was the first to read from it.
	KindHolder
	// KindRequest is a SYN that was queued: the birth of a request socket.
	KindRequest
	// KindRequestEnd is the end of a request socket that did not become a
	// connection.
	KindRequestEnd
	// KindTimeWait is the hand-over to a mini socket, New being its substate
	// (FIN_WAIT2 or TIME_WAIT). With Old TIME_WAIT it is armed anew: FIN_WAIT2
	// turned into TIME_WAIT, or the peer's FIN came again.
	KindTimeWait
	// KindTimeWaitEnd is the end of that mini socket.
	KindTimeWaitEnd
	// KindOverflow says that SYNs were dropped because the accept queue of
	// Socket, a listener, was full: Count of them since the kernel side watches.
	KindOverflow
	// KindSnapshotBegin and KindSnapshotDone stand around the sockets of
	// network namespace Netns in a snapshot.
	KindSnapshotBegin
	KindSnapshotDone
	// KindProcess tells who Task is: Process. Nothing happened to a socket.
	KindProcess

	// KindKernelMax is the largest kind that the kernel side emits.
	KindKernelMax = KindProcess
)

// Kinds that the agent adds to the stream, so that a recording replays to the
// same output.
const (
	// KindClock carries the time when nothing else does, and the wall clock.
	KindClock Kind = 64 + iota
	// KindLost says that the kernel could not hand over Count events on CPU
	// before this point of the stream.
	KindLost
	// KindSnapshotEnd says that the sockets of all namespaces have been shown.
	KindSnapshotEnd
	// KindUntold says that Count SYNs were queued of which no KindRequest
	// tells, because too many came at once.
	KindUntold
)

var kindNames = [...]string{
	KindState: "state", KindSnapshot: "snapshot", KindDestroy: "destroy",
	KindResetSent: "reset_sent", KindResetReceived: "reset_received",
	KindAccept: "accept", KindHolder: "holder",
	KindRequest: "request", KindRequestEnd: "request_end",
	KindTimeWait: "time_wait", KindTimeWaitEnd: "time_wait_end", KindOverflow: "overflow",
	KindSnapshotBegin: "snapshot_begin", KindSnapshotDone: "snapshot_done", KindProcess: "process",
	KindClock: "clock", KindLost: "lost", KindSnapshotEnd: "snapshot_end", KindUntold: "untold",
}

// String returns the kind's name in recordings, "" for a number that is none.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return ""
}

// ParseKind is the inverse of String.
func ParseKind(s string) (Kind, bool) {
	for k, name := range kindNames {
		if name != "" && name == s {
			return Kind(k), true
		}
	}
	return KindNone, false
}

// SocketID names a socket for as long as it lives: the kernel's socket cookie
// (`ss -e` prints it as sk:, in hex), or, with FlagOwnID, a number of our own
// where the kernel cannot give one. Zero is unknown.
type SocketID uint64

// NoUID says that the owner of a socket is not known; no user has this number
// (INVALID_UID in include/linux/uidgid.h).
const NoUID = 1<<32 - 1

// Flags are facts of a moment.
type Flags uint16

// The wire contract with bpf/event.h.
const (
	FlagTask         Flags = 1 << iota // Task is the process that caused the event, not a bystander of softirq
	FlagDead                           // SOCK_DEAD: no descriptor refers to the socket any more
	FlagDone                           // SOCK_DONE: the peer's FIN has arrived
	FlagMPTCP                          // a subflow of an MPTCP connection
	FlagOwnID                          // Socket is not a cookie
	FlagNoSocket                       // no struct socket: not accepted yet, orphaned, or a subflow
	FlagKthread                        // Task is a kernel thread
	FlagPartial                        // from the classic tracepoint: states and tuple, no numbers
	FlagFirst                          // the kernel side had not met this socket before
	FlagMini                           // the socket is a mini socket (TIME_WAIT or request), not a full one
	FlagAcked                          // KindRequestEnd: the third packet of the handshake had come
	FlagDefer                          // KindRequestEnd: the listener waits for data (TCP_DEFER_ACCEPT)
	FlagCookie                         // the connection was made of a SYN cookie, without a request
	FlagKernel                         // the kernel's own socket (NFS, SMC): it has no file, or the kernel made it for itself
	FlagTimeWaitFull                   // to CLOSE: as many sockets were in TIME_WAIT as net.ipv4.tcp_max_tw_buckets allows, or nearly
)

// Has reports whether all of the flags in x are set.
func (f Flags) Has(x Flags) bool { return f&x == x }

// OwnerSource says how the owner of a socket is known.
type OwnerSource uint8

// The wire contract with bpf/event.h. Where two facts meet, see
// lifecycle.Owner for which one stands.
const (
	OwnerUnknown  OwnerSource = iota
	OwnerConnect              // called connect()
	OwnerListen               // called listen()
	OwnerAccept               // accept() returned the socket to it
	OwnerClose                // closed or shut down the socket
	OwnerRead                 // read from the socket first
	OwnerHolder               // has a descriptor of it (found by a scan)
	OwnerListener             // owns the listener; nobody has accepted the socket yet
)

var ownerSourceNames = [...]string{"unknown", "connect", "listen", "accept", "close", "first_read", "holder", "listener"}

// String returns the source in the snake case of the record schema.
func (s OwnerSource) String() string {
	if int(s) < len(ownerSourceNames) {
		return ownerSourceNames[s]
	}
	return ownerSourceNames[OwnerUnknown]
}

// ParseOwnerSource is the inverse of String.
func ParseOwnerSource(s string) (OwnerSource, bool) {
	for i, name := range ownerSourceNames {
		if name == s {
			return OwnerSource(i), true
		}
	}
	return OwnerUnknown, false
}

// EndCause is what ended a mini socket.
type EndCause uint8

// The wire contract with bpf/event.h.
const (
	EndUnknown   EndCause = iota
	EndTimer              // its time was up
	EndReset              // a RST of the peer
	EndResetSent          // a RST of ours
	EndSyn                // a SYN took the addresses for a new connection
	EndReused             // connect() took the addresses for a new connection
	EndKilled             // SOCK_DESTROY (`ss -K`)
	EndNetns              // its network namespace went
	EndListener           // its listener was closed
	EndICMP               // an ICMP error
)

var endCauseNames = [...]string{
	"unknown", "timer", "reset_by_peer", "reset_by_us", "syn", "port_reused", "killed", "netns_gone", "listener_closed", "icmp",
}

// String returns the cause in the snake case of the record schema.
func (c EndCause) String() string {
	if int(c) < len(endCauseNames) {
		return endCauseNames[c]
	}
	return endCauseNames[EndUnknown]
}

// ParseEndCause is the inverse of String.
func ParseEndCause(s string) (EndCause, bool) {
	for i, name := range endCauseNames {
		if name == s {
			return EndCause(i), true
		}
	}
	return EndUnknown, false
}

// ResetReason is why a RST was sent: the kernel's enum sk_rst_reason (since
// 6.10), whose numbers differ between releases, in numbers of our own.
type ResetReason uint8

// The wire contract with bpf/event.h.
const (
	ResetUnknown        ResetReason = iota // the kernel gives no reason, or one that we do not know
	ResetNoSocket                          // nobody listens on that port
	ResetAbortOnData                       // data came after the application had closed
	ResetTimeWait                          // a segment did not fit a TIME_WAIT socket
	ResetInvalidSyn                        // the handshake was wrong, or the accept queue full (tcp_abort_on_overflow)
	ResetAbortOnClose                      // closed with unread data in the receive queue
	ResetAbortOnLinger                     // TCP_LINGER2 < 0
	ResetAbortOnMemory                     // out of socket memory
	ResetState                             // SO_LINGER 0, connect(AF_UNSPEC), listener closed, or SOCK_DESTROY
	ResetKeepalive                         // keep-alive probes were not answered
	ResetDisconnectData                    // disconnected with data left
	ResetProtocol                          // the segment was not acceptable, or an MPTCP reason
)

var resetReasonNames = [...]string{
	"unknown", "no_socket", "abort_on_data", "time_wait", "invalid_syn", "abort_on_close",
	"abort_on_linger", "abort_on_memory", "state", "keepalive_timeout", "disconnect_with_data", "protocol",
}

// String returns the reason in snake case, close to the kernel's words.
func (r ResetReason) String() string {
	if int(r) < len(resetReasonNames) {
		return resetReasonNames[r]
	}
	return resetReasonNames[ResetUnknown]
}

// ParseResetReason is the inverse of String.
func ParseResetReason(s string) (ResetReason, bool) {
	for i, name := range resetReasonNames {
		if name == s {
			return ResetReason(i), true
		}
	}
	return ResetUnknown, false
}

// Protocol numbers that reach us (include/uapi/linux/in.h).
const (
	ProtoTCP   = 6
	ProtoMPTCP = 262
)

// Comm is a process name as the kernel keeps it: up to 15 bytes, NUL-padded.
// Any byte may be in it; whoever prints it escapes it.
type Comm [16]byte

// MakeComm cuts s to what fits.
func MakeComm(s string) (c Comm) {
	copy(c[:len(c)-1], s)
	return c
}

// Bytes returns the name without its padding, sharing c's memory.
func (c *Comm) Bytes() []byte {
	for i, b := range c {
		if b == 0 {
			return c[:i]
		}
	}
	return c[:]
}

func (c Comm) String() string { return strings.Clone(string(c.Bytes())) }

// Task is a process: its id in the initial pid namespace with its start time,
// which together are never used twice.
type Task struct {
	PID   uint32
	Start int64 // nanoseconds since boot when the process began, 0 unknown
	Comm  Comm  // of the thread group leader
}

// IsZero reports whether no process is named.
func (t Task) IsZero() bool { return t.PID == 0 }

// Event is one thing that happened, with what could be read at that moment.
// Fields that a hook cannot know are zero.
type Event struct {
	Kind  Kind
	Old   State
	New   State
	Flags Flags

	Time   int64  // nanoseconds since boot (CLOCK_BOOTTIME)
	Began  int64  // KindSnapshot, KindHolder: no later than that the socket came into New; 0 unknown
	Seq    uint64 // counts the attempts to emit on this CPU, lost ones included
	CPU    uint16
	Socket SocketID
	MPTCP  SocketID // the MPTCP connection that this subflow is of; 0 none, or unknown

	Netns    uint32 // inode number of the network namespace
	Protocol uint16 // ProtoTCP or ProtoMPTCP
	Family   uint16 // AF_INET 2 or AF_INET6 10, of the socket
	Local    netip.AddrPort
	Peer     netip.AddrPort // an IPv4-mapped address is given as IPv4

	Task   Task   // the current process; whose doing it was only with FlagTask
	TID    uint32 // the current thread
	UID    uint32 // owner of the socket (sk_uid), or NoUID
	Cgroup uint64 // id of the socket's cgroup v2, 0 unknown

	Owner       Task
	OwnerSource OwnerSource

	BytesSent     uint64 // payload, retransmissions included
	BytesResent   uint64 // payload that was sent again (bytes_retrans)
	BytesAcked    uint64 // our SYN and FIN count as one each (tcp_snd_una_update)
	BytesReceived uint64 // the peer's FIN counts as one (net/ipv4/tcp_input.c, tcp_rcv_nxt_update)
	SRTT          uint32 // microseconds
	Retransmits   uint32 // segments; on the server's SYN_RECV these are SYN-ACKs
	Unread        uint32 // rcv_nxt - copied_seq, FIN included; of a listener: connections waiting for accept()
	Unsent        uint32 // write_seq - snd_una: unsent or unacknowledged, SYN and FIN included; of a listener: its backlog, one less than may wait

	Err      uint16 // sk_err, an errno
	Shutdown uint8  // bit 0: receiving, bit 1: sending (sk_shutdown)
	Reset    ResetReason
	Cause    EndCause // of KindRequestEnd and KindTimeWaitEnd
	FD       int32    // of KindAccept (-1 unknown) and KindHolder

	Process *Process // KindProcess only

	Wall  int64  // KindClock: nanoseconds since 1970 at Time
	Count uint64 // KindLost, KindUntold, KindOverflow: how many
}

// UnreadPayload returns how many bytes came that the process has not read, and
// whether the peer's FIN, which is one of Unread, waits behind them (tcp_fin and
// tcp_recvmsg_locked in net/ipv4). Not of a listener.
func (e *Event) UnreadPayload() (n uint32, fin bool) {
	if e.Unread > 0 && e.Flags.Has(FlagDone) {
		return e.Unread - 1, true
	}
	return e.Unread, false
}

// UnsentPayload returns how many bytes of ours the peer has not acknowledged. In
// Unsent our SYN and our FIN are one each until they are (tcp_connect, tcp_send_fin):
// a change of state comes before its FIN, so the state before tells. Of a server's
// SYN_RECV, Fast Open, nothing but payload is in Unsent, and it goes at once. Not of
// a listener. In a sighting of CLOSE a FIN may be among it: nothing tells.
func (e *Event) UnsentPayload() uint32 {
	var ours bool
	switch e.Old {
	case StateSynSent:
		ours = e.New != StateEstablished
	case StateSynRecv:
		ours = e.New != StateEstablished && e.BytesSent == 0
	case StateFinWait1, StateClosing, StateLastAck:
		ours = true
	case StateClose:
		if e.New == StateSynSent {
			return 0 // what the socket was before
		}
		ours = e.New == StateClose && e.BytesAcked == 0 && e.BytesSent == 0 // the SYN's end
	}
	if ours && e.Unsent > 0 {
		return e.Unsent - 1
	}
	return e.Unsent
}

// Sighting is a socket that was looked at on request, without having seen how
// it came there: Event is a KindSnapshot, or for each descriptor of the socket
// a KindHolder with Task and FD. Fields that could not be read are zero.
type Sighting struct {
	Event
	// Inode is the number of the socket in /proc/PID/fd, 0 where no struct
	// socket is: not accepted yet, orphaned, or a mini socket.
	Inode uint64
	// References counts what keeps the open file: descriptors, system calls at
	// work on it, messages on a unix socket that carry it, io_uring.
	References uint32
	// Waited says that a thread sleeps on the socket, or that a poll, an epoll
	// or io_uring has registered with it.
	Waited bool
	// Limited says that sock_diag showed the socket, or a descriptor of it, where
	// there is no iterator: References, Waited and Err are not known.
	Limited bool
	// Opened says that the socket got its peer's SYN: it is, or was, connected.
	Opened bool
	// Shut says that the peer's window is closed, and our probes of it found so.
	Shut bool
	// Timeouts counts how often in a row the retransmission timer ran out, nothing
	// new being acknowledged since (icsk_retransmits); of SYN_SENT, the SYN's.
	Timeouts uint8
	// Probes counts the probes of the window or the keep-alives that were not
	// answered yet (icsk_probes_out).
	Probes uint8
	// Ports are those that the kernel chooses from where a connect() in the
	// socket's network namespace names none; zero: not known.
	Ports PortRange
	// Since is when the socket was seen in its state before, by an earlier look, and
	// not out of it since: nanoseconds since boot, 0 unknown.
	Since int64
	// LastSegment is when the last segment came or went (tcp_mstamp), ACK, RST
	// and keep-alive probes included; with Limited, when the last acknowledgement
	// came. LastReceived and LastSent are about payload. Nanoseconds since boot, 0
	// unknown or never.
	LastSegment  int64
	LastReceived int64
	LastSent     int64
}

// PortRange is all ports from one to another, both included.
type PortRange struct{ Lowest, Highest uint16 }

// Has reports whether a port is in the range.
func (r PortRange) Has(port uint16) bool { return r.Lowest <= port && port <= r.Highest }
