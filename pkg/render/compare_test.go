// SPDX-License-Identifier: Apache-2.0

package render

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// comparison has each verdict, a hostile program and one that was not seen.
func comparison() *Comparison {
	c := &Comparison{Clean: 2, Before: 3630e9, After: 1830e9, MinAge: 30e9, AfterFailed: true, BeforeFailed: true}
	port := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, n) }
	add := func(program event.Comm, role lifecycle.Role, service netip.AddrPort, before, after leak.Count, p leak.Progress) {
		c.Changes = append(c.Changes, leak.Change{Line: leak.Line{Program: program, Role: role, Service: service}, Before: before, After: after, Progress: p})
	}
	add(event.MakeComm("java"), lifecycle.RoleServer, port(8080), leak.Count{Conns: 4000, Leaked: 120, Old: 4, Left: 124}, leak.Count{Conns: 3900}, leak.Fixed)
	add(event.MakeComm("java"), lifecycle.RoleClient, netip.MustParseAddrPort("[2001:db8::1]:5432"), leak.Count{Conns: 100, Leaked: 50},
		leak.Count{Conns: 100, Leaked: 9}, leak.Better)
	add(event.Comm{0x1b, '[', '2', 'J', '\n', '"', 0xff}, lifecycle.RoleServer, port(1), leak.Count{Conns: 5, Leaked: 1}, leak.Count{Conns: 5, Leaked: 5}, leak.Worse)
	add(event.Comm{}, lifecycle.RoleClient, netip.MustParseAddrPort("10.0.0.1:443"), leak.Count{Conns: 50, Leaked: 25}, leak.Count{Conns: 50, Leaked: 25}, leak.Same)
	add(event.MakeComm("curl"), lifecycle.RoleClient, netip.MustParseAddrPort("10.0.0.1:443"), leak.Count{Old: 3, Left: 3}, leak.Count{Conns: 1}, leak.TooLittle)
	return c
}

func TestComparisonGolden(t *testing.T) {
	short := comparison()
	short.Before = 10e9
	for name, tt := range map[string]struct {
		o Options
		c *Comparison
	}{
		"compare.text":       {Options{}, comparison()},
		"compare.json":       {Options{Format: FormatJSON}, comparison()},
		"compare_short.json": {Options{Format: FormatJSON}, short},
		"compare_none.text":  {Options{}, &Comparison{MinAge: 30e9, Before: 60e9, After: 60e9}},
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, name, render(tt.o, func(w *Writer) { w.Comparison(tt.c) }))
		})
	}
}

// TestComparisonFitsTheSchema: and the schema allows no key that no record has.
func TestComparisonFitsTheSchema(t *testing.T) {
	all := schemas(t)
	seen := make(map[string]bool)
	out := New(&strings.Builder{}, Options{Format: FormatJSON, Host: Host{Name: "h", ID: "i", BootID: "b", RunID: "r", Version: "v"}})
	for line := range strings.Lines(string(out.Capture(func() { out.Comparison(comparison()) }))) {
		for key := range validate(t, all, line) {
			seen[key] = true
		}
	}
	for key := range properties(t, "tcp.leak_comparison") {
		if !seen[key] {
			t.Errorf("no record had %s", key)
		}
	}
}
