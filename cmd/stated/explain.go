// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/explain"
)

func newExplain() *cobra.Command {
	var names string
	cmd := &cobra.Command{
		Use:   "explain [STATE]",
		Short: "Say what a TCP state means and what to do; without a state, show the diagram",
		Example: `  stated explain CLOSE_WAIT
  stated explain fin-wait-2
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
	cmd.Flags().StringVar(&names, "names", "kernel", "spell states like `SYSTEM`: kernel, ss, rfc, bsd, windows, solaris, otel")
	return cmd
}
