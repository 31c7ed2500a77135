// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// needed are the capabilities that a running agent uses (capabilities(7)).
// Hooks that are attached need none.
var needed = []cap.Value{
	cap.BPF, cap.PERFMON, // iterators over sockets: snapshots, leaks
	cap.SYS_ADMIN,                       // setns(2) into other network namespaces
	cap.NET_ADMIN,                       // SIOCGSKNS: the namespace of a socket that alone keeps it
	cap.SYS_PTRACE, cap.DAC_READ_SEARCH, // /proc of all processes, files with credentials
}

// DropPrivileges gives up for good, on all threads, what a running agent does
// not need: capabilities, and gaining any by execve(2). To be called when the
// hooks are attached, and before sinks are opened, so that files it may not
// write are errors at the start. On an error some may have been given up.
func DropPrivileges() error {
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	has := cap.GetProc()
	keep, bound := cap.NewSet(), cap.NewIAB()
	canBound, err := has.GetFlag(cap.Effective, cap.SETPCAP)
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for c := range cap.MaxBits() {
		if !slices.Contains(needed, c) {
			if err := bound.SetVector(cap.Bound, true, c); err != nil {
				return fmt.Errorf("lower the bounding set by %v: %w", c, err)
			}
			continue
		}
		if on, err := has.GetFlag(cap.Permitted, c); err != nil || !on {
			continue
		}
		if err := keep.SetFlag(cap.Permitted, true, c); err != nil {
			return fmt.Errorf("keep %v: %w", c, err)
		}
		if err := keep.SetFlag(cap.Effective, true, c); err != nil {
			return fmt.Errorf("keep %v: %w", c, err)
		}
	}
	if canBound { // else whoever started it has chosen, as systemd does
		if err := bound.SetProc(); err != nil {
			return fmt.Errorf("lower the bounding set: %w", err)
		}
	}
	if err := keep.SetProc(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
