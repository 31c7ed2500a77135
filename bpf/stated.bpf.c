// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The kernel side of stated. Every program here says what it saw and in whose
 * context, and guesses nothing. pkg/probe loads each program on its own; only
 * one of the two st_set_state is needed, the others add causes.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_endian.h>

#include "event.h"
#include "config.h"
#include "maps.h"

/* 6.15 renamed the member (633488947ef6 "kernfs: Use RCU to access kernfs_node::parent") */
struct kernfs_node___parent {
	struct kernfs_node *__parent;
} __attribute__((preserve_access_index));

#include "sock.h"
#include "filter.h"
#include "process.h"
#include "emit.h"
#include "mini.h"
#include "inspect.h"
#include "netns.h"
#include "stack.h"
#include "request.h"
#include "time_wait.h"
#include "accept.h"
#include "snapshot.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Makes clang keep the type for bpf2go and for the contract test. */
struct event *unused_event __attribute__((unused));
struct inspection *unused_inspection __attribute__((unused));
struct stack *unused_stack __attribute__((unused));
struct netns_way *unused_netns_way __attribute__((unused));
struct process *unused_process __attribute__((unused));

static __always_inline bool is_birth(int old, int new)
{
	if (old == TCP_LISTEN)
		return !(new == TCP_CLOSE || new == TCP_LISTEN);
	return old == TCP_CLOSE && (new == TCP_SYN_SENT || new == TCP_LISTEN);
}

/* Begin a connection in the memory of its socket: a new epoch forgets the last one. */
static __always_inline void begin(struct sock *sk, struct sock_info *info, int old, int new)
{
	__u64 id = info->id;

	info->verdict = VERDICT_OPEN;
	info->flags = 0;
	info->born_ns = 0;
	info->id = needs_own_id(sk) ? own_id() : 0;
	if (old == TCP_LISTEN) {
		/* cloned from the listener, where socket storage serves */
		info->owner_source = info->owner_pid ? OWNER_LISTENER : OWNER_UNKNOWN;
		return;
	}
	if (id)
		info->id = id; /* the socket keeps its number, as it would its cookie */
	info->owner_source = new == TCP_LISTEN ? OWNER_LISTEN : OWNER_CONNECT;
	info->owner_pid = bpf_get_current_pid_tgid() >> 32;
	/* mptcp_worker connects further subflows, for whoever has the connection */
	if (current_group(&info->owner_start_ns, info->owner_comm) && is_subflow(bpf_skc_to_tcp_sock(sk))) {
		info->owner_source = OWNER_UNKNOWN;
		info->owner_pid = 0;
	}
}

static __always_inline void remember_closer(struct sock *sk, struct sock_info *info, int old, int new)
{
	if (!owner_weak(info))
		return;
	if (new == TCP_CLOSE || !task_did(sk, old, new))
		return; /* a killer, or the closer of the listener */
	if (BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), flags) & PF_KTHREAD)
		return; /* a worker closes for somebody else */
	info->owner_source = OWNER_CLOSE;
	info->owner_pid = bpf_get_current_pid_tgid() >> 32;
	current_group(&info->owner_start_ns, info->owner_comm);
}

/*
 * Whether a child ends that nobody has met: two segments each made one of the same
 * request, and the other was faster (inet_ehash_nolisten), or there was no route
 * (tcp_v4_syn_recv_sock). The request lives on, with the same cookie, or has become
 * the other one. A child of Fast Open is a connection, and one that a RST ended has an
 * error. Not inlined: the verifier would follow all that comes after once for each way
 * through it, which costs half a second at the start.
 */
static __noinline bool stillborn(struct sock *sk, struct sock_info *info, int old, int new)
{
	struct tcp_sock *tp;

	if (!info->born_ns || old != TCP_SYN_RECV || new != TCP_CLOSE || sk->sk_err)
		return false;
	tp = bpf_skc_to_tcp_sock(sk);
	return tp && !tp->fastopen_rsk;
}

static __always_inline int set_state(void *ctx, struct sock *sk, struct sock_info *info, int old, int new)
{
	__u32 what = WHAT(EVENT_STATE, old, new);
	__u64 now = bpf_ktime_get_boot_ns();

	if (is_birth(old, new)) {
		if (new == TCP_SYN_SENT)
			forget_stack(sk, info); /* of an earlier connection */
		begin(sk, info, old, new);
		/*
		 * Told with its next event: it may be stillborn, and before 6.18 has neither
		 * its peer nor its own cookie at this point (inet_csk_clone_lock).
		 */
		if (old == TCP_LISTEN && new == TCP_SYN_RECV && sk->sk_protocol == IPPROTO_TCP) {
			info->born_ns = now;
			return 0;
		}
	} else if (stillborn(sk, info, old, new)) {
		info->born_ns = 0;
		return 0;
	} else {
		remember_closer(sk, info, old, new);
	}
	tell_birth(sk, info);
	if (new == TCP_CLOSE && !(sk->__sk_common.skc_flags & 1 << SOCK_DEAD))
		info->flags |= INFO_HELD;
	if (old == TCP_LISTEN && new == TCP_CLOSE)
		flush_overflow(sk, now);
	if (cfg_stacks && new == TCP_SYN_SENT && sk->sk_protocol == IPPROTO_TCP)
		remember_stack(ctx, id_of(sk, info));
	if (new == TCP_CLOSE && (old == TCP_FIN_WAIT2 || old == TCP_CLOSING) && time_wait_full(BPF_CORE_READ(sk, __sk_common.skc_net.net)))
		what |= WHAT_TW_FULL;
	return emit_sock(sk, info, now, what);
}

#define CHANGE(old, new) ((__u8)((old) << 4 | (new)))

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(st_set_state, struct sock *sk, int old, int new)
{
	struct sock_info *info;

	if (!is_ours(sk))
		return 0;
	info = info_of(sk, true);
	if (!info)
		return emit_sock(sk, NULL, bpf_ktime_get_boot_ns(), WHAT(EVENT_STATE, old, new));
	info->taken = CHANGE(old, new);
	return set_state(ctx, sk, info, old, new);
}

/*
 * The kernel skips a program's run on a CPU where another run of it is under way
 * (__bpf_trace_run in kernel/trace/bpf_trace.c, since 6.1): interrupted by a segment for
 * another socket, or from 7.0 on by another task, which may last. This one comes
 * behind st_set_state in each change of state, under the same lock of the socket. It
 * only looks at the mark, where st_set_state told the change, and tells it where not.
 * From 7.0 on a task may be preempted in st_set_state: until it goes on, this one
 * tells all changes on that CPU, and may be interrupted itself, so pkg/probe attaches
 * it twice there. Masking interrupts in st_set_state is no help, as they come at its
 * very end then.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(st_state_again, struct sock *sk, int old, int new)
{
	struct sock_info *info;
	struct counters *n;

	if (!is_ours(sk))
		return 0;
	info = info_of(sk, false);
	if (info && info->taken == CHANGE(old, new))
		return 0;
	if (!info)
		info = info_of(sk, true);
	if (!info)
		return 0; /* without memory, st_set_state told it in the end */
	info->taken = CHANGE(old, new);
	n = count();
	if (n)
		__sync_fetch_and_add(&n->made_good, 1);
	return set_state(ctx, sk, info, old, new);
}

/* inet_csk_destroy_sock: only told, once, for a socket whose owner kept it after its end. */
static __always_inline int destroyed(struct sock *sk)
{
	struct sock_info *info = info_of(sk, false);

	forget_stack(sk, info);
	if (!info)
		return 0;
	if (info->flags & INFO_HELD) {
		info->flags &= ~INFO_HELD;
		emit_sock(sk, info, bpf_ktime_get_boot_ns(), WHAT(EVENT_DESTROY, TCP_CLOSE, TCP_CLOSE));
	}
	forget(sk);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(st_destroy_sock, struct sock *sk)
{
	return destroyed(sk);
}

/* What the kernel skipped st_destroy_sock for, as st_state_again. */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(st_dead_again, struct sock *sk)
{
	return destroyed(sk);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(st_recv_reset, struct sock *sk)
{
	struct sock_info *info = info_of(sk, false);
	int state = sk->__sk_common.skc_state;

	if (info)
		tell_birth(sk, info);
	return emit_sock(sk, info, bpf_ktime_get_boot_ns(), WHAT(EVENT_RESET_RECEIVED, state, state));
}

static __always_inline __u32 reset_reason(__u64 reason)
{
#define REASON(name, ours) \
	if (bpf_core_enum_value_exists(enum sk_rst_reason, SK_RST_REASON_##name) && \
	    reason == bpf_core_enum_value(enum sk_rst_reason, SK_RST_REASON_##name)) { \
		return ours; \
	}
	REASON(NO_SOCKET, RESET_NO_SOCKET);
	REASON(TCP_ABORT_ON_DATA, RESET_ABORT_ON_DATA);
	REASON(TCP_TIMEWAIT_SOCKET, RESET_TIME_WAIT);
	REASON(INVALID_SYN, RESET_INVALID_SYN);
	REASON(TCP_ABORT_ON_CLOSE, RESET_ABORT_ON_CLOSE);
	REASON(TCP_ABORT_ON_LINGER, RESET_ABORT_ON_LINGER);
	REASON(TCP_ABORT_ON_MEMORY, RESET_ABORT_ON_MEMORY);
	REASON(TCP_STATE, RESET_STATE);
	REASON(TCP_KEEPALIVE_TIMEOUT, RESET_KEEPALIVE);
	REASON(TCP_DISCONNECT_WITH_DATA, RESET_DISCONNECT_DATA);
#undef REASON
	return reason ? RESET_PROTOCOL : RESET_UNKNOWN;
}

/* (sk, skb), since 6.10 (sk, skb, reason); sk may be NULL or a mini socket since then. */
SEC("tp_btf/tcp_send_reset")
int st_send_reset(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct sock_info *info;
	__u32 why = RESET_UNKNOWN;
	int state;

	if (!sk)
		return 0;
	state = sk->__sk_common.skc_state;
	if (state == TCP_LISTEN)
		reset_by_listener(sk, (struct sk_buff *)ctx[1]);
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || state == TCP_LISTEN)
		return 0;
	if (cfg_reset_reason)
		why = reset_reason(ctx[2]);
	info = info_of(sk, false);
	if (!info && state == TCP_CLOSE)
		info = info_of_destroyed(sk);
	if (info)
		tell_birth(sk, info);
	return emit_sock(sk, info, bpf_ktime_get_boot_ns(), WHAT(EVENT_RESET_SENT, state, state) | why << 24);
}

/* With cfg_tree: a child of a process that is followed is followed. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(st_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 from = parent->tgid, to = child->tgid;
	struct counters *n;
	__u8 one = 1;

	if (from == to || !bpf_map_lookup_elem(&filter_pids, &from))
		return 0;
	if (bpf_map_update_elem(&filter_pids, &to, &one, BPF_ANY) && (n = count()))
		n->storage_failed++;
	return 0;
}

/* do_exit counts signal->live down before the tracepoint: zero is the last thread. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(st_exit, struct task_struct *task)
{
	__u32 pid = task->tgid;

	if (!task->signal->live.counter)
		bpf_map_delete_elem(&filter_pids, &pid);
	return 0;
}

/*
 * Where the kernel has no BTF, or refuses typed programs: states and tuples
 * only. No CO-RE and no kernel structure may be used here.
 */
SEC("tracepoint/sock/inet_sock_set_state")
int st_set_state_tp(void *ctx)
{
	struct classic_set_state s;
	__u64 now = bpf_ktime_get_boot_ns(); /* before the place in the ring: Probe.tell relies on it */
	struct sock_info *info, fresh = {};
	struct event *e;
	__u64 id, key;

	if (bpf_probe_read_kernel(&s, sizeof(s), ctx + cfg_tp_skaddr))
		return 0;
	if (s.protocol != IPPROTO_TCP && s.protocol != IPPROTO_MPTCP)
		return 0;
	key = (__u64)s.skaddr;
	info = bpf_map_lookup_elem(&sock_infos_lru, &key);
	if (!info || is_birth(s.oldstate, s.newstate)) {
		fresh.id = own_id();
		if (s.newstate == TCP_SYN_SENT || s.newstate == TCP_LISTEN) {
			fresh.owner_source = s.newstate == TCP_LISTEN ? OWNER_LISTEN : OWNER_CONNECT;
			fresh.owner_pid = bpf_get_current_pid_tgid() >> 32;
			bpf_get_current_comm(fresh.owner_comm, sizeof(fresh.owner_comm));
		}
		bpf_map_update_elem(&sock_infos_lru, &key, &fresh, BPF_ANY);
		info = &fresh;
	}
	e = reserve();
	if (!e)
		return 0;
	e->time_ns = now;
	e->kind = EVENT_STATE;
	e->old_state = s.oldstate;
	e->new_state = s.newstate;
	e->family = s.family;
	e->protocol = s.protocol;
	if (s.newstate != TCP_SYN_SENT) /* read_ports */
		e->lport = s.sport;
	e->rport = s.dport;
	if (s.family == AF_INET6) {
		__builtin_memcpy(e->laddr, s.saddr_v6, 16);
		__builtin_memcpy(e->raddr, s.daddr_v6, 16);
	} else {
		__builtin_memcpy(e->laddr, s.saddr, 4);
		__builtin_memcpy(e->raddr, s.daddr, 4);
	}
	id = bpf_get_current_pid_tgid();
	e->pid = id >> 32;
	e->tid = id;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	e->socket = info->id;
	e->owner_source = info->owner_source;
	e->owner_pid = info->owner_pid;
	__builtin_memcpy(e->owner_comm, info->owner_comm, 16);
	e->flags = FLAG_OWN_ID | FLAG_PARTIAL;
	/* sk_err cannot be read here, so ends are nobody's doing */
	if (s.newstate == TCP_SYN_SENT || s.newstate == TCP_LISTEN || s.newstate == TCP_FIN_WAIT1 ||
	    s.newstate == TCP_LAST_ACK || s.oldstate == s.newstate ||
	    (s.oldstate == TCP_LISTEN && s.newstate == TCP_CLOSE)) {
		e->flags |= FLAG_TASK;
		e->uid = bpf_get_current_uid_gid();
	}
	submit(e);
	if (s.newstate == TCP_CLOSE)
		bpf_map_delete_elem(&sock_infos_lru, &key);
	return 0;
}
