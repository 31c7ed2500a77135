// Package event is the vocabulary of stated: what the kernel was seen to do, in
// plain values. It imports nothing of ours, and every other package speaks it:
//
//	kernel -> probe -> event.Event -> lifecycle -> render, recording
package event

// State is a TCP state by the kernel's number (include/net/tcp_states.h), the
// same on every architecture and version since 2.6.
type State uint8

// The kernel's states. The zero State is "none", which the kernel never uses.
const (
	StateNone          State = 0
	StateEstablished   State = 1
	StateSynSent       State = 2
	StateSynRecv       State = 3
	StateFinWait1      State = 4
	StateFinWait2      State = 5
	StateTimeWait      State = 6
	StateClose         State = 7
	StateCloseWait     State = 8
	StateLastAck       State = 9
	StateListen        State = 10
	StateClosing       State = 11
	StateNewSynRecv    State = 12 // a request socket: a SYN was answered, the third packet is awaited
	StateBoundInactive State = 13 // sock_diag's word (since 6.8) for bound but neither listening nor connected
)

// NumStates is one more than the largest State, for arrays indexed by State.
const NumStates = 14
