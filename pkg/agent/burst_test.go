// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/spool"
)

// TestBurst: thousands of losses are a line at once, a line a minute, and one at the
// end, which add up; what comes after a quiet minute is a burst of its own.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		b := newBurst(func(n uint64, why string, in time.Duration) { said = append(said, fmt.Sprintf("%d %s %v", n, why, in)) })
		for range 1000 {
			b.add(401, "full")
			time.Sleep(70 * time.Millisecond)
		}
		time.Sleep(3 * time.Minute)
		b.add(7, "damaged")
		b.add(3, "damaged")
		b.end()
		b.end()
		time.Sleep(3 * time.Minute)
		want := []string{"401 full 0s", "344058 full 1m0s", "401000 full 2m0s", "7 damaged 0s", "10 damaged 0s"}
		if !slices.Equal(said, want) {
			t.Errorf("%q, want %q", said, want)
		}
	})
}

// TestLossesLogged: what the kernel's buffer could not take is logged while the agent
// runs, with the keys that help.
func TestLossesLogged(t *testing.T) {
	var out bytes.Buffer
	s := &Stream{lost: newBurst(lostEvents(slog.New(slog.NewTextHandler(&out, nil)), "block"))}
	s.conns.Out = newStream(&bytes.Buffer{}, render.Host{}, &choice{}, nil).out
	for range 500 {
		s.Event(&event.Event{Kind: event.KindLost, Count: 3})
	}
	s.lost.end()
	got := out.String()
	for _, want := range []string{"3 events lost: more than this machine takes; narrow `filter`, or enlarge `ring_bytes`", "on_full: block", "1500 events lost"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	if n := strings.Count(got, "\n"); n != 2 {
		t.Errorf("%d lines: %s", n, got)
	}
}

// TestWhyMissing: the reason that a sink is told of.
func TestWhyMissing(t *testing.T) {
	for _, tt := range []struct {
		e    spool.Entry
		s    spool.Stats
		want string
	}{
		{spool.Entry{Damaged: true}, spool.Stats{Dropped: 5}, "damaged"},
		{spool.Entry{}, spool.Stats{Dropped: 5}, "did not reach the spool"},
		{spool.Entry{}, spool.Stats{DroppedOld: 5}, "spool.max_bytes"},
		{spool.Entry{}, spool.Stats{DroppedOld: 5, Dropped: 5}, "did not reach the spool"},
		{spool.Entry{}, spool.Stats{}, "earlier run"},
	} {
		if got := whyMissing(tt.e, tt.s); !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}
