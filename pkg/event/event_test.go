// SPDX-License-Identifier: Apache-2.0

package event

import "testing"

// TestPayload: neither SYN nor FIN is a byte of anybody.
func TestPayload(t *testing.T) {
	for _, tt := range []struct {
		name           string
		e              Event
		unread, unsent uint32
		fin            bool
	}{
		{"open", Event{Old: StateEstablished, New: StateEstablished, Unread: 5, Unsent: 7}, 5, 7, false},
		{"end of file waits", Event{Old: StateCloseWait, New: StateCloseWait, Flags: FlagDone, Unread: 101}, 100, 0, true},
		{"end of file was read", Event{Old: StateCloseWait, New: StateCloseWait, Flags: FlagDone, Unsent: 3}, 0, 3, false},
		{"SYN", Event{Old: StateSynSent, New: StateSynSent, Unsent: 1}, 0, 0, false},
		{"SYN of both sides", Event{Old: StateSynSent, New: StateSynRecv, Unsent: 1}, 0, 0, false},
		{"and looked at", Event{Old: StateSynRecv, New: StateSynRecv, Unsent: 1}, 0, 0, false},
		{"acknowledged SYN, data with it", Event{Old: StateSynSent, New: StateEstablished, Unsent: 10}, 0, 10, false},
		{"Fast Open, served", Event{Old: StateSynRecv, New: StateSynRecv, Unsent: 10, BytesSent: 10}, 0, 10, false},
		{"refused", Event{Old: StateSynSent, New: StateClose, Unsent: 1}, 0, 0, false},
		{"refused, looked at", Event{Old: StateClose, New: StateClose, Unsent: 1}, 0, 0, false},
		{"used again", Event{Old: StateClose, New: StateSynSent, Unsent: 70000}, 0, 0, false},
		{"closes, no FIN yet", Event{Old: StateEstablished, New: StateFinWait1, Unsent: 300}, 0, 300, false},
		{"FIN with data", Event{Old: StateFinWait1, New: StateFinWait1, Unsent: 301}, 0, 300, false},
		{"FIN alone", Event{Old: StateLastAck, New: StateLastAck, Flags: FlagDone, Unread: 1, Unsent: 1}, 0, 0, true},
		{"reset behind the FIN", Event{Old: StateFinWait1, New: StateClose, Unsent: 301}, 0, 300, false},
		{"FIN of both sides", Event{Old: StateFinWait1, New: StateClosing, Flags: FlagDone, Unread: 1, Unsent: 1}, 0, 0, true},
		{"FIN acknowledged", Event{Old: StateFinWait1, New: StateFinWait2}, 0, 0, false},
		{"reset", Event{Old: StateEstablished, New: StateClose, Unsent: 300}, 0, 300, false},
	} {
		unread, fin := tt.e.UnreadPayload()
		if unsent := tt.e.UnsentPayload(); unread != tt.unread || unsent != tt.unsent || fin != tt.fin {
			t.Errorf("%s: %d unread, FIN %v, %d unsent", tt.name, unread, fin, unsent)
		}
	}
}
