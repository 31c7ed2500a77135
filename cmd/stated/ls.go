// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/agent"
	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/render"
)

// orders are the values of ls --sort.
var orders = map[string]func(a, b *census.Socket) int{
	"state": func(a, b *census.Socket) int {
		return cmp.Or(rank(a.New)-rank(b.New), cmp.Compare(a.Netns, b.Netns), a.Local.Compare(b.Local), a.Peer.Compare(b.Peer))
	},
	"age": func(a, b *census.Socket) int { return cmp.Compare(b.Age.Min, a.Age.Min) },
	"local": func(a, b *census.Socket) int {
		return cmp.Or(cmp.Compare(a.Netns, b.Netns), a.Local.Compare(b.Local), a.Peer.Compare(b.Peer))
	},
	"pid": func(a, b *census.Socket) int {
		return cmp.Or(cmp.Compare(firstPID(a), firstPID(b)), a.Local.Compare(b.Local), a.Peer.Compare(b.Peer))
	},
}

// rank puts listeners first.
func rank(s event.State) int {
	if s == event.StateListen {
		return -1
	}
	return int(s)
}

func firstPID(s *census.Socket) uint32 {
	if len(s.Holders) == 0 {
		return 0
	}
	return s.Holders[0].PID
}

func newLs() *cobra.Command {
	var f filterFlags
	var out outputFlags
	var order string
	var all, classic bool
	cmd := &cobra.Command{
		Use:   "ls [flags]",
		Short: "List the TCP sockets of this host: state, age, queues, owner",
		Long: `ls lists every TCP socket of this host, in all network namespaces: its state
and for how long, its queues, its ends, and the processes that hold it. Of
those in TIME_WAIT, which belong to the kernel alone, it gives the number.

Ages come from the last segment that came or went, so most are lower bounds:
≥ at least, ~ inferred, ? unknown. RECV-Q is what the process has not read (of
a listener: connections waiting for accept), SEND-Q what was not sent yet or
not acknowledged (of a listener: its backlog; one more may wait), in bytes of
payload: ss counts SYN and FIN as one more. CLOSE is a connection that has ended
while its descriptor is open. Of MPTCP, the connection has a line, and each of
its subflows another: the state of the connection is what its process sees.

Marks: → we called, ← they called, ~ inferred from the listeners that are there;
netns: it is in this network namespace, which is not the one that ls runs in.`,
		Example: `  sudo stated ls
  sudo stated ls --state ESTABLISHED --sort age
  sudo stated ls --pid 4242 -o wide`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := f.parse()
			if err != nil {
				return err
			}
			compare := orders[order]
			if compare == nil {
				return usagef("--sort %q: one of state, age, local, pid", order)
			}
			states, err := lookedAt(want.States)
			if err != nil {
				return err
			}
			if want.States = 0; states == 0 {
				states = event.AllStates
			} else {
				all = true
			}
			opts, err := out.parse(thisHost(), cmd.OutOrStdout())
			if err != nil {
				return err
			}
			inspector, err := openInspector(cmd, classic)
			if err != nil {
				return err
			}
			defer inspector.Close()
			if err := findNetns(inspector, want.Netns); err != nil {
				return err
			}
			now, _ := probe.Now()
			c, lookErr := agent.Look(inspector, states, now, nil)
			if lookErr != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "stated: not all could be looked at: %s\n", firstLine(lookErr))
			}
			least := int64(want.MinDuration)
			want.MinDuration = 0
			c.Drop(func(s *census.Socket) bool {
				return !states.Has(s.New) || s.New == event.StateClose && !s.Hidden() || s.Age.Min < least || !want.Socket(s)
			})
			if n := len(c.Sockets); !all {
				c.Drop(func(s *census.Socket) bool { return s.New == event.StateTimeWait })
				if n -= len(c.Sockets); n > 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "stated: %d more in TIME_WAIT: --all shows them\n", n)
				}
			}
			slices.SortStableFunc(c.Sockets, compare)
			processes := newProcesses(proc.Options{Cmdline: out.cmdline}, nil)
			opts.Netns = processes.here()
			w := render.New(cmd.OutOrStdout(), opts)
			w.SetClock(probe.Now())
			w.Sockets(c, processes.of)
			return w.Flush()
		},
	}
	f.register(cmd)
	cmd.Flags().Lookup("state").Usage = "in one of these `STATES`, in any spelling"
	cmd.Flags().Lookup("min-duration").Usage = "in its state for at least this `TIME`"
	out.registerFormat(cmd)
	out.registerCmdline(cmd, true)
	registerClassic(cmd, &classic)
	cmd.Flags().BoolVar(&all, "all", false, "also what is in TIME_WAIT")
	cmd.Flags().StringVar(&order, "sort", "state", "`ORDER`: state, age (oldest first), local, pid")
	return cmd
}
