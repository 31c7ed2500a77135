// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
)

func newCheck() *cobra.Command {
	var classic bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what this kernel and these privileges allow",
		Long: `check loads and attaches every program once and says, for each hook of the
kernel, whether it can be used, what it costs besides the connections that are
told of, what is lost without it and how to get it.
It exits with 0 if stated can work, and with 3 if it cannot.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// a filter that needs every hook, for a process that cannot be
			p, err := probe.Open(probe.Options{Classic: classic, Filter: event.Filter{PIDs: []uint32{1 << 31}, Tree: true}})
			if err != nil {
				return err
			}
			defer p.Close()
			out := cmd.OutOrStdout()
			for _, tier := range []probe.Tier{probe.TierCore, probe.TierCauses, probe.TierScan, probe.TierTrampolines} {
				showTier(out, tier, p.Hooks())
			}
			if err := probe.InnerPIDs(); err != nil {
				fmt.Fprintln(out, err)
			}
			verdict := "stated can work here"
			if p.Partial() {
				verdict = "stated can work here: changes with states and addresses only, snapshots by sock_diag"
			}
			_, err = fmt.Fprintln(out, verdict)
			return err
		},
	}
	cmd.Flags().BoolVar(&classic, "classic", false, "say what kernels without BTF allow")
	return cmd
}

// showTier says what each hook of a tier gives and what it costs others, or what is
// lost without it, and once for all of them why, and how to get them.
func showTier(out io.Writer, tier probe.Tier, hooks []probe.HookStatus) {
	var why, needs []string
	note := func(list *[]string, text string) {
		if !slices.Contains(*list, text) {
			*list = append(*list, text)
		}
	}
	fmt.Fprintf(out, "%s\n", tier)
	missing := lacking(hooks)
	for _, h := range hooks {
		switch {
		case h.Tier != tier, h.Unused: // another row does it better
		case h.Err != nil && !slices.ContainsFunc(missing, func(m probe.HookStatus) bool { return m.Program == h.Program }):
		case h.Err == nil:
			fmt.Fprintf(out, "  ok       %s\n           gives: %s\n", h.Name, h.Buys)
			if h.Costs != "" {
				fmt.Fprintf(out, "           costs: %s\n", h.Costs)
			}
		default:
			fmt.Fprintf(out, "  missing  %s\n           without it: %s\n", h.Name, h.Without)
			note(&why, obstacle(h.Err))
			note(&needs, h.Needs)
		}
	}
	for _, text := range why {
		fmt.Fprintf(out, "  why: %s\n", text)
	}
	for _, text := range needs {
		fmt.Fprintf(out, "  it needs: %s\n", text)
	}
}

// lacking are the hooks that cannot be used. Where a function has other arguments on
// other kernels, a hook has several programs, of which one is enough; of those that
// all fail it is the last that counts.
func lacking(hooks []probe.HookStatus) (missing []probe.HookStatus) {
	for i, h := range hooks {
		same := func(o probe.HookStatus) bool { return o.Name == h.Name && o.Without == h.Without }
		another := slices.ContainsFunc(hooks[i+1:], same) || slices.ContainsFunc(hooks[:i], func(o probe.HookStatus) bool { return same(o) && o.Err == nil })
		if h.Err != nil && !another {
			missing = append(missing, h)
		}
	}
	return missing
}

// obstacle is why a hook does not work, for a person.
func obstacle(err error) string {
	if errors.Is(err, unix.EPERM) {
		return "the kernel refuses such programs (operation not permitted)"
	}
	return firstLine(err)
}
