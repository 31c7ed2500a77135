// SPDX-License-Identifier: Apache-2.0

package event

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Naming is a family of systems that spell the states alike.
type Naming uint8

// Namings. The zero value is the kernel's.
const (
	NamingKernel  Naming = iota // include/net/tcp_states.h, netstat on Linux
	NamingSS                    // iproute2, misc/ss.c, sstate_name
	NamingRFC                   // RFC 9293, section 3.3.2
	NamingBSD                   // FreeBSD and macOS netstat, sys/netinet/tcp_fsm.h, tcpstates
	NamingWindows               // netstat.exe and Get-NetTCPConnection, MIB_TCP_STATE
	NamingSolaris               // illumos netstat, mitcp_state
	NamingOTel                  // OpenTelemetry, network.connection.state
	numNamings
)

var namingNames = [numNamings]string{"kernel", "ss", "rfc", "bsd", "windows", "solaris", "otel"}

func (n Naming) String() string {
	if n < numNamings {
		return namingNames[n]
	}
	return fmt.Sprintf("naming_%d", uint8(n))
}

// Namings lists them all.
func Namings() []Naming {
	all := make([]Naming, numNamings)
	for i := range all {
		all[i] = Naming(i)
	}
	return all
}

// ParseNaming is the inverse of String.
func ParseNaming(s string) (Naming, error) {
	for i, name := range namingNames {
		if strings.EqualFold(s, name) {
			return Naming(i), nil
		}
	}
	return NamingKernel, fmt.Errorf("unknown naming %q: one of %s", s, strings.Join(namingNames[:], ", "))
}

// stateNames has the kernel's, ss', the RFC's, BSD's, Windows', Solaris' and
// OpenTelemetry's word for each state, in that order. Where a system does not
// know a state it has the word that the system shows for such a socket.
var stateNames = [NumStates][numNamings]string{
	StateNone:          {"NONE", "NONE", "NONE", "NONE", "NONE", "NONE", "none"},
	StateEstablished:   {"ESTABLISHED", "ESTAB", "ESTABLISHED", "ESTABLISHED", "Established", "ESTABLISHED", "established"},
	StateSynSent:       {"SYN_SENT", "SYN-SENT", "SYN-SENT", "SYN_SENT", "SynSent", "SYN_SENT", "syn_sent"},
	StateSynRecv:       {"SYN_RECV", "SYN-RECV", "SYN-RECEIVED", "SYN_RCVD", "SynReceived", "SYN_RCVD", "syn_received"},
	StateFinWait1:      {"FIN_WAIT1", "FIN-WAIT-1", "FIN-WAIT-1", "FIN_WAIT_1", "FinWait1", "FIN_WAIT_1", "fin_wait_1"},
	StateFinWait2:      {"FIN_WAIT2", "FIN-WAIT-2", "FIN-WAIT-2", "FIN_WAIT_2", "FinWait2", "FIN_WAIT_2", "fin_wait_2"},
	StateTimeWait:      {"TIME_WAIT", "TIME-WAIT", "TIME-WAIT", "TIME_WAIT", "TimeWait", "TIME_WAIT", "time_wait"},
	StateClose:         {"CLOSE", "UNCONN", "CLOSED", "CLOSED", "Closed", "CLOSED", "closed"},
	StateCloseWait:     {"CLOSE_WAIT", "CLOSE-WAIT", "CLOSE-WAIT", "CLOSE_WAIT", "CloseWait", "CLOSE_WAIT", "close_wait"},
	StateLastAck:       {"LAST_ACK", "LAST-ACK", "LAST-ACK", "LAST_ACK", "LastAck", "LAST_ACK", "last_ack"},
	StateListen:        {"LISTEN", "LISTEN", "LISTEN", "LISTEN", "Listen", "LISTEN", "listen"},
	StateClosing:       {"CLOSING", "CLOSING", "CLOSING", "CLOSING", "Closing", "CLOSING", "closing"},
	StateNewSynRecv:    {"NEW_SYN_RECV", "SYN-RECV", "SYN-RECEIVED", "SYN_RCVD", "SynReceived", "SYN_RCVD", "syn_received"},
	StateBoundInactive: {"BOUND_INACTIVE", "UNCONN", "CLOSED", "CLOSED", "Bound", "BOUND", "closed"},
}

// moreSpellings are words for states and for groups of them that no row above
// has. Separators and case are dropped before looking.
var moreSpellings = map[string]StateSet{
	"finwait":      SetOf(StateFinWait1, StateFinWait2),
	"listening":    SetOf(StateListen), // Windows netstat
	"synrcvd":      SetOf(StateSynRecv, StateNewSynRecv),
	"synreceived":  SetOf(StateSynRecv, StateNewSynRecv),
	"synrecv":      SetOf(StateSynRecv, StateNewSynRecv),
	"close":        SetOf(StateClose),
	"closed":       SetOf(StateClose),
	"unconnected":  SetOf(StateClose),
	"unconn":       SetOf(StateClose),
	"idle":         SetOf(StateClose),         // Solaris: opened, not bound
	"bound":        SetOf(StateBoundInactive), // Solaris, Windows
	"deletetcb":    SetOf(StateClose),         // Windows: going away
	"all":          AllStates,
	"connected":    AllStates &^ SetOf(StateListen, StateClose, StateBoundInactive), // ss(8), STATE-FILTER
	"synchronized": AllStates &^ SetOf(StateListen, StateClose, StateBoundInactive, StateSynSent),
	"bucket":       SetOf(StateNewSynRecv, StateTimeWait),
	"big":          AllStates &^ SetOf(StateNewSynRecv, StateTimeWait),
}

// String returns the kernel's spelling.
func (s State) String() string { return s.Name(NamingKernel) }

// Name returns the spelling of a naming.
func (s State) Name(n Naming) string {
	if s >= NumStates || n >= numNamings {
		return fmt.Sprintf("STATE_%d", uint8(s))
	}
	return stateNames[s][n]
}

// StateSet is a set of states, a bit for each.
type StateSet uint32

// AllStates is every state there is.
const AllStates StateSet = 1<<NumStates - 2

// SetOf makes a set.
func SetOf(states ...State) (set StateSet) {
	for _, s := range states {
		set |= 1 << s
	}
	return set
}

// Has reports whether s is in the set.
func (set StateSet) Has(s State) bool { return set&(1<<s) != 0 }

// Add returns the set with s.
func (set StateSet) Add(s State) StateSet { return set | 1<<s }

// States lists the set by the kernel's numbers.
func (set StateSet) States() []State {
	states := make([]State, 0, bits.OnesCount32(uint32(set)))
	for s := StateEstablished; s < NumStates; s++ {
		if set.Has(s) {
			states = append(states, s)
		}
	}
	return states
}

// String lists the set in the kernel's spelling, with commas; ParseStates reads it.
func (set StateSet) String() string {
	var names []string
	for _, s := range set.States() {
		names = append(names, s.String())
	}
	return strings.Join(names, ",")
}

// ParseState reads one state in any spelling.
func ParseState(s string) (State, error) {
	set, err := ParseStates(s)
	if err != nil {
		return StateNone, err
	}
	states := set.States()
	if len(states) == 2 && states[0] == StateSynRecv && states[1] == StateNewSynRecv {
		return StateSynRecv, nil
	}
	if len(states) != 1 {
		return StateNone, fmt.Errorf("%q names %d states (%s): give one", s, len(states), set)
	}
	return states[0], nil
}

// MarshalText is String.
func (set StateSet) MarshalText() ([]byte, error) { return []byte(set.String()), nil }

// UnmarshalText is ParseStates.
func (set *StateSet) UnmarshalText(text []byte) (err error) {
	*set, err = ParseStates(string(text))
	return err
}

// ParseStates reads states with commas between them, each in any spelling that
// stated knows: any system's, any case, with -, _, a space or nothing inside;
// and groups: FIN_WAIT, and those of ss(8).
func ParseStates(s string) (StateSet, error) {
	var set StateSet
	for word := range strings.SplitSeq(s, ",") {
		one := parseWord(fold(word))
		if one == 0 {
			return 0, fmt.Errorf("unknown state %q%s: states are %s", strings.TrimSpace(word), suggest(fold(word)), AllStates)
		}
		set |= one
	}
	return set, nil
}

func parseWord(word string) (set StateSet) {
	if set := moreSpellings[word]; set != 0 {
		return set
	}
	for s := StateEstablished; s < NumStates; s++ {
		for _, name := range stateNames[s] {
			if word != "" && fold(name) == word {
				return SetOf(s)
			}
		}
	}
	return 0
}

// fold drops what spellings differ in.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '-', '_', ' ', '\t':
			return -1
		}
		return r
	}, strings.ToLower(s))
}

// suggest returns the state nearest to a word, where one is near.
func suggest(word string) string {
	best, nearest := 3, ""
	if len(word) > 32 {
		return ""
	}
	for s := StateEstablished; s < NumStates; s++ {
		for _, name := range stateNames[s] {
			if d := levenshtein.ComputeDistance(word, fold(name)); d < best {
				best, nearest = d, s.String()
			}
		}
	}
	if nearest == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", nearest)
}
