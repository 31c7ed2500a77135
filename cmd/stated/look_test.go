// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
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

// TestNoNetns: a namespace that is not there is no empty one.
func TestNoNetns(t *testing.T) {
	for _, command := range []string{"ls", "leaks", "trace"} {
		if _, stderr, code := runStated(t, command, "--netns", "0"); code != 2 || !strings.Contains(stderr, "no network namespace has this number") {
			t.Errorf("%s: exit code %d, %s", command, code, stderr)
		}
	}
	requireRoot(t)
	in, err := probe.OpenInspector()
	if err != nil {
		t.Fatal(err)
	}
	limited := in.Limited()
	in.Close()
	if limited != nil {
		if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err == nil {
			t.Fatal(limited)
		}
		t.Skip("no BTF: what is there is not known before it is looked at")
	}
	for _, args := range [][]string{{"ls"}, {"leaks"}, {"leaks", "--for", "1ms"}} {
		if _, stderr, code := runStated(t, append(args, "--netns", "99")...); code != 1 || !strings.Contains(stderr, "leads to a network namespace with this number") {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
		if _, stderr, code := runStated(t, append(args, "--netns", "/proc/self/ns/net")...); code != 0 && code != 4 {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
}
