// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"
)

const needsTrampolines = "CONFIG_DEBUG_INFO_BTF, and BPF trampolines (amd64; arm64 since 6.4), which some hardened kernels refuse"

// trampolines see what has no tracepoint: sockets that are not full sockets.
// Behind them stands what serves instead of one.
func trampolines() []Hook {
	list := []Hook{
		{
			Name: "fentry inet_csk_reqsk_queue_hash_add", Program: bpfProgStRequest, params: []string{"sk", "req"}, byCookie: true,
			Buys:    "half-open connections, and SYN_RECV from the SYN on",
			Without: "SYN_RECV is inferred from the round trip of the handshake; half-open connections are seen by snapshots only",
		},
		{
			Name: "fentry inet_csk_complete_hashdance", Program: bpfProgStComplete, params: []string{"sk", "child", "req", "own_req"}, byCookie: true,
			Buys:    "handshakes that completed, told from those that did not",
			Without: "how half-open connections end is not told",
		},
		{
			Name: "fexit __inet_csk_reqsk_queue_drop", Program: bpfProgStReqDrop, params: []string{"sk", "req", "from_timer"}, byCookie: true,
			onlyWith: bpfProgStComplete,
			Buys:     "how half-open connections end",
			Without:  "which half-open connections a timer ended is not told",
		},
		{
			Name: "fexit inet_csk_reqsk_queue_drop", Program: bpfProgStReqDropOld, params: []string{"sk", "req"}, byCookie: true,
			onlyWith: bpfProgStComplete, insteadOf: bpfProgStReqDrop,
			Buys:    "how half-open connections end, on kernels that have only this function",
			Without: "a half-open connection that does not complete is found gone by a snapshot",
		},
		{
			Name: "fentry tcp_req_err", Program: bpfProgStReqErr, params: []string{"sk", "seq", "abort"}, byCookie: true,
			Buys:    "half-open connections that an ICMP error ended",
			Without: "a half-open connection that an ICMP error ended is taken for one that was reset, or its end has no cause",
		},
		{
			Name: "fexit tcp_get_cookie_sock", Program: bpfProgStCookieTsoff, params: []string{"sk", "skb", "req", "dst", "tsoff"},
			Buys:    "connections made of a SYN cookie",
			Without: "connections made of a SYN cookie look like others",
		},
		{
			Name: "fexit tcp_get_cookie_sock", Program: bpfProgStCookie, params: []string{"sk", "skb", "req", "dst"},
			insteadOf: bpfProgStCookieTsoff,
			Buys:      "connections made of a SYN cookie, on kernels where the function has four arguments",
			Without:   "connections made of a SYN cookie look like others",
		},
		{
			Name: "fentry tcp_conn_request", Program: bpfProgStConnRequest, params: []string{"rsk_ops", "af_ops", "sk"}, byCookie: true,
			Buys:    "SYNs dropped because a listener's accept queue was full, counted",
			Without: "overflows are not told",
		},
		{
			Name: "fentry security_sock_graft", Program: bpfProgStGraft, params: []string{"sk", "parent"},
			Buys:    "the moment and the process of accept(), io_uring's included",
			Without: "accept() is told when the system call returns; a connection accepted through io_uring has the listener's owner until its process reads from it or closes it",
		},
		{
			Name: "fexit security_sock_graft", Program: bpfProgStGraftAgain, params: []string{"sk", "parent"}, onlyWith: bpfProgStGraft,
			Buys:    "the same, where the kernel skips the first, as it runs on that CPU already",
			Without: "an accept() for which the kernel skips the first is not told",
		},
		{
			Name: "fentry tcp_time_wait", Program: bpfProgStTimeWait, params: []string{"sk", "state", "timeo"}, byCookie: true,
			Buys:    "TIME_WAIT of sockets that were not met before",
			Without: "TIME_WAIT is inferred",
		},
		{
			Name: "fentry __inet_twsk_schedule", Program: bpfProgStTwSchedule, params: []string{"tw", "timeo", "rearm"}, byCookie: true,
			Buys:    "when TIME_WAIT begins, and FIN_WAIT2 without a process",
			Without: "TIME_WAIT is inferred from the last state and its fixed length, and confirmed by snapshots",
		},
		{
			Name: "fentry inet_twsk_kill", Program: bpfProgStTwKill, params: []string{"tw"}, byCookie: true,
			Buys:    "when TIME_WAIT ends",
			Without: "the end of TIME_WAIT is inferred from its fixed length of 60 s, and from snapshots",
		},
		{
			Name: "fentry inet_twsk_deschedule_put", Program: bpfProgStTwEarly, params: []string{"tw"}, byCookie: true,
			Buys:    "TIME_WAIT that ends early",
			Without: "an early end of TIME_WAIT is told by snapshots",
		},
		{
			Name: "fentry tcp_timewait_state_process", Program: bpfProgStTwSegment, params: []string{"tw", "skb", "th"}, byCookie: true,
			Buys:    "TIME_WAIT ended by a RST or a SYN of the peer",
			Without: "the end of TIME_WAIT by a RST or a SYN has no cause",
		},
		{
			Name: "fexit tcp_twsk_unique", Program: bpfProgStTwUnique, params: []string{"sk", "sktw", "twp"}, byCookie: true,
			Buys:    "TIME_WAIT ended by a connect() that takes its addresses",
			Without: "the end of TIME_WAIT by a connect() that takes its addresses has no cause",
		},
		{
			Name: "fentry tcp_abort", Program: bpfProgStAbort, params: []string{"sk", "err"}, byCookie: true,
			Buys:    "half-open connections and TIME_WAIT that ss -K ended",
			Without: "that ss -K ended a half-open connection or TIME_WAIT is not told; of other connections it is, and by whom",
		},
	}
	for i := range list {
		list[i].Tier, list[i].Needs = TierTrampolines, needsTrampolines
	}
	return append(list, withoutGraft...)
}

// withoutGraft are hooks for what fentry security_sock_graft sees where it works. The
// kernel makes all system calls dearer while anybody stands at a tracepoint of one
// (syscall_regfunc in kernel/tracepoint.c), and no other tracepoint is in accept().
var withoutGraft = []Hook{
	{
		Name: "tracepoint syscalls/sys_exit_accept4", Program: bpfProgStAccept4, Tier: TierCauses, insteadOf: bpfProgStGraft,
		Buys:       "the process that accepted a connection",
		Without:    "an accepted connection has the listener's owner until its process reads from it or closes it",
		Needs:      "tracefs at /sys/kernel/tracing, which 'ip netns exec' hides, and CONFIG_FTRACE_SYSCALLS",
		Costs:      "some 30 ns in each system call of each process of the host, whether it accepts or not",
		tracepoint: [2]string{"syscalls", "sys_exit_accept4"},
	},
	{
		Name: "tracepoint syscalls/sys_exit_accept", Program: bpfProgStAccept, Tier: TierCauses, insteadOf: bpfProgStGraft,
		Buys:       "the same for programs that call accept()",
		Without:    "an accepted connection has the listener's owner until its process reads from it or closes it",
		Needs:      "tracefs at /sys/kernel/tracing, which 'ip netns exec' hides, and CONFIG_FTRACE_SYSCALLS",
		tracepoint: [2]string{"syscalls", "sys_exit_accept"},
	},
	{
		Name: "tp_btf tcp_rcv_space_adjust", Program: bpfProgStRead, Tier: TierCauses, insteadOf: bpfProgStGraft,
		Buys:    "the owner of a connection accepted through io_uring, or before stated began, once it reads",
		Without: "a connection accepted through io_uring, or before stated began, has the listener's owner until its process closes it",
		Needs:   "kernel 5.5 with CONFIG_DEBUG_INFO_BTF",
		Costs:   "some 80 ns in each read from a TCP socket",
	},
}

// kernelFunc returns the kernel's own function of a name, or nil.
func kernelFunc(kernel *btf.Spec, name string) *btf.FuncProto {
	var f *btf.Func
	if kernel == nil || kernel.TypeByName(name, &f) != nil {
		return nil
	}
	proto, _ := f.Type.(*btf.FuncProto)
	return proto
}

// resolve checks that the function at a trampoline exists and has the
// arguments that the program reads. Stable series change functions, so the
// kernel's version tells nothing.
func (h *Hook) resolve(kernel *btf.Spec) error {
	if h.params == nil {
		return nil
	}
	_, name, _ := strings.Cut(h.Name, " ")
	proto := kernelFunc(kernel, name)
	if proto == nil {
		return fmt.Errorf("this kernel has no function %s that can be traced", name)
	}
	for i, want := range h.params {
		if i >= len(proto.Params) || proto.Params[i].Name != want {
			return fmt.Errorf("%s has other arguments on this kernel: no %s in place %d", name, want, i+1)
		}
	}
	return nil
}
