// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/agent"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/recording"
	"github.com/stated-tcp/stated/pkg/render"
)

// tallied is a recording whose connections were counted.
type tallied struct {
	*leak.Tally
	header recording.Header
	gap    bool // events are missing
}

// Idle implements agent.Consumer.
func (*tallied) Idle() error { return nil }

// compare says what became of the leaks of one recording in another. Neither
// needs a privilege, nor this host.
func (l *leaksFlags) compare(cmd *cobra.Command, paths []string) error {
	if len(paths) != 2 {
		return usagef("--compare takes two recordings: stated leaks --compare BEFORE AFTER")
	}
	if l.minAge < 0 || l.max < 0 {
		return usagef("--min-age and --max cannot be negative")
	}
	for _, flag := range []string{"for", "watch", "stacks", "by", "examples", "state", "pid", "comm", "port", "lport", "rport", "addr", "netns", "cgroup", "role", "ipv4", "ipv6"} {
		if cmd.Flags().Changed(flag) {
			return usagef("--%s does not go with --compare", flag)
		}
	}
	opts, err := l.out.parse(thisHost(), cmd.OutOrStdout())
	if err != nil {
		return err
	}
	before, err := tally(cmd.Context(), paths[0], int64(l.minAge))
	if err != nil {
		return err
	}
	after, err := tally(cmd.Context(), paths[1], int64(l.minAge))
	if err != nil {
		return err
	}
	opts.Host.Name, opts.Host.ID, opts.Host.BootID = after.header.Host, after.header.HostID, after.header.BootID
	c := render.Comparison{Before: before.Span(), After: after.Span(), MinAge: int64(l.minAge), BeforeFailed: before.gap, AfterFailed: after.gap}
	c.Changes, c.Clean = leak.Compare(before.Tally, after.Tally)
	out := render.New(cmd.OutOrStdout(), opts)
	out.SetClock(0, time.Now().UnixNano())
	out.Comparison(&c)
	if err := out.Flush(); err != nil {
		return err
	}
	short := func(i int) error {
		return fmt.Errorf("%s is no longer than --min-age %v: nothing in it can be known to leak", paths[i], l.minAge)
	}
	if before.Span() <= int64(l.minAge) {
		fmt.Fprintln(cmd.ErrOrStderr(), "stated:", short(0))
	}
	left := 0
	for i := range c.Changes {
		left += c.Changes[i].After.Leaked + c.Changes[i].After.Old
	}
	switch {
	case left > l.max:
		return errLeaks
	case after.Span() <= int64(l.minAge):
		return short(1) // which is no proof of a fix
	}
	return nil
}

// tally replays a recording.
func tally(ctx context.Context, path string, minAge int64) (*tallied, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the recording: %w", err)
	}
	defer file.Close()
	rec, err := recording.NewReader(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t := &tallied{Tally: leak.NewTally(minAge), header: rec.Header()}
	h := &t.header
	table := lifecycle.New(t, lifecycle.Options{NoDestroy: h.NoDestroy, NoResets: h.NoResets, SeesTimeWait: h.SeesTimeWait})
	want, err := wanted(path, h)
	if err != nil {
		return nil, err
	}
	t.Want = func(c *lifecycle.Conn) bool {
		if c.End == 0 {
			return want.Unfinished(c, table.Now())
		}
		return want.Finished(c)
	}
	if err := (&agent.Loop{Source: rec, Table: table, Consumer: t}).Run(ctx); err != nil {
		return nil, fmt.Errorf("replay %s: %w", path, err)
	}
	t.End(table)
	stats := table.Stats()
	t.gap = rec.Damage() != (recording.Damage{}) || stats.Lost > 0 || stats.Gaps > 0 || stats.Evicted > 0
	return t, ctx.Err()
}
