// SPDX-License-Identifier: Apache-2.0

package census

import (
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// TestAge: of all lower bounds the best counts, and none that proves nothing.
func TestAge(t *testing.T) {
	times := func(segment, received, sent int64) func(*event.Sighting) {
		return func(s *event.Sighting) { s.LastSegment, s.LastReceived, s.LastSent = segment, received, sent }
	}
	for name, tt := range map[string]struct {
		state   event.State
		change  func(*event.Sighting)
		min     int64
		payload bool
	}{
		"nothing known":          {event.StateEstablished, times(0, 0, 0), 0, false},
		"segment":                {event.StateEstablished, times(70e9, 0, 0), 30e9, false},
		"payload before a probe": {event.StateEstablished, times(98e9, 0, 40e9), 60e9 - late, true},
		"payload that came":      {event.StateEstablished, times(98e9, 40e9, 0), 60e9 - late, true},
		"the older of both":      {event.StateEstablished, times(98e9, 70e9, 40e9), 60e9 - late, true},
		"payload, no segment":    {event.StateEstablished, times(0, 40e9, 70e9), 60e9 - late, true},
		"payload just now":       {event.StateEstablished, times(100e9, 100e9, 100e9), 0, false},
		"by sock_diag": {event.StateEstablished, func(s *event.Sighting) {
			s.Limited, s.LastSent = true, 40e9
		}, 60e9 - late - lateLimited, true},
		"timer": {event.StateTimeWait, func(s *event.Sighting) {
			mini(s)
			s.Began = 97e9
		}, 3e9, false},
		"of the state before": {event.StateCloseWait, times(98e9, 40e9, 40e9), 2e9, false},
	} {
		s := look(socket(tt.state, "10.0.0.1:80", "10.0.0.2:40000", tt.change))[0]
		if s.Age.Min != tt.min || s.Age.Known != lifecycle.AtLeast || s.ByPayload() != tt.payload {
			t.Errorf("%s: %+v, by payload %v", name, s.Age, s.ByPayload())
		}
	}
}
