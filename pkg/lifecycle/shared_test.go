// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

// TestNoUID: who does not know the owner of a socket neither makes it root's nor
// hides what is known.
func TestNoUID(t *testing.T) {
	var s Shared
	for i, tt := range []struct {
		uid, want uint32
		known     bool
	}{{event.NoUID, 0, false}, {1000, 1000, true}, {event.NoUID, 1000, true}, {0, 0, true}} {
		e := event.Event{Kind: event.KindSnapshot, UID: tt.uid}
		if s.knows(&e) != (tt.uid == event.NoUID) {
			t.Errorf("event %d: knows %v", i, s.knows(&e))
		}
		if s.learn(&e); s.UID != tt.want || s.UIDKnown != tt.known {
			t.Errorf("event %d: uid %d, known %v", i, s.UID, s.UIDKnown)
		}
	}
}
