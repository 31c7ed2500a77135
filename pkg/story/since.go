// SPDX-License-Identifier: Apache-2.0

package story

import (
	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/explain"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

// byBegan reports whether the age follows from what the kernel knows of the begin.
func byBegan(s *census.Socket) bool { return s.Began != 0 && s.Age.Min == s.Time-s.Began }

// byAck is when the last acknowledgement came, if the age follows from that, else 0: of
// later segments it is known only whether one brought data.
func byAck(s *census.Socket) int64 {
	switch {
	case s.New == event.StateSynSent:
	case byBegan(s) && s.LastSegment > s.Began:
		return s.Began
	case s.Limited && s.LastSegment != 0 && s.Age.Min == s.Time-s.LastSegment:
		return s.LastSegment
	}
	return 0
}

// state says which, since when, how that is known, and what it means.
func (t *Teller) state(s *census.Socket) []byte {
	switch {
	case s.Hidden():
		b := []byte("The connection has ended, and its descriptor is still open. ")
		return append(append(b, "It ended "...), append(span(nil, s.Age), " ago. ss and netstat do not show it any more."...)...)
	case s.New == event.StateClose:
		return []byte("It is not connected: not yet, or it was disconnected.")
	}
	b := append([]byte("It is in "), s.New.Name(t.Names)...)
	switch {
	case s.Age.Min == 0 && s.Age.Known != lifecycle.Seen:
		b = append(b, "; since when is not known"...)
	case s.Age.Known == lifecycle.Seen:
		b = append(span(append(b, ", and has been for "...), s.Age), " exactly: the change was seen"...)
	case s.Age.Known == lifecycle.Inferred:
		b = append(span(append(b, ", and has been for "...), s.Age), ", as its last segment tells"...)
	case s.New == event.StateTimeWait:
		b = append(span(append(b, ", and has been for "...), s.Age), ", by its timer"...)
	case s.New == event.StateSynSent && byBegan(s):
		b = append(span(append(b, ", and has been for "...), s.Age), ": the first SYN went then"...)
	case byAck(s) != 0 && s.LastReceived > byAck(s):
		b = append(span(append(b, ", and has been for "...), s.Age), ": the peer acknowledged something then, and such a segment brought it into that state"...)
	case byAck(s) != 0:
		b = append(span(append(b, ", and has been for "...), s.Age), ": no segment of the peer has come since, and one brought it into that state"...)
	case s.ByPayload():
		b = append(span(append(b, ", and has been for "...), s.Age), ": data came or went then, as it does in that state"...)
	default:
		b = append(span(append(b, ", and has been for "...), s.Age), ": no segment has come or gone since, and no change of state is made without one"...)
	}
	if s.Age.Max > s.Age.Min {
		b = render.AppendDuration(append(b, "; for no longer than "...), s.Age.Max)
		if received(s) > 0 {
			b = append(b, ", when data last came"...)
		} else {
			b = append(b, ", when the connection was made"...)
		}
	}
	if s.Subflow() {
		return append(b, '.') // what that means for a process is said of its connection
	}
	return append(append(b, ". "...), explain.Brief(s.New)...)
}

// span says an age with how well it is known.
func span(b []byte, a census.Age) []byte {
	switch a.Known {
	case lifecycle.AtLeast:
		b = append(b, "at least "...)
	case lifecycle.Inferred:
		b = append(b, "about "...)
	}
	return render.AppendDuration(b, a.Min)
}
