// SPDX-License-Identifier: Apache-2.0

package render

import "github.com/stated-tcp/stated/pkg/census"

// Wait is who waits on a socket: a sample of one moment.
type Wait struct {
	// Kind is "call" (a thread waits in a call on this descriptor), "poll" (a
	// thread waits for this among others), "watched" (in an epoll set on which no
	// thread waits right now), "none", or "" for unknown.
	Kind string
	TID  uint32 // of the thread that waits
	Call string // that it waits in
	Why  string // for unknown: why, if that is known
}

// Words of Wait.Kind.
const (
	WaitCall    = "call"
	WaitPoll    = "poll"
	WaitWatched = "watched"
	WaitNone    = "none"
)

// waitOn is who waits on a socket, as far as it was looked at.
func (l *Leaks) waitOn(s *census.Socket) Wait {
	if l.Waits == nil || len(s.Holders) == 0 {
		return Wait{}
	}
	return l.Waits(s)
}

// appendWait says in a few words who waits; nothing where nobody does.
func appendWait(b []byte, w Wait, s *census.Socket) []byte {
	switch {
	case w.Kind == WaitCall, w.Kind == WaitPoll:
		b = appendInt(append(b, "  thread "...), int64(w.TID))
		return append(append(b, " waits in "...), w.Call...)
	case w.Kind == WaitWatched:
		return append(b, "  watched by epoll"...)
	case w.Kind == "" && s.Waited:
		return append(b, "  something waits on it"...)
	}
	return b
}

// jsonWait adds who waits, under keys that begin with prefix.
func jsonWait(b []byte, prefix string, w Wait) []byte {
	if w.Kind == "" {
		return b
	}
	b = text(b, prefix, w.Kind)
	if w.TID != 0 {
		b = number(b, prefix+"_thread", int64(w.TID))
		b = text(b, prefix+"_call", w.Call)
	}
	return b
}
