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
