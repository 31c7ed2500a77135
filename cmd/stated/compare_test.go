// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/recording"
)

// recordLeaks writes a recording of two minutes in which n connections to a
// server were closed by the peer, and the first of them never by us.
func recordLeaks(t *testing.T, name string, pid uint32, n, leaked int) string {
	t.Helper()
	return recordLeaksOf(t, recording.Header{Host: "web1", RunID: name}, pid, n, leaked)
}

func recordLeaksOf(t *testing.T, h recording.Header, pid uint32, n, leaked int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), h.RunID)
	w, err := recording.Create(path, h)
	if err != nil {
		t.Fatal(err)
	}
	const second = int64(1e9)
	put := func(at int64, e event.Event) {
		e.Time, e.Netns, e.Protocol = at, 1, event.ProtoTCP
		if err := w.Append(&e); err != nil {
			t.Fatal(err)
		}
	}
	put(100*second, event.Event{Kind: event.KindClock, Wall: 1e18})
	app := event.Task{PID: pid, Start: int64(pid), Comm: event.MakeComm("shop")}
	for i := range n {
		at := 101*second + int64(i)*second/100
		states := []event.State{event.StateListen, event.StateSynRecv, event.StateEstablished, event.StateCloseWait}
		if i >= leaked {
			states = append(states, event.StateLastAck, event.StateClose)
		}
		for j := range len(states) - 1 {
			e := event.Event{Kind: event.KindState, Socket: event.SocketID(i + 1), Old: states[j], New: states[j+1],
				Local: netip.MustParseAddrPort("10.0.0.1:8080"), Peer: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(40000+i)),
				Owner: app, OwnerSource: event.OwnerAccept}
			if states[j+1] == event.StateLastAck || states[j] == event.StateLastAck {
				e.Flags = event.FlagDead
			}
			put(at+int64(j)*1e6, e)
		}
	}
	put(220*second, event.Event{Kind: event.KindClock, Wall: 1e18 + 120*second})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCompare(t *testing.T) {
	bad, bad2 := recordLeaks(t, "bad", 10, 100, 40), recordLeaks(t, "bad2", 11, 200, 80)
	better, good := recordLeaks(t, "better", 12, 100, 5), recordLeaks(t, "good", 13, 100, 0)
	short := recordLeaks(t, "short", 14, 2, 0)
	schema := printedSchema(t)
	for _, tt := range []struct {
		name, before, after, flags, verdict string
		code                                int
	}{
		{"fixed", bad, good, "", "fixed", 0},
		{"better", bad, better, "", "better", 4},
		{"better, tolerated", bad, better, "--max 5", "better", 0},
		{"better, not tolerated", bad, better, "--max 4", "better", 4},
		{"same", bad, bad2, "", "same", 4},
		{"worse", better, bad, "", "worse", 4},
		{"too little", bad, short, "", "too_little", 0},
		{"nothing", good, short, "", "", 0},
		{"never that old", bad, bad2, "--min-age 1h", "", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"leaks", "--compare", "-o", "json", tt.before, tt.after}, strings.Fields(tt.flags)...)
			out, stderr, code := runStated(t, args...)
			if code != tt.code {
				t.Fatalf("exit code %d, want %d: %s%s", code, tt.code, out, stderr)
			}
			if tt.verdict == "" {
				if out != "" {
					t.Errorf("nothing leaked, but: %s", out)
				}
				return
			}
			var r struct {
				Verdict string `json:"stated.comparison.verdict"`
				Program string `json:"process.executable.name"`
				Port    int    `json:"network.local.port"`
				Host    string `json:"host.name"`
			}
			if n := validLines(t, schema, out); n != 1 {
				t.Fatalf("%d records: %s", n, out)
			}
			if err := json.Unmarshal([]byte(out), &r); err != nil || r.Verdict != tt.verdict || r.Program != "shop" || r.Port != 8080 || r.Host != "web1" {
				t.Errorf("%v %+v", err, r)
			}
		})
	}
	out, _, _ := runStated(t, "leaks", "--compare", bad, better)
	for _, want := range []string{"better: shop, came in at port 8080", "before: 40 of 100 connections leaked (40.0%, 1600/h)", "after: 5 of 100"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if _, stderr, code := runStated(t, "leaks", "--compare", "--min-age", "1h", bad, better); code != 1 || strings.Count(stderr, "no longer than --min-age") != 2 {
		t.Errorf("exit code %d, %q: recordings that are too short to tell", code, stderr)
	}
	whole, err := os.ReadFile(bad)
	if err != nil {
		t.Fatal(err)
	}
	torn := filepath.Join(t.TempDir(), "torn")
	if err := os.WriteFile(torn, append(whole, "half a block"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, _ := runStated(t, "leaks", "--compare", torn, good); !strings.Contains(out, "first recording is not complete") {
		t.Errorf("a damaged recording was taken for whole:\n%s", out)
	}
}

// TestCompareWanted: what the recording was not asked for, and has all the same,
// leaks in neither.
func TestCompareWanted(t *testing.T) {
	for want, leaks := range map[string]bool{`{"pids":[10]}`: true, `{"pids":[11]}`: false, `{"states":"LISTEN"}`: false, "": true} {
		h := recording.Header{RunID: "bad", Filter: json.RawMessage(want)}
		if want == "" {
			h.Filter = nil
		}
		bad := recordLeaksOf(t, h, 10, 100, 40)
		out, stderr, code := runStated(t, "leaks", "--compare", bad, bad)
		if told := strings.Contains(out, "shop"); told != leaks || (code == 4) != leaks {
			t.Errorf("%s: exit code %d: %s%s", want, code, out, stderr)
		}
	}
}
