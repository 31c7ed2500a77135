// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

// TestLookedAt: no state is accepted that never matches.
func TestLookedAt(t *testing.T) {
	for words, want := range map[string]event.StateSet{
		"":                     0,
		"NEW_SYN_RECV":         event.SetOf(event.StateSynRecv, event.StateNewSynRecv),
		"LISTEN":               event.SetOf(event.StateListen),
		"all":                  event.AllStates,
		"BOUND_INACTIVE,CLOSE": event.SetOf(event.StateBoundInactive, event.StateClose),
	} {
		var set event.StateSet
		if words != "" {
			var err error
			if set, err = event.ParseStates(words); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := lookedAt(set); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", words, got, err, want)
		}
	}
	for _, args := range [][]string{{"ls", "--state", "BOUND_INACTIVE"}, {"leaks", "--state", "bound,close-wait"}} {
		if _, stderr, code := runStated(t, args...); code != 2 || !strings.Contains(stderr, "'stated explain PID' counts") {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
}
