// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/agent"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/probe"
	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/recording"
	"github.com/stated-tcp/stated/pkg/render"
)

// snapshotEvery is seldom enough not to be felt: 100,000 sockets take a few
// tenths of a second of one CPU.
const snapshotEvery = 30e9

// live are the flags of commands that watch the kernel.
type live struct {
	filter   filterFlags
	span     time.Duration
	maxConns int
	ring     uint32
	classic  bool
	noStore  bool
	noTramp  bool
}

func (l *live) register(cmd *cobra.Command) {
	l.filter.register(cmd)
	fs := cmd.Flags()
	fs.DurationVar(&l.span, "for", 0, "end after this `TIME`; 0s: go on until Ctrl-C")
	fs.IntVar(&l.maxConns, "max-connections", 1<<18, "keep at most `N` connections in memory")
	fs.Uint32Var(&l.ring, "ring-bytes", 8<<20, "size of the kernel's event buffer, a power of two")
	fs.BoolVar(&l.classic, "classic", false, "use the classic tracepoint: states and addresses only")
	fs.BoolVar(&l.noStore, "no-socket-storage", false, "work as on kernels before 5.12")
	fs.MarkHidden("no-socket-storage")
	fs.BoolVar(&l.noTramp, "no-trampolines", false, "do without fentry and fexit, as on kernels that refuse them")
}

func newTrace() *cobra.Command {
	var l live
	var o outputFlags
	var existing bool
	var record string
	cmd := &cobra.Command{
		Use:   "trace [flags] [-- COMMAND ARGS...]",
		Short: "Show connections as they end, or each change of state",
		Long: `trace shows each TCP connection of this host, in all network namespaces, when
it ends: who owned it, how long it was in each state, how it ended. --events
shows each change of state as it happens.

With a command, trace runs it, follows it and its children alone, and ends
with its exit code. --for then ends what is shown, not the command, which trace
waits for.

Marks: → we called, ← they called, ↔ both at once, or not known; ~ inferred,
≥ at least (it began before stated), ? after a process: it has the descriptor or
owns the listener, but was not seen to get the connection; … it goes on.`,
		Example: `  sudo stated trace
  sudo stated trace --events --port 443
  sudo stated trace --state CLOSE_WAIT --min-duration 30s
  sudo stated trace -o json | jq .
  sudo stated trace -- curl -s https://example.com`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usagef("%q is no flag: a command to run stands behind --", args[0])
			}
			return l.run(cmd, args, &o, existing, record)
		},
	}
	l.register(cmd)
	o.register(cmd)
	o.registerCmdline(cmd, false)
	cmd.Flags().BoolVar(&existing, "existing", false, "first list the sockets that are there")
	cmd.Flags().StringVar(&record, "record", "", "also record all events to `FILE`")
	return cmd
}

func newRecord() *cobra.Command {
	var l live
	cmd := &cobra.Command{
		Use:   "record [flags] FILE",
		Short: "Record all events, for replay",
		Long: `record writes every event to FILE, which must not exist. 'stated replay FILE'
shows what trace would have shown, with the same conditions; 'zstd -dc FILE'
prints the events as JSON.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return l.run(cmd, nil, nil, false, args[0]) },
	}
	l.register(cmd)
	return cmd
}

// check says what is wrong with the numbers.
func (l *live) check() error {
	if l.maxConns < 1 {
		return usagef("--max-connections %d: a number of at least 1", l.maxConns)
	}
	if page := uint32(os.Getpagesize()); l.ring&(l.ring-1) != 0 || l.ring%page != 0 { // 0: the default
		return usagef("--ring-bytes %d: a power of two, and at least %d", l.ring, page)
	}
	return nil
}

// run watches the kernel: open the probe, drive its events through the table to
// the screen and the recording, say on stderr what was seen. o is nil where
// nothing is shown.
func (l *live) run(cmd *cobra.Command, command []string, o *outputFlags, existing bool, record string) error {
	want, err := l.filter.parse()
	if err != nil {
		return err
	}
	if err := l.check(); err != nil {
		return err
	}
	if l.span < 0 {
		return usagef("--for %v: a time cannot be negative", l.span)
	}
	if err := numbered(cmd, len(command) > 0 || len(want.PIDs) > 0); err != nil {
		return err
	}
	host := thisHost()
	trace := &agent.Trace{Filter: want, Existing: existing}
	who := agent.NewProcesses(proc.New(proc.Options{Cmdline: o != nil && o.cmdline}), nil)
	if o != nil {
		opts, err := o.parse(host, cmd.OutOrStdout())
		if err != nil {
			return err
		}
		opts.Processes = who.Of
		trace.Out = render.New(cmd.OutOrStdout(), opts)
		trace.Events, trace.Count, trace.OpenAfter = o.events, o.count, int64(o.openAfter)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	var child *heldChild
	all := wantsAll(want)
	if len(command) > 0 {
		if child, err = startHeld(command); err != nil {
			return err
		}
		defer child.abandon()
		want.PIDs, want.Tree = append(want.PIDs, uint32(child.pid())), true
	}
	p, err := probe.Open(probe.Options{Filter: want.Filter, RingBytes: l.ring, Classic: l.classic, NoStorage: l.noStore, NoTrampolines: l.noTramp})
	if err != nil {
		return err
	}
	defer p.Close()
	if p.Partial() {
		want.Tree = false // the classic program neither filters nor knows children
	}
	options := tableOptions(p)
	options.MaxConns = l.maxConns
	loop := &agent.Loop{Source: p, Now: probe.Now, Snapshot: p.Snapshot, SnapshotEvery: snapshotEvery}
	loop.Learn = who.Learn
	if record != "" {
		if loop.Record, err = recording.Create(record, header(host, options, want)); err != nil {
			return err
		}
	}
	if trace.Out == nil {
		trace.Out = render.New(discard{}, render.Options{})
	}
	loop.Consumer = trace
	loop.Table = lifecycle.New(trace, options)
	trace.Table = loop.Table
	if text := blind(p.Hooks()); text != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "stated: %s (see 'stated check')\n", text)
	}
	if l.span > 0 {
		ctx, cancel = context.WithTimeout(ctx, l.span)
		defer cancel()
	}
	childDone := make(chan error, 1)
	if child != nil {
		child.release()
		go func() {
			err := child.wait()
			time.Sleep(100 * time.Millisecond) // its last events are on their way
			cancel()
			childDone <- err
		}()
	} else {
		fmt.Fprintln(cmd.ErrOrStderr(), "stated: watching, Ctrl-C ends")
	}
	err = loop.Run(ctx)
	if loop.Record != nil {
		err = errors.Join(err, loop.Record.Close())
	}
	stats := report(cmd, p, loop, trace)
	if child != nil && all && stats.Lost == 0 && none(&stats) {
		fmt.Fprintln(cmd.ErrOrStderr(), "stated: the command made no TCP connection that got as far as SYN_SENT")
	}
	if child != nil && err == nil {
		err = <-childDone
	}
	return err
}

// wantsAll reports whether no condition was given.
func wantsAll(want *filter.Filter) bool {
	text, err := json.Marshal(want)
	return err == nil && string(text) == "{}"
}

// none reports whether there was no connection that was wanted.
func none(s *lifecycle.Stats) bool {
	return s.Open+s.Held+s.Lingering == 0 && s.Outcomes == [lifecycle.NumOutcomes]uint64{}
}

// report is the last word, on stderr. It returns the counts that it tells.
func report(cmd *cobra.Command, p *probe.Probe, loop *agent.Loop, trace *agent.Trace) lifecycle.Stats {
	w := cmd.ErrOrStderr()
	if err := loop.SnapshotErr(); err != nil {
		fmt.Fprintf(w, "stated: not all sockets that were there before could be listed: %s\n", firstLine(err))
	}
	totals := trace.Totals()
	if kernel, err := p.Stats(); err == nil {
		totals.Lost = max(totals.Lost, kernel.Lost)
		if kernel.Skipped > 0 {
			fmt.Fprintf(w, "stated: the kernel skipped %d runs of our programs, each of which may be an event that is missing\n", kernel.Skipped)
		}
		if kernel.StorageFailed > 0 {
			fmt.Fprintf(w, "stated: the kernel had no memory to remember %d sockets; their owners may be missing\n", kernel.StorageFailed)
		}
	}
	render.Summary(w, totals, &trace.Slow)
	return totals.Stats
}

func newReplay() *cobra.Command {
	var f filterFlags
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "replay [flags] FILE",
		Short: "Show a recording as trace would have shown it",
		Long: `replay reads what 'stated record' or 'stated trace --record' wrote, - being
standard input, and shows what trace showed then: the conditions of the
recording hold, those given here as well. It needs no privilege. Of a damaged
recording it shows what can be read, and exits with 1.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := f.parse()
			if err != nil {
				return err
			}
			return replay(cmd, args[0], want, &o)
		},
	}
	f.register(cmd)
	o.register(cmd)
	return cmd
}

func replay(cmd *cobra.Command, path string, want *filter.Filter, o *outputFlags) error {
	in := cmd.InOrStdin()
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("open the recording: %w", err)
		}
		defer file.Close()
		in = file
	}
	rec, err := recording.NewReader(in)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	h := rec.Header()
	opts, err := o.parse(render.Host{RunID: h.RunID, BootID: h.BootID, Name: h.Host, ID: h.HostID, Version: h.Version}, cmd.OutOrStdout())
	if err != nil {
		return err
	}
	if want.Also, err = wanted(path, &h); err != nil {
		return err
	}
	who := agent.NewProcesses(proc.New(proc.Options{Recorded: true}), nil)
	opts.Processes = who.Of
	trace := &agent.Trace{Out: render.New(cmd.OutOrStdout(), opts), Filter: want, Events: o.events, Count: o.count, OpenAfter: int64(o.openAfter)}
	table := lifecycle.New(trace, lifecycle.Options{NoDestroy: h.NoDestroy, NoResets: h.NoResets, SeesTimeWait: h.SeesTimeWait})
	trace.Table = table
	err = (&agent.Loop{Source: rec, Table: table, Consumer: trace, Learn: who.Learn}).Run(cmd.Context())
	render.Summary(cmd.ErrOrStderr(), trace.Totals(), &trace.Slow)
	return errors.Join(err, damaged(rec.Damage()))
}

// wanted is which connections a recording was made of; nil all.
func wanted(path string, h *recording.Header) (*filter.Filter, error) {
	if h.Filter == nil {
		return nil, nil
	}
	f := new(filter.Filter)
	if err := json.Unmarshal(h.Filter, f); err != nil {
		return nil, fmt.Errorf("%s: which connections were wanted: %w", path, err)
	}
	return f, nil
}

// damaged says what a recording has lost, nil for nothing.
func damaged(d recording.Damage) error {
	var parts []string
	if d.BadBlocks > 0 || d.LostEvents > 0 {
		parts = append(parts, fmt.Sprintf("%d events lost in %d bad blocks", d.LostEvents, d.BadBlocks))
	}
	switch {
	case d.TornBytes == 0:
	case d.TornLines > 0:
		parts = append(parts, fmt.Sprintf("the last %d bytes are no whole block, with at least %d events", d.TornBytes, d.TornLines))
	default:
		parts = append(parts, fmt.Sprintf("the last %d bytes are no whole block, with how many events is not known", d.TornBytes))
	}
	if parts == nil {
		return nil
	}
	return fmt.Errorf("the recording is damaged: %s", strings.Join(parts, "; "))
}

// numbered says where processes have other numbers in what is shown than here, and
// refuses where the kernel is to follow some by their number here.
func numbered(cmd *cobra.Command, byPID bool) error {
	err := probe.InnerPIDs()
	switch {
	case err == nil:
		return nil
	case byPID:
		return &probe.UnusableError{Reason: "neither --pid nor a command can be followed: " + err.Error(), Err: err}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "stated: %v, which are shown\n", err)
	return nil
}

// blind is what makes owners less known than this kernel allows. That
// trampolines are refused is no such: 'stated check' is for what a kernel lacks.
func blind(hooks []probe.HookStatus) (text string) {
	for _, h := range lacking(hooks) {
		if h.Tier == probe.TierCore {
			return "states and addresses only: " + firstLine(h.Err)
		}
		if strings.HasPrefix(h.Name, "tracepoint syscalls/") && !h.Unused { // accept() and accept4() fail alike
			text = "accept() is not seen: " + h.Without
		}
	}
	return text
}

// tableOptions is what the table must know of the probe's blind spots.
func tableOptions(p *probe.Probe) (o lifecycle.Options) {
	o.SeesTimeWait = p.SeesTimeWait()
	for _, h := range p.Hooks() {
		switch {
		case h.Err == nil:
		case strings.HasSuffix(h.Name, "tcp_destroy_sock"):
			o.NoDestroy = true
		case strings.HasSuffix(h.Name, "tcp_receive_reset"):
			o.NoResets = true
		}
	}
	return o
}

func header(h render.Host, o lifecycle.Options, want *filter.Filter) recording.Header {
	wanted, err := json.Marshal(want)
	if err != nil || wantsAll(want) {
		wanted = nil // none of its fields can fail
	}
	return recording.Header{RunID: h.RunID, BootID: h.BootID, Host: h.Name, HostID: h.ID, Version: h.Version,
		Kernel: kernelRelease(), NoDestroy: o.NoDestroy, NoResets: o.NoResets, SeesTimeWait: o.SeesTimeWait, Filter: wanted}
}

func thisHost() render.Host {
	read := func(path string) string {
		text, _ := os.ReadFile(path) // absent is unknown
		return string(bytes.TrimSpace(text))
	}
	name, _ := os.Hostname()
	h := render.Host{Name: name, ID: read("/etc/machine-id"), BootID: read("/proc/sys/kernel/random/boot_id"), Version: buildVersion()}
	if id, err := uuid.NewV7(); err == nil {
		h.RunID = id.String()
	}
	return h
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

// discard is where nothing is shown.
type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
