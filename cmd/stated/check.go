// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
)

func newCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say what this kernel and these privileges allow",
		Long: `check loads and attaches every program once and says, for each hook of the
kernel, whether it can be used, what is lost without it and how to get it.
It exits with 0 if stated can work, and with 3 if it cannot.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// a filter that needs every hook, for a process that cannot be
			p, err := probe.Open(probe.Options{Filter: event.Filter{PIDs: []uint32{1 << 31}, Tree: true}})
			if err != nil {
				return err
			}
			defer p.Close()
			out := cmd.OutOrStdout()
			for _, h := range p.Hooks() {
				if h.Unused {
					continue // another row does it better
				}
				if h.Err == nil {
					fmt.Fprintf(out, "ok       %s\n         gives: %s\n", h.Name, h.Buys)
					continue
				}
				reason, _, _ := strings.Cut(h.Err.Error(), "\n")
				fmt.Fprintf(out, "missing  %s\n         why: %s\n         without it: %s\n         needs: %s\n", h.Name, reason, h.Without, h.Needs)
			}
			verdict := "stated can work here"
			if p.Partial() {
				verdict = "stated can work here, with states and addresses only"
			}
			_, err = fmt.Fprintln(out, verdict)
			return err
		},
	}
}
