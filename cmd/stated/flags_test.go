// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/probe"
)

// TestNames: a process may have any name, and is found by what ls shows.
func TestNames(t *testing.T) {
	for args, want := range map[string][]string{
		`--comm a"q`:                 {`a"q`},
		`--comm "a",b --comm c`:      {`"a"`, "b", "c"},
		`--comm \x1b[2J\\\x0a\xff`:   {"\x1b[2J\\\n\xff"},
		`--comm a\u{202e}b\x2cc\xzz`: {"a\u202eb,c\\xzz"},
	} {
		var f filterFlags
		cmd := newVersion()
		f.register(cmd)
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		if got, err := f.parse(); err != nil || !slices.Equal(got.Comms, want) {
			t.Errorf("%s: %q, %v", args, got.Comms, err)
		}
	}
}

// TestPrefix: addresses are written in many ways, and shown in one.
func TestPrefix(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.5":            "10.0.0.5/32",
		"10.0.0.0/8":          "10.0.0.0/8",
		"::ffff:10.0.0.5":     "10.0.0.5/32",
		"::ffff:10.0.0.0/104": "10.0.0.0/8",
		"::ffff:0:0/96":       "0.0.0.0/0",
		"::ffff:0:0/95":       "::ffff:0.0.0.0/95",
		"fe80::1%eth0":        "fe80::1/128",
		"2001:db8::/32":       "2001:db8::/32",
	} {
		if got, err := parsePrefix(text); err != nil || got.String() != want {
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
}

// TestLacking: a hook with two programs, for kernels with other arguments, is missing
// once or not at all.
func TestLacking(t *testing.T) {
	no := errors.New("no")
	row := func(name, program string, err error) probe.HookStatus {
		return probe.HookStatus{Hook: probe.Hook{Name: name, Program: program}, Err: err}
	}
	for _, tt := range []struct {
		hooks []probe.HookStatus
		want  string
	}{
		{[]probe.HookStatus{row("cookie", "five", no), row("cookie", "four", no), row("other", "one", no)}, "four one"},
		{[]probe.HookStatus{row("cookie", "five", no), row("cookie", "four", nil)}, ""},
		{[]probe.HookStatus{row("cookie", "five", nil), row("cookie", "four", no)}, ""},
	} {
		var got []string
		for _, h := range lacking(tt.hooks) {
			got = append(got, h.Program)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q, want %s", got, tt.want)
		}
	}
}

// TestBlind: trace says that it will not see who accepts a connection, once.
func TestBlind(t *testing.T) {
	row := func(tier probe.Tier, name string, err error) probe.HookStatus {
		return probe.HookStatus{Hook: probe.Hook{Tier: tier, Name: name, Without: "owners come late"}, Err: err}
	}
	unmounted := errors.New("no tracefs\nas was tried")
	accept := row(probe.TierCauses, "tracepoint syscalls/sys_exit_accept", unmounted)
	accept4 := row(probe.TierCauses, "tracepoint syscalls/sys_exit_accept4", unmounted)
	unused := accept
	unused.Unused = true
	for _, tt := range []struct {
		hooks []probe.HookStatus
		want  string
	}{
		{[]probe.HookStatus{row(probe.TierCore, "tp_btf", nil), row(probe.TierTrampolines, "fentry", unmounted)}, ""},
		{[]probe.HookStatus{row(probe.TierCore, "tp_btf", nil), accept4, accept}, "accept() is not seen: owners come late"},
		{[]probe.HookStatus{accept4, accept, row(probe.TierCore, "tp_btf", unmounted)}, "states and addresses only: no tracefs"},
		{[]probe.HookStatus{unused}, ""},
	} {
		if got := blind(tt.hooks); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// TestNetnsPath: a file that is no namespace has an inode, too, in which nothing is.
func TestNetnsPath(t *testing.T) {
	for path, want := range map[string]string{
		"/proc/self/ns/net": "", "/proc/self/ns/uts": "is no network namespace", t.TempDir(): "is no network namespace",
		"/proc/self/ns/not": "no such file", "4026531840": "",
	} {
		n, err := netnsInode(path)
		if want == "" && (err != nil || n == 0) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %d, %v", path, n, err)
		}
	}
}
