// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Tier is how much stands or falls with a hook.
type Tier string

// Tiers, from the one that is needed to those that add.
const (
	TierCore   Tier = "core"   // transitions; without it nothing works
	TierCauses Tier = "causes" // why and by whom
	TierScan   Tier = "scan"   // what was there before us
	// TierTrampolines is fentry and fexit, which hardened kernels refuse.
	TierTrampolines Tier = "trampolines"
)

// Hook is a place in the kernel where one of our programs can stand.
type Hook struct {
	Name    string // as the kernel calls it
	Program string // in bpf/stated.bpf.c
	Tier    Tier
	Buys    string // what it adds
	Without string // what is done or lost without it
	Needs   string // how to get it
	Costs   string // what it costs besides its runs for the connections that we tell of; measured by .ci/bench

	tracepoint [2]string // group and name of a classic tracepoint
	iterator   bool
	wanted     func(*Options) bool // nil: always
	params     []string            // of the function at a trampoline, the first of them, by name
	byCookie   bool                // useless where sockets have numbers of our own
	insteadOf  string              // a program that is better
	onlyWith   string              // a program without which this one tells wrong
}

// hooks is the list of all that we attach to, in order: causes before the
// core, so that no end is seen without its cause.
var hooks = append([]Hook{
	{
		Name: "tp_btf tcp_destroy_sock", Program: bpfProgStDestroySock, Tier: TierCauses,
		Buys:    "descriptors that stay open after the connection has ended",
		Without: "a connection is forgotten when it ends",
		Needs:   "kernel 5.5 with CONFIG_DEBUG_INFO_BTF",
	},
	{
		Name: "tp_btf tcp_destroy_sock, again", Program: bpfProgStDeadAgain, Tier: TierCauses,
		Buys:     "the same, where the kernel skips the first, as it runs on that CPU already",
		Without:  "a connection that has ended may keep its descriptor, as it seems, when that was closed",
		Needs:    "kernel 6.1 with CONFIG_DEBUG_INFO_BTF; older ones do not need it",
		onlyWith: bpfProgStDestroySock,
		wanted:   func(*Options) bool { return !olderThan(kernelRelease(), 6, 1) },
	},
	{
		Name: "tp_btf tcp_receive_reset", Program: bpfProgStRecvReset, Tier: TierCauses,
		Buys:    "resets by the peer, told from errors",
		Without: "inferred from the socket's error",
		Needs:   "kernel 5.5 with CONFIG_DEBUG_INFO_BTF",
	},
	{
		Name: "tp_btf tcp_send_reset", Program: bpfProgStSendReset, Tier: TierCauses,
		Buys:    "resets by us; with their reason since 6.10",
		Without: "an abort by us is told by its state only",
		Needs:   "kernel 5.5 with CONFIG_DEBUG_INFO_BTF; 6.10 for reasons",
	},
	{
		Name: "tp_btf sched_process_fork", Program: bpfProgStFork, Tier: TierCauses,
		Buys:    "following the children of a command (trace -- CMD)",
		Without: "only the command itself is followed",
		Needs:   "kernel 5.5 with CONFIG_DEBUG_INFO_BTF",
		wanted:  func(o *Options) bool { return o.Filter.Tree },
	},
	{
		Name: "tp_btf sched_process_exit", Program: bpfProgStExit, Tier: TierCauses,
		Buys:    "forgetting the children of a command when they end",
		Without: "a process id used again would be taken for a child",
		Needs:   "kernel 5.5 with CONFIG_DEBUG_INFO_BTF",
		wanted:  func(o *Options) bool { return o.Filter.Tree },
	},
	{
		Name: "tp_btf sched_process_exec", Program: bpfProgStExec, Tier: TierCauses,
		Buys:    "the program of a process that begins another one with its sockets",
		Without: "the program is told at the next event, or not if the process exits before",
		Needs:   "kernel 5.5 with CONFIG_DEBUG_INFO_BTF",
	},
	{
		Name: "iter/tcp", Program: bpfProgStIterTcp, Tier: TierScan,
		Buys:     "sockets that were there before stated began",
		Without:  "a connection is known from its next transition on",
		Needs:    "kernel 5.9 with CONFIG_DEBUG_INFO_BTF",
		iterator: true,
	},
	{
		Name: "iter/task_file", Program: bpfProgStIterFile, Tier: TierScan,
		Buys:     "who holds the sockets that were there before stated began",
		Without:  "their owner is unknown until they are closed",
		Needs:    "kernel 5.11 with CONFIG_DEBUG_INFO_BTF",
		iterator: true,
	},
	{
		Name: "iter/task", Program: bpfProgStNetnsTask, Tier: TierScan,
		Buys:     "network namespaces that a single thread lives in, without reading /proc of all threads",
		Without:  "the threads are read from /proc",
		Needs:    "kernel 5.8 with CONFIG_DEBUG_INFO_BTF",
		iterator: true,
	},
	{
		Name: "iter/task_file for namespaces", Program: bpfProgStNetnsFile, Tier: TierScan,
		Buys:     "network namespaces that only a descriptor or a socket keeps",
		Without:  "the sockets of such namespaces that were there before are not listed",
		Needs:    "kernel 5.8 with CONFIG_DEBUG_INFO_BTF",
		iterator: true,
	},
}, trampolines()...)

// The two ways to the one hook that is needed.
var (
	hookTyped = Hook{
		Name: "tp_btf inet_sock_set_state", Program: bpfProgStSetState, Tier: TierCore,
		Buys:    "every change of state with tuple, owner and numbers",
		Without: "states and tuples only, from the classic tracepoint",
		Needs:   "kernel 5.10 with CONFIG_DEBUG_INFO_BTF; CAP_BPF and CAP_PERFMON",
	}
	hookClassic = Hook{
		Name: "tracepoint sock/inet_sock_set_state", Program: bpfProgStSetStateTp, Tier: TierCore,
		Buys:       "every change of state with its tuple",
		Without:    "stated cannot work",
		Needs:      "kernel 5.8, tracefs at /sys/kernel/tracing, CAP_BPF and CAP_PERFMON",
		tracepoint: [2]string{"sock", "inet_sock_set_state"},
	}
)

// hooksAgain are attached behind hookTyped, and so run behind it.
var hooksAgain = []Hook{
	{
		Name: "tp_btf inet_sock_set_state, again", Program: bpfProgStStateAgain, Tier: TierCauses,
		Buys:     "changes of state for which the kernel skips the first, as it runs on that CPU already",
		Without:  "a change of state for which the kernel skips the first is missing, and counted",
		Needs:    "kernel 5.12 with CONFIG_DEBUG_INFO_BTF",
		byCookie: true,
	},
	{
		Name: "tp_btf inet_sock_set_state, once more", Program: bpfProgStStateAgain, Tier: TierCauses,
		Buys:     "changes of state for which the kernel skips both: since 7.0 a task may be preempted in one of them",
		Without:  "a change of state for which the kernel skips both is missing, and counted",
		Needs:    "kernel 7.0 with CONFIG_DEBUG_INFO_BTF; older ones do not need it",
		byCookie: true,
		wanted:   func(*Options) bool { return !olderThan(kernelRelease(), 7, 0) },
	},
}

// hookSockDiag is no program: it serves where iterators do not.
var hookSockDiag = Hook{
	Name: "sock_diag", Tier: TierScan,
	Buys:    "sockets that were there before stated began, and who holds them by /proc; not their errors, who waits on them, which are the kernel's own, nor when one in CLOSE ended",
	Without: "a connection is known from its next transition on",
	Needs:   "CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG",
}

// HookStatus is what became of a hook on this kernel.
type HookStatus struct {
	Hook
	Unused bool  // not needed for what was asked
	Err    error // nil: it works
}

// attach makes the program run at its hook. Iterators run when asked to.
func (h *Hook) attach(prog *ebpf.Program) (link.Link, error) {
	switch {
	case h.iterator:
		return link.AttachIter(link.IterOptions{Program: prog})
	case h.tracepoint[0] != "":
		l, err := link.Tracepoint(h.tracepoint[0], h.tracepoint[1], prog, nil)
		if err != nil {
			return nil, fmt.Errorf("attach to %s: %w", h.Name, err)
		}
		return l, nil
	}
	return link.AttachTracing(link.TracingOptions{Program: prog})
}
