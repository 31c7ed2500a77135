// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/agent"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/render"
	"github.com/stated-tcp/stated/pkg/symbol"
)

// errLeaks is the exit code of a report that found more than --max.
var errLeaks = errors.New("leaks found")

// groupings are the values of --by.
var groupings = map[string]struct {
	by  render.By
	key leak.Key
}{
	"process": {render.ByProcess, leak.ByProcess}, "peer": {render.ByPeer, leak.ByPeer}, "listener": {render.ByListener, leak.ByListener},
	"container": {render.ByContainer, nil}, // which needs to look processes up
	"stack":     {render.ByStack, leak.ByStack}, "none": {render.ByNone, leak.ByNone},
}

type leaksFlags struct {
	live     live
	out      outputFlags
	minAge   time.Duration
	by       string
	watch    bool
	stacks   bool
	max      int
	examples int
	compared bool
}

func newLeaks() *cobra.Command {
	var l leaksFlags
	cmd := &cobra.Command{
		Use:   "leaks [flags]",
		Short: "Show who holds sockets that the other side has finished with, and why",
		Long: `leaks looks at the sockets of this host, in all network namespaces, and shows
those that are stuck because their process does not close them: CLOSE_WAIT for
longer than --min-age, and connections that have ended (reset, killed, timed
out) while their descriptor stays open, which ss does not show.

For each it says why: nobody accepted it, data or the end of file was never
read, nothing is left to read and close() is missing, shutdown() without
close(). Sockets that were stuck before stated began are found as well; where
their age is not known exactly it says so: ≥ at least, ~ inferred.

--stacks also shows where in the code they were opened: the functions that led to
connect() or accept(). That is known of connections made while stated watches,
so it needs --for or --watch, and of programs with frame pointers (Go has them).

Alone it looks once and ends. --for watches first, so that ages are exact and
growth is known. --watch goes on until Ctrl-C.

--compare takes two recordings ('stated record'), before and after a fix, and
says of each program and service which share of its connections leaked in each,
and whether that is fixed, better, the same, or worse. The conditions of each
recording hold. It needs no privilege.

Exit code 4 when more than --max sockets are leaked (in the second recording),
0 when not: fit for a health check, or to prove a fix.`,
		Example: `  sudo stated leaks
  sudo stated leaks --comm java --by peer
  sudo stated leaks --for 60s
  sudo stated leaks --watch
  sudo stated leaks --for 5m --stacks
  sudo stated leaks --state FIN_WAIT2,CLOSING,LAST_ACK --min-age 2m
  sudo stated leaks --by none -o json | jq .
  stated leaks --compare before.rec after.rec`,
		Args: func(cmd *cobra.Command, args []string) error {
			if l.compared {
				return nil
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if l.compared {
				return l.compare(cmd, args)
			}
			return l.run(cmd)
		},
	}
	l.live.register(cmd)
	fs := cmd.Flags()
	fs.Lookup("for").Usage = "watch for this `TIME`, then report"
	fs.Lookup("state").Usage = "look at these `STATES`, in any spelling (default CLOSE_WAIT,CLOSE; CLOSE is a connection that ended while its descriptor is open)"
	fs.Lookup("min-duration").Hidden = true
	l.out.registerFormat(cmd)
	l.out.registerCmdline(cmd, true)
	fs.DurationVar(&l.minAge, "min-age", 30*time.Second, "stuck is what stays in its state for this `TIME`")
	fs.StringVar(&l.by, "by", "process", "group by `WHAT`: process (and service), peer, listener, container, stack, none (each socket)")
	fs.BoolVar(&l.stacks, "stacks", false, "with --for or --watch, show where in the code the sockets were opened")
	fs.BoolVar(&l.watch, "watch", false, "report again every 2 seconds: in place on a terminal, else below a line with the time")
	fs.BoolVar(&l.compared, "compare", false, "say what became of the leaks of one recording in another")
	fs.IntVar(&l.max, "max", 0, "exit with 0 when at most `N` sockets are leaked")
	fs.IntVar(&l.examples, "examples", 5, "show `N` sockets of each group")
	return cmd
}

func (l *leaksFlags) run(cmd *cobra.Command) error {
	want, err := l.live.filter.parse()
	if err != nil {
		return err
	}
	if err := l.live.check(); err != nil {
		return err
	}
	grouping, known := groupings[l.by]
	switch {
	case !known:
		return usagef("--by %q: one of process, peer, listener, container, stack, none", l.by)
	case l.by == "stack" && !l.stacks:
		return usagef("--by stack groups by what --stacks shows: add --stacks")
	case l.stacks && !l.watch && l.live.span == 0:
		return usagef("--stacks is known of connections made while stated watches: add --for 60s, or --watch")
	case l.minAge < 0, l.max < 0, l.examples < 0, l.live.span < 0:
		return usagef("--min-age, --max, --examples and --for cannot be negative")
	case want.MinDuration != 0:
		return usagef("--min-duration is for trace: leaks has --min-age")
	}
	states, err := lookedAt(want.States)
	if err != nil {
		return err
	}
	if want.States = 0; states == 0 {
		states = leak.DefaultStates
	}
	host := thisHost()
	opts, err := l.out.parse(host, cmd.OutOrStdout())
	if err != nil {
		return err
	}
	out := render.New(cmd.OutOrStdout(), opts)
	found, processes := 0, newProcesses(proc.Options{Cmdline: l.out.cmdline}, nil)
	if grouping.by == render.ByContainer {
		grouping.key = leak.ByContainer(processes.container)
	}
	leaks := &agent.Leaks{
		Rules: leak.Rules{MinAge: int64(l.minAge), States: states}, By: grouping.key, Filter: want,
		Now: probe.Now, Every: 2 * time.Second,
	}
	leaks.Show = func(r leak.Report, groups []leak.Group, growth map[string]float64, err error) error {
		if err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "stated: not all could be looked at: %s\n", firstLine(err))
		}
		found = len(r.Findings)
		processes.forget()
		shown := &render.Leaks{Report: r, Groups: groups, Processes: processes.withDescriptors,
			Waits: processes.waits, By: grouping.by, Growth: growth, Flow: leaks.Flow, MinAge: int64(l.minAge), Examples: l.examples, Each: grouping.by == render.ByNone, Stacks: l.stacks}
		out.SetClock(probe.Now()) // it may have been set since the last report
		if l.watch {
			out.Again(shown)
		}
		if rows, columns, ok := screen(cmd.OutOrStdout()); ok && l.watch && opts.Color {
			out.LeaksWithin(shown, rows, columns)
		} else {
			out.Leaks(shown)
		}
		return out.Flush()
	}
	if l.watch || l.live.span > 0 {
		err = l.observe(cmd, leaks)
	} else {
		err = l.lookOnce(cmd, leaks)
	}
	if err == nil && found > l.max {
		err = errLeaks
	}
	return err
}

// lookOnce needs no event.
func (l *leaksFlags) lookOnce(cmd *cobra.Command, leaks *agent.Leaks) error {
	inspector, err := openInspector(cmd, l.live.classic)
	if err != nil {
		return err
	}
	defer inspector.Close()
	if err := findNetns(inspector, leaks.Filter.Netns); err != nil {
		return err
	}
	leaks.Inspector = inspector
	return leaks.Tell()
}

// observe follows all connections, so that ages are exact.
func (l *leaksFlags) observe(cmd *cobra.Command, leaks *agent.Leaks) error {
	p, err := probe.Open(probe.Options{RingBytes: l.live.ring, Classic: l.live.classic, NoStorage: l.live.noStore, Stacks: l.stacks})
	if err != nil {
		return err
	}
	defer p.Close()
	if l.stacks && p.Partial() {
		fmt.Fprintln(cmd.ErrOrStderr(), "stated: there are no stacks without BTF")
	} else if l.stacks {
		leaks.Stacks = &agent.Stacks{Source: p, Symbols: symbol.New(symbol.Options{Lines: true})}
		defer l.tellLost(cmd, p)
	}
	inspector, err := p.Inspector()
	if err != nil {
		return &probe.UnusableError{Reason: err.Error(), Err: err}
	}
	defer inspector.Close()
	if err := findNetns(inspector, leaks.Filter.Netns); err != nil {
		return err
	}
	leaks.Inspector = noteLimits(cmd, inspector)
	options := tableOptions(p)
	options.MaxConns = l.live.maxConns
	var consumer agent.Consumer = leaks
	if !l.watch {
		consumer = quiet{leaks}
	}
	leaks.Table = lifecycle.New(consumer, options)
	ctx := cmd.Context()
	if l.live.span > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.live.span)
		defer cancel()
	}
	leaks.Begin()
	if !l.watch {
		fmt.Fprintf(cmd.ErrOrStderr(), "stated: watching for %v, Ctrl-C reports now\n", l.live.span)
	}
	loop := &agent.Loop{Source: p, Table: leaks.Table, Consumer: consumer, Now: probe.Now}
	if p.Partial() { // what is looked at and what events tell share no number otherwise
		loop.Snapshot, loop.SnapshotEvery = p.Snapshot, snapshotEvery
	}
	if err := loop.Run(ctx); err != nil || l.watch {
		return err
	}
	return leaks.Tell()
}

// tellLost says of how many sockets there is no stack because there was no room.
func (l *leaksFlags) tellLost(cmd *cobra.Command, p *probe.Probe) {
	if stats, err := p.Stats(); err == nil && stats.StacksLost > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "stated: no room for the stacks of %d sockets\n", stats.StacksLost)
	}
}

// quiet watches without reporting.
type quiet struct{ *agent.Leaks }

func (quiet) Idle() error { return nil }
