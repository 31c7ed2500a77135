// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/explain"
)

func newExplain() *cobra.Command {
	var names string
	var o onlooker
	cmd := &cobra.Command{
		Use:   "explain [STATE | PID | PID/FD | ADDR:PORT | :PORT]",
		Short: "Say what a TCP state means, or what a process or a socket is doing",
		Long: `explain says what a TCP state means and what to do, and without a state shows
how they follow each other. That needs no privilege.

Of a process, one of its descriptors, or an address with port (ours or the
peer's; IPv6 in brackets; :PORT is that port of any address) it tells the story
as it is now, in sentences: which sockets there are, since when, who holds them,
who waits on them, what is stuck and why, and what to look for next. A number
alone is a process.`,
		Example: `  stated explain CLOSE_WAIT
  stated explain fin-wait-2
  sudo stated explain 4242
  sudo stated explain 4242/87
  sudo stated explain 10.0.0.5:8080
  sudo stated explain '[2001:db8::1]:443'
  sudo stated explain :8080
  stated explain`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			naming, err := event.ParseNaming(names)
			if err != nil {
				return usagef("--names: %w", err)
			}
			out := cmd.OutOrStdout()
			if len(args) == 0 {
				if _, err := fmt.Fprintln(out, explain.Diagram()); err != nil {
					return err
				}
				return explain.Names(out)
			}
			if subject, err := parseSubject(args[0]); err != nil {
				return err
			} else if subject != nil {
				o.names = naming
				return o.explain(cmd, subject)
			}
			set, err := event.ParseStates(args[0])
			if err != nil {
				return usageError{err}
			}
			for i, s := range set.States() {
				if i > 0 {
					fmt.Fprintln(out)
				}
				if err := explain.State(out, s, naming); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&o.minAge, "min-age", 30*time.Second, "of sockets: stuck is what stays in its state for this `TIME`")
	cmd.Flags().IntVar(&o.examples, "examples", 3, "of sockets: tell all of `N`")
	registerClassic(cmd, &o.classic)
	cmd.Flags().StringVar(&names, "names", "kernel", "spell states like `SYSTEM`: kernel, ss, rfc, bsd, windows, solaris, otel")
	return cmd
}
