/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What was there before us, in the stream of events. */
#ifndef __STATED_SNAPSHOT_H
#define __STATED_SNAPSHOT_H

/*
 * An iterator is faster than any reader: it waits while half of the ring buffer
 * is full. With 1 the kernel ends the reader's system call with EAGAIN and
 * begins the next one with the same object (bpf_iter_run_prog, bpf_seq_read).
 */
static __always_inline bool crowded(void)
{
	return bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / 2;
}

/* Between these two stand all sockets of a namespace, unless some were lost. */
static __always_inline int tell_snapshot(__u8 kind, __u64 now)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct event *e = reserve();

	if (!e)
		return 0;
	e->time_ns = now;
	e->kind = kind;
	e->netns = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
	submit(e);
	return 0;
}

static __always_inline int found_mini(struct sock_common *skc)
{
	struct tcp_timewait_sock *tw = bpf_skc_to_tcp_timewait_sock(skc);
	struct tcp_request_sock *req = bpf_skc_to_tcp_request_sock(skc);
	__u8 state = TCP_NEW_SYN_RECV;
	struct event *e;

	if (tw)
		state = tw->tw_sk.tw_substate;
	else if (!req)
		return 0;
	e = reserve_mini(skc, cfg_sk_helpers ? bpf_get_socket_cookie(skc) : 0, WHAT(EVENT_SNAPSHOT, state, state));
	if (!e)
		return 0;
	if (!mini_wanted(e)) {
		discard_filtered(e);
		return 0;
	}
	if (req)
		e->retransmits = req->req.req.num_retrans;
	submit(e);
	return 0;
}

/*
 * Every socket of the namespace that the iterator was opened in. Its events go
 * through the same ring under the socket's lock (since 5.15; before, under the
 * lock of its hash bucket), so what happens to a socket afterwards stands
 * behind it, and the table needs no merging.
 */
SEC("iter/tcp")
int st_iter_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	__u64 now = bpf_ktime_get_boot_ns();
	struct sock_info *info;
	struct tcp_sock *tp;
	struct sock *sk;
	int state;

	if (skc && crowded())
		return 1;
	if (!ctx->meta->seq_num)
		tell_snapshot(EVENT_SNAPSHOT_BEGIN, now);
	if (!skc) /* called once more at the end */
		return tell_snapshot(EVENT_SNAPSHOT_DONE, now);
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp)
		return found_mini(skc);
	sk = &tp->inet_conn.icsk_inet.sk;
	state = skc->skc_state;
	if (state == TCP_LISTEN)
		flush_overflow(sk, now);
	info = info_of(sk, true);
	if (info)
		tell_birth(sk, info);
	return emit_sock(sk, info, now, WHAT(EVENT_SNAPSHOT, state, state));
}

/* Every descriptor of a socket: who holds it. Sets the owner of sockets that were there before us. */
SEC("iter/task_file")
int st_iter_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock_info *info;
	struct socket *socket;
	struct sock *sk;
	struct event *e;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	if (crowded())
		return 1;
	sk = socket->sk;
	if (!sk || (sk->sk_protocol != IPPROTO_TCP && sk->sk_protocol != IPPROTO_MPTCP))
		return 0;
	if (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6)
		return 0;
	info = info_of(sk, true);
	if (!info)
		return 0;
	if (owner_weak(info)) {
		info->owner_source = sk->__sk_common.skc_state == TCP_LISTEN ? OWNER_LISTEN : OWNER_HOLDER;
		info->owner_pid = task->tgid;
		info->owner_start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
		bpf_core_read_str(info->owner_comm, 16, &task->group_leader->comm);
	}
	if (unwanted(info))
		return 0;
	e = reserve();
	if (!e)
		return 0;
	e->time_ns = bpf_ktime_get_boot_ns();
	e->kind = EVENT_HOLDER;
	e->old_state = e->new_state = sk->__sk_common.skc_state;
	read_sock(e, sk);
	if (filter(e, sk, info) == VERDICT_DROP) {
		discard_filtered(e);
		return 0;
	}
	e->fd = ctx->fd;
	e->began_ns = in_state_since(sk);
	e->pid = e->tid = task->tgid;
	e->task_start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	bpf_core_read_str(e->comm, 16, &task->group_leader->comm);
	fill_info(e, sk, info);
	e->flags |= FLAG_TASK;
	submit(e);
	return 0;
}

#endif
