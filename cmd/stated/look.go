// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
)

// lookedAt are the states to look at where these are asked for. What the kernel
// calls NEW_SYN_RECV is shown as SYN_RECV. A socket that is bound and does nothing
// is in CLOSE for who looks, and never was a connection.
func lookedAt(states event.StateSet) (event.StateSet, error) {
	if states.Has(event.StateBoundInactive) && !states.Has(event.StateClose) {
		return 0, usagef("--state %v: sockets that are only bound are not listed; 'stated explain PID' counts those of a process, as not connected", event.StateBoundInactive)
	}
	if states.Has(event.StateNewSynRecv) {
		states = states.Add(event.StateSynRecv)
	}
	return states, nil
}

// openInspector looks by iterators, or by sock_diag where there are none.
func openInspector(cmd *cobra.Command, classic bool) (*probe.Inspector, error) {
	if classic {
		return noteLimits(cmd, probe.OpenSockDiag()), nil
	}
	in, err := probe.OpenInspector()
	if err != nil {
		return nil, err
	}
	return noteLimits(cmd, in), nil
}

// noteLimits says what cannot be known.
func noteLimits(cmd *cobra.Command, in *probe.Inspector) *probe.Inspector {
	if why := in.Limited(); why != nil {
		unseen := ""
		if probe.InnerPIDs() != nil {
			unseen = "processes outside of the PID namespace, "
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "stated: looking by sock_diag and /proc (%s): not known are %serrors of sockets, who waits on them, "+
			"what else keeps them open, since when one is in CLOSE, and of MPTCP more than the subflows\n", firstLine(why), unseen)
	}
	return in
}

// findNetns tells when there is no network namespace of a number that was given.
func findNetns(in *probe.Inspector, netns uint32) error {
	if netns == 0 || in.Netns(netns) {
		return nil
	}
	return fmt.Errorf("--netns %d: no process, name or descriptor leads to a network namespace with this number", netns)
}

// registerClassic adds the flag of commands that look at what is there.
func registerClassic(cmd *cobra.Command, classic *bool) {
	cmd.Flags().BoolVar(classic, "classic", false, "look by sock_diag and /proc, as on kernels without BTF")
}
