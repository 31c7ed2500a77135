/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who gets a connection. */
#ifndef __STATED_ACCEPT_H
#define __STATED_ACCEPT_H

/*
 * accept() and accept4() gave a descriptor out: from the number to the socket.
 * Another thread may have closed and reused it in between, so what is found
 * must look like a TCP socket in all respects. A classic tracepoint, because
 * the raw one fires for every system call of the host.
 */
static __always_inline int accepted(struct trace_event_raw_sys_exit *ctx)
{
	long fd = BPF_CORE_READ(ctx, ret);
	struct task_struct *task = (void *)bpf_get_current_task();
	struct sock_info *info;
	struct file **fds, *file;
	struct socket *socket;
	struct sock *sk;
	struct event *e;
	__u64 key, cookie, *id;
	__u16 family, protocol;
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	bool own;

	if (fd < 0 || (cfg_pids && !bpf_map_lookup_elem(&filter_pids, &pid)))
		return 0;
	fds = BPF_CORE_READ(task, files, fdt, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), fds + fd))
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if ((family != AF_INET && family != AF_INET6) || BPF_CORE_READ(socket, file) != file)
		return 0;
	key = (__u64)sk;
	own = !cfg_sk_helpers;
	if (protocol == IPPROTO_MPTCP) { /* needs_own_id */
		id = bpf_map_lookup_elem(&mptcp_ids, &key);
		cookie = id ? *id : 0;
		own = true;
	} else if (protocol != IPPROTO_TCP) {
		return 0;
	} else if (own) {
		info = bpf_map_lookup_elem(&sock_infos_lru, &key);
		cookie = info ? info->id : 0;
	} else {
		cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	}
	if (!cookie)
		return 0;
	if (cfg_stacks && protocol == IPPROTO_TCP)
		remember_stack(ctx, cookie);
	introduce();
	e = reserve();
	if (!e)
		return 0;
	e->time_ns = bpf_ktime_get_boot_ns();
	e->kind = EVENT_ACCEPT;
	e->old_state = e->new_state = BPF_CORE_READ(sk, __sk_common.skc_state);
	e->socket = cookie;
	e->flags = own ? FLAG_OWN_ID : 0;
	e->family = family;
	e->protocol = protocol;
	e->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	e->fd = fd;
	fill_task(e, true);
	submit(e);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept")
int st_accept(struct trace_event_raw_sys_exit *ctx)
{
	return accepted(ctx);
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int st_accept4(struct trace_event_raw_sys_exit *ctx)
{
	return accepted(ctx);
}

/* The current task has the socket: it accepted it, or reads from it. */
static __always_inline int took(struct sock *sk, struct sock_info *info, __u8 source, __u8 kind)
{
	__u8 state = sk->__sk_common.skc_state;
	__u32 what = WHAT(kind, state, state);
	struct event *e;
	__u64 now;

	info->owner_source = source;
	info->owner_pid = bpf_get_current_pid_tgid() >> 32;
	current_group(&info->owner_start_ns, info->owner_comm);
	tell_birth(sk, info);
	if (unwanted(info))
		return 0;
	now = bpf_ktime_get_boot_ns();
	e = reserve();
	if (!e)
		return 0;
	fill_sock(e, sk, now, what);
	if (filter(e, sk, info) == VERDICT_DROP) {
		discard_filtered(e);
		return 0;
	}
	e = introduced(e, sk, now, what);
	if (!e)
		return 0;
	fill_task(e, true);
	fill_info(e, sk, info);
	e->fd = -1;
	submit(e);
	return 0;
}

static __always_inline int grafted(void *ctx, struct sock *sk)
{
	struct sock_info *info;

	if (!is_ours(sk))
		return 0;
	if (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6)
		return 0;
	if (BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), flags) & PF_WQ_WORKER)
		return 0; /* mostly for somebody else: SMC */
	info = info_of(sk, true);
	if (!info || info->owner_source == OWNER_ACCEPT)
		return 0;
	took(sk, info, OWNER_ACCEPT, EVENT_ACCEPT);
	if (cfg_stacks && sk->sk_protocol == IPPROTO_TCP) /* nothing tells that MPTCP's is gone */
		remember_stack(ctx, id_of(sk, info));
	return 0;
}

/* accept() gives the connection to a struct socket (sock_graft), by system call or io_uring. */
SEC("fentry/security_sock_graft")
int BPF_PROG(st_graft, struct sock *sk, struct socket *parent)
{
	return grafted(ctx, sk);
}

/* What the kernel skipped st_graft for, as st_state_again. */
SEC("fexit/security_sock_graft")
int BPF_PROG(st_graft_again, struct sock *sk, struct socket *parent)
{
	return grafted(ctx, sk);
}

/*
 * A process reads: the first one owns a socket of which nothing better is
 * known. Often called, so pkg/probe leaves it out where st_graft works. In softirq,
 * where the lock is not owned, the kernel reads for itself what has just come
 * (tcp_read_sock for sockmap, kTLS or SMC), whoever runs.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(st_read, struct sock *sk)
{
	struct sock_info *info;
	struct task_struct *task;

	if (!sk->sk_lock.owned)
		return 0;
	info = info_of(sk, true);
	if (!info || !owner_weak(info))
		return 0;
	task = (void *)bpf_get_current_task();
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return 0; /* for somebody else */
	return took(sk, info, OWNER_READ, EVENT_HOLDER);
}

#endif
