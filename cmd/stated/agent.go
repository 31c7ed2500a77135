// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/agent"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/metrics"
	"github.com/stated-tcp/stated/pkg/probe"
	"github.com/stated-tcp/stated/pkg/render"
)

type agentFlags struct {
	config string
	check  bool
	set    []string
}

// agentName is of the one command that SIGHUP does not end.
const agentName = "agent"

func newAgent() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   agentName + " [flags]",
		Short: "Run for months: stream records to collectors through a spool on disk",
		Long: `agent makes a record of each connection that ends and, where a sink asks for
them, of each change of state. Records go to a spool on disk and from there to
each sink at its own pace, at least once: a collector that is down, or a restart,
loses nothing that has reached the spool. What was lost before is counted, in
records of its own.

SIGHUP applies the filter and the sinks of the configuration anew, and has file
sinks open their files anew. SIGTERM ends: sinks get what is there within the
time that 'drain' gives, the rest stays in the spool for the next start.

When its hooks are attached it gives up what it does not need any more: files
that it writes have to belong to root, whatever their mode.

Each key can be set in the environment (STATED_SPOOL_DIR for spool.dir) and on
the command line (--set spool.dir=/x), which goes over both.`,
		Example: `  sudo stated agent --config /etc/stated/stated.yaml
  stated agent --config stated.yaml --check-config
  sudo stated agent --set spool.dir=/tmp/spool --set 'sinks=[{name: out, stdout: {}}]'`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.config, "config", "", "read this `FILE`")
	fs.BoolVar(&f.check, "check-config", false, "say whether the configuration is right, and end")
	fs.StringArrayVar(&f.set, "set", nil, "set `KEY=VALUE` over the file and the environment; may be repeated")
	return cmd
}

// load reads the configuration as it is now.
func (f *agentFlags) load() (*agent.Config, *filter.Filter, error) {
	var text []byte
	name := "configuration"
	if f.config != "" {
		var err error
		if text, err = os.ReadFile(f.config); err != nil {
			return nil, nil, fmt.Errorf("read the configuration: %w", err)
		}
		name = f.config
	}
	cfg, err := agent.LoadConfig(text, os.Environ(), f.set)
	if err == nil && cfg.Listen != "" {
		err = metrics.CheckAddress(cfg.Listen)
	}
	if err != nil {
		return nil, nil, wrong(name, err, err)
	}
	c := &cfg.Filter
	flags := filterFlags{pids: c.PIDs, ports: c.Ports, local: c.LocalPorts, remote: c.RemotePorts, comms: c.Processes,
		addrs: c.Addresses, roles: c.Roles, states: c.States, netns: c.Netns, minDuration: c.MinDuration}
	want, err := flags.parse()
	if err != nil {
		return nil, nil, wrong(name+": filter", errors.New(strings.TrimPrefix(err.Error(), "--")), err)
	}
	if !c.Own {
		want.NotPID = uint32(os.Getpid())
	}
	return cfg, want, nil
}

// wrong says that err makes the configuration wrong. Nobody needs to start again
// with it, unless its cause is a file that cannot be read: that may come yet.
func wrong(where string, err, cause error) error {
	var file *fs.PathError
	if errors.As(cause, &file) {
		return fmt.Errorf("%s: %w", where, err)
	}
	return usagef("%s: %w", where, err)
}

func sinksOf(cfg *agent.Config) string {
	switch n := len(cfg.Sinks); n {
	case 0:
		return "no sinks, so records are kept in the spool and go nowhere"
	case 1:
		return "1 sink"
	default:
		return fmt.Sprintf("%d sinks", n)
	}
}

func (f *agentFlags) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	cfg, want, err := f.load()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	if ignored := agent.Ignored(os.Environ()); len(ignored) > 0 {
		log.Warn("variables of the environment that set nothing are ignored", "names", strings.Join(ignored, ", "))
	}
	if f.check {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "the configuration is right: %s\n", sinksOf(cfg))
		return err
	}

	p, err := probe.Open(probe.Options{RingBytes: cfg.RingBytes})
	if err != nil {
		return err
	}
	defer p.Close()
	if err := agent.DropPrivileges(); err != nil {
		log.Warn("privileges that are not needed any more cannot be dropped", "error", err)
	}
	if err := probe.InnerPIDs(); err != nil {
		log.Warn("the records have numbers of processes that are not those of /proc here", "why", err)
	}
	host := thisHost()
	d, err := agent.StartDaemon(cfg, host, want, log)
	if err != nil {
		return err
	}
	options := tableOptions(p)
	options.MaxConns = cfg.MaxConnections
	table := lifecycle.New(d.Stream, options)
	loop := &agent.Loop{Source: p, Table: table, Consumer: d.Stream, Now: probe.Now, Learn: d.Processes.Learn,
		Snapshot: p.Snapshot, SnapshotEvery: snapshotEvery, Late: func() {
			log.Warn("a snapshot of all sockets does not end, and until it does losses are not repaired: some process may hold the lock of a socket")
		}}
	if stopServing, err := serve(cfg, p, d, loop, options.MaxConns); err != nil {
		return errors.Join(err, d.Close())
	} else if stopServing != nil {
		defer stopServing()
	}
	var missing []string
	for _, h := range lacking(p.Hooks()) {
		missing = append(missing, h.Name)
	}
	if len(missing) > 0 {
		log.Warn("some hooks of the kernel cannot be used: 'stated check' says why and what is lost", "hooks", strings.Join(missing, ", "))
	}
	if cfg.Leaks.Every > 0 {
		inspector, err := p.Inspector()
		if err != nil {
			log.Warn("leaks cannot be looked for", "why", firstLine(err))
		} else {
			defer inspector.Close()
			if why := inspector.Limited(); why != nil {
				log.Info("leaks are looked for by sock_diag, which does not know since when a connection in CLOSE has ended", "why", firstLine(why))
			}
			d.LookForLeaks(&agent.Leaks{
				Inspector: inspector, Rules: leak.Rules{MinAge: int64(cfg.Leaks.MinAge), States: leak.DefaultStates},
				By: leak.ByProcess, Filter: want, Now: probe.Now, Table: table, Every: cfg.Leaks.Every,
			}, described(d.Processes))
		}
	}
	go d.Watch(ctx)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				f.reload(d, log)
			}
		}
	}()
	if len(cfg.Sinks) == 0 {
		log.Warn("there are no sinks: records are kept in the spool and go nowhere")
	}
	log.Info("watching", "sinks", len(cfg.Sinks), "spool", cfg.Spool.Dir, "run", host.RunID)
	err = d.Run(ctx, loop)
	if snapshotErr := loop.SnapshotErr(); snapshotErr != nil {
		log.Warn("not all sockets that were there before could be listed", "why", firstLine(snapshotErr))
	}
	if kernel, statsErr := p.Stats(); statsErr == nil {
		log.Info("stopped", "events", kernel.Attempts, "lost", kernel.Lost)
	}
	return err
}

// described looks up what a leak's record says of a process.
func described(by *agent.Processes) func(event.Task) render.Process {
	p := &processes{Processes: by}
	return func(t event.Task) render.Process {
		p.forget()
		return p.withDescriptors(t)
	}
}

// serve counts, and answers on cfg.Listen; where that is empty it does neither.
func serve(cfg *agent.Config, p *probe.Probe, d *agent.Daemon, loop *agent.Loop, limit int) (stop func() error, err error) {
	if cfg.Listen == "" {
		return nil, nil
	}
	views := metrics.NewViews(loop.Table)
	m := metrics.New(metrics.Sources{Version: buildVersion(), Views: views, TableLimit: limit,
		Kernel: p.Stats, Misses: d.Processes.Misses, Spool: d.SpoolStats, SpoolOldest: d.SpoolOldest, SpoolLimit: cfg.Spool.MaxBytes, SpoolLost: d.SpoolLost, Sinks: d.SinkStats})
	d.Stream.Also, d.Stream.OnIdle = m, views.Idle
	d.Measure(m)
	loop.Snapshotted = m.Snapshotted
	return metrics.Serve(cfg.Listen, m, func() error { return d.Alive(30 * time.Second) }, d.Ready)
}

func (f *agentFlags) reload(d *agent.Daemon, log *slog.Logger) {
	agent.Notify("RELOADING=1") // best effort: systemd only shows it
	defer agent.Notify("READY=1")
	cfg, want, err := f.load()
	if err != nil {
		log.Error("the new configuration is wrong: the old one goes on", "error", err)
		return
	}
	restart, err := d.Reload(cfg, want)
	if len(restart) > 0 {
		log.Warn("some keys need a restart", "keys", strings.Join(restart, ", "))
	}
	if err != nil {
		log.Error("not all of the new configuration could be applied: what could not goes on as it was", "error", err)
		return
	}
	log.Info("configuration applied", "sinks", len(cfg.Sinks))
}
