/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reading a struct sock: who it is, where it goes, how it fares, whose it is. */
#ifndef __STATED_SOCK_H
#define __STATED_SOCK_H

static __always_inline struct counters *count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&totals, &zero);
}

static const struct sock_info nothing; /* not on the stack, which remember_stack needs */

static __always_inline struct sock_info *info_by_address(struct sock *sk, bool create)
{
	struct sock_info *info;
	__u64 key = (__u64)sk;

	info = bpf_map_lookup_elem(&sock_infos_lru, &key);
	if (!info && create) {
		bpf_map_update_elem(&sock_infos_lru, &key, &nothing, BPF_ANY);
		info = bpf_map_lookup_elem(&sock_infos_lru, &key);
	}
	return info;
}

/*
 * The memory of a socket, made when there is none; NULL without memory. Socket
 * storage may fail for a moment, as it must not sleep or spin for memory
 * (kmalloc_nolock in recent kernels); then the table by address serves for the
 * socket's whole life.
 */
static __always_inline struct sock_info *info_of(struct sock *sk, bool create)
{
	struct sock_info *info = NULL;
	struct counters *n;

	if (cfg_sk_helpers) {
		info = bpf_sk_storage_get(&sock_infos, sk, 0, 0);
		if (info)
			return info;
		info = info_by_address(sk, false);
		if (!info && create)
			info = bpf_sk_storage_get(&sock_infos, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	}
	if (!info)
		info = info_by_address(sk, create);
	if (!info && create && (n = count()))
		n->storage_failed++;
	return info;
}

/*
 * A socket ends: socket storage dies with it, an entry by address has to be
 * deleted. The last one is kept for info_of_destroyed.
 */
static __always_inline void forget(struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct destroyed *last;
	struct sock_info *info;
	__u32 zero = 0;

	if (cfg_sk_helpers && bpf_sk_storage_get(&sock_infos, sk, 0, 0))
		return;
	info = info_by_address(sk, false);
	last = bpf_map_lookup_elem(&last_destroyed, &zero);
	if (!info || !last)
		return;
	last->sk = key;
	last->info = *info;
	bpf_map_delete_elem(&sock_infos_lru, &key);
}

static __always_inline struct sock_info *info_of_destroyed(struct sock *sk)
{
	__u32 zero = 0;
	struct destroyed *last = bpf_map_lookup_elem(&last_destroyed, &zero);

	return last && last->sk == (__u64)sk ? &last->info : NULL;
}

/*
 * A socket number of our own: never zero, and never a cookie (those count up from 1).
 * A softirq, or from 7.0 on another task, may take one in the middle of this, and
 * instructions that add and fetch at once came with 5.12: a number is ours if
 * nobody else counted between the two reads.
 */
static __noinline __u64 own_id(void)
{
	struct counters *n = count();
	volatile __u64 *ids;
	__u64 before, id = 0;

	if (n) {
		ids = &n->ids;
		for (int tries = 0; tries < 3; tries++) {
			before = *ids;
			__sync_fetch_and_add(&n->ids, 1);
			id = *ids;
			if (id == before + 1)
				break;
		}
	}
	return 1ULL << 63 | (__u64)bpf_get_smp_processor_id() << 47 | id;
}

/*
 * Whether numbers of our own serve for this socket. The cookie does not where
 * the helper is missing, and for an MPTCP socket, which keeps the cookie of the
 * listener it was cloned from (mptcp_sk_clone_init in net/mptcp/protocol.c).
 */
static __always_inline bool needs_own_id(struct sock *sk)
{
	return !cfg_sk_helpers || sk->sk_protocol == IPPROTO_MPTCP;
}

static __always_inline __u64 id_of(struct sock *sk, struct sock_info *info)
{
	if (info && info->id)
		return info->id;
	if (cfg_sk_helpers)
		return bpf_get_socket_cookie(sk);
	return 0;
}

static __always_inline bool owner_weak(struct sock_info *info)
{
	return info->owner_source == OWNER_UNKNOWN || info->owner_source == OWNER_LISTENER;
}

/*
 * Who runs now, by the thread group leader: threads rename themselves. Returns
 * whether it is a kernel thread.
 */
static __always_inline bool current_group(__u64 *start_ns, __u8 comm[16])
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	*start_ns = BPF_CORE_READ(leader, start_boottime);
	bpf_core_read_str(comm, 16, &leader->comm);
	return BPF_CORE_READ(task, flags) & PF_KTHREAD;
}

/*
 * Whether a change of state is the current task's own doing. Most run in
 * softirq, where the current task is whoever was interrupted, on loopback
 * often the process at the other end. What is left are the transitions that
 * only connect(), listen(), shutdown() and close() make (callers of
 * tcp_set_state and inet_sk_state_store in net/ipv4), and an end without an
 * error while the socket still belongs to somebody: close() with unread data,
 * SO_LINGER 0, a failed connect(); or SOCK_DESTROY (tcp_abort).
 */
static __noinline bool task_did(struct sock *sk, int old, int new)
{
	if (old == new)
		return true;
	switch (new) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
	case TCP_LAST_ACK:
		return true;
	case TCP_FIN_WAIT1:
		/* not in softirq: there a shutdown() of before is made good (tcp_rcv_state_process, SYN_RECV) */
		return sk->sk_lock.owned;
	case TCP_CLOSE:
		if (old == TCP_LISTEN || sk->sk_err == ECONNABORTED)
			return true;
		if (sk->sk_err || sk->__sk_common.skc_flags & 1 << SOCK_DEAD)
			return false;
		if (old == TCP_SYN_SENT || old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT)
			return true;
		return old == TCP_SYN_RECV && BPF_CORE_READ(sk, sk_socket);
	}
	return false;
}

/* SCTP and DCCP use the tracepoint with numbers of their own. */
static __always_inline bool is_ours(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP || sk->sk_protocol == IPPROTO_MPTCP;
}

static __always_inline bool is_subflow(struct tcp_sock *tp)
{
	return tp && bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp;
}

/*
 * The MPTCP connection that a subflow is of, 0 unknown. There is a helper,
 * bpf_skc_to_mptcp_sock, but not for the sockets of tracing programs.
 */
static __always_inline __u64 mptcp_of(struct tcp_sock *tp)
{
	struct mptcp_subflow_context *subflow;
	__u64 key, *id;

	if (!bpf_core_type_exists(struct mptcp_subflow_context))
		return 0;
	subflow = BPF_CORE_READ(tp, inet_conn.icsk_ulp_data);
	key = (__u64)BPF_CORE_READ(subflow, conn);
	id = bpf_map_lookup_elem(&mptcp_ids, &key);
	return id ? *id : 0;
}

/* Renamed __parent in 6.15 (633488947ef6). */
static __always_inline struct kernfs_node *parent_of(struct kernfs_node *node)
{
	if (bpf_core_field_exists(node->parent))
		return BPF_CORE_READ(node, parent);
	return BPF_CORE_READ((struct kernfs_node___parent *)node, __parent);
}

static __always_inline __u64 cgroup_of(struct sock *sk)
{
	/* before 5.15 upstream a union that may hold something else */
	if (!bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return 0;
	return BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
}

/*
 * Whether the kernel made the socket for itself (sk_alloc with kern), or accepted it
 * (kernel_accept makes no file). Before it is accepted, a socket has made from its
 * listener, also that of MPTCP, which gives it to a process as plain TCP
 * (mptcp_stream_accept). A subflow has neither, and is its connection's.
 */
static __always_inline bool is_kernels(bool made, struct socket *socket, struct file *file)
{
	return socket && (made || !file);
}

static __always_inline void read_addrs(struct event *e, struct sock *sk, struct tcp_sock *tp)
{
	if (e->family == AF_INET6) {
		bpf_probe_read_kernel(e->laddr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(e->raddr, 16, &sk->__sk_common.skc_v6_daddr);
		return;
	}
	/* the tracepoint's choice: inet_saddr, not skc_rcv_saddr */
	*(__be32 *)e->laddr = tp ? tp->inet_conn.icsk_inet.inet_saddr : sk->__sk_common.skc_rcv_saddr;
	*(__be32 *)e->raddr = sk->__sk_common.skc_daddr;
}

/*
 * Ports from inet_sport: skc_num is already zero at -> CLOSE, as inet_put_port
 * ran before the tracepoint. It leaves inet_sport, so at the birth of the next
 * connection of a socket, before a port is chosen (inet_hash_connect,
 * inet_csk_listen_start), that is the last one's.
 */
static __always_inline void read_ports(struct event *e, struct sock *sk, struct tcp_sock *tp)
{
	bool birth = e->old_state == TCP_CLOSE && e->new_state != TCP_CLOSE;

	e->lport = tp && !birth ? bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport) : 0;
	if (!e->lport)
		e->lport = sk->__sk_common.skc_num;
	e->rport = bpf_ntohs(sk->__sk_common.skc_dport);
}

static __always_inline void read_numbers(struct event *e, struct sock *sk, struct tcp_sock *tp)
{
	if (is_subflow(tp)) {
		e->flags |= FLAG_MPTCP;
		e->mptcp = mptcp_of(tp);
	}
	if (e->old_state == TCP_LISTEN || e->new_state == TCP_LISTEN) {
		if (e->old_state != TCP_SYN_RECV && e->new_state != TCP_SYN_RECV) {
			e->unread = sk->sk_ack_backlog;
			e->unsent = sk->sk_max_ack_backlog;
		}
		return;
	}
	e->bytes_sent = tp->bytes_sent;
	e->bytes_resent = tp->bytes_retrans;
	e->bytes_acked = tp->bytes_acked;
	e->bytes_received = tp->bytes_received;
	e->srtt_us = tp->srtt_us >> 3; /* kept as eight times the value */
	e->retransmits = tp->total_retrans;
	/* as tcp_diag_get_info; nothing was received before the handshake's end */
	if (tp->rcv_nxt && e->old_state != TCP_SYN_SENT)
		e->unread = tp->rcv_nxt - tp->copied_seq;
	e->unsent = tp->write_seq - tp->snd_una;
}

/*
 * When the last segment came or went, CLOCK_BOOTTIME, 0 unknown: tcp_mstamp is
 * CLOCK_MONOTONIC in microseconds (tcp_mstamp_refresh in net/ipv4/tcp_output.c).
 */
static __always_inline __u64 last_segment(struct tcp_sock *tp, __u64 boot, __u64 mono)
{
	__u64 segment = BPF_CORE_READ(tp, tcp_mstamp) * 1000;

	return segment && segment <= mono ? boot - (mono - segment) : 0;
}

/*
 * When the first SYN of a socket in SYN_SENT went, CLOCK_BOOTTIME, 0 unknown: tcp_connect
 * notes it in milliseconds of CLOCK_MONOTONIC, and those that go later leave it
 * (__tcp_retransmit_skb). Put off (Fast Open), it has not gone. Where time stamps are
 * in microseconds they run over in an hour.
 */
static __always_inline __u64 first_syn(struct tcp_sock *tp)
{
	__u32 sent = BPF_CORE_READ(tp, retrans_stamp), ago;

	if (bpf_core_field_exists(tp->tcp_usec_ts) && BPF_CORE_READ_BITFIELD_PROBED(tp, tcp_usec_ts))
		return 0;
	ago = (__u32)(bpf_ktime_get_ns() / 1000000) - sent; /* one too many, maybe */
	if (!sent || ago >= 1U << 31)
		return 0;
	return bpf_ktime_get_boot_ns() - (ago ? ago - 1 : 0) * 1000000ULL;
}

/*
 * Whether there was hardly room for one more in TIME_WAIT, if any: inet_twsk_alloc in
 * net/ipv4/inet_timewait_sock.c makes no more than net.ipv4.tcp_max_tw_buckets, for
 * which a connection ends as if it had none. It may have counted a few more than there
 * are now, hence the margin.
 */
static __always_inline bool time_wait_full(struct net *net)
{
	struct inet_timewait_death_row *row;
	struct net___pointer *old = (void *)net;
	__u32 n, most;

	if (bpf_core_field_exists(old->ipv4.tcp_death_row)) {
		row = BPF_CORE_READ(old, ipv4.tcp_death_row);
		n = BPF_CORE_READ(row, tw_refcount.refs.counter) - 1;
		most = BPF_CORE_READ(row, sysctl_max_tw_buckets);
	} else {
		most = BPF_CORE_READ(net, ipv4.tcp_death_row.sysctl_max_tw_buckets);
		if (bpf_core_field_exists(net->ipv4.tcp_death_row.tw_refcount))
			n = BPF_CORE_READ(net, ipv4.tcp_death_row.tw_refcount.refs.counter) - 1;
		else
			n = BPF_CORE_READ((struct net___count *)net, ipv4.tcp_death_row.tw_count.counter);
	}
	return n + n / 64 >= most;
}

/*
 * What a socket points to: its namespace, its control group, its descriptor. TCP's are
 * read by their types, which is faster, but not from sk: it is the argument of a
 * tracepoint, which the verifier trusts, and at each pointer that is read from such it
 * goes several times through all types of the kernel by their names, which makes two
 * thirds of the time to load us (btf_nested_type_is_trusted in kernel/bpf/verifier.c,
 * since 6.3). What bpf_skc_to_tcp_sock returns is not so.
 */
static __always_inline void read_links(struct event *e, struct sock *sk, struct tcp_sock *tp)
{
	struct sock *typed = (void *)tp;
	struct socket *socket;

	if (!tp) {
		e->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
		e->cgroup = cgroup_of(sk);
		if (!BPF_CORE_READ(sk, sk_socket))
			e->flags |= FLAG_NO_SOCKET;
		return;
	}
	e->netns = typed->__sk_common.skc_net.net->ns.inum;
	if (bpf_core_field_exists(typed->sk_cgrp_data.cgroup))
		e->cgroup = typed->sk_cgrp_data.cgroup->kn->id;
	socket = typed->sk_socket;
	if (!socket)
		e->flags |= FLAG_NO_SOCKET;
	if (!is_subflow(tp) && is_kernels(BPF_CORE_READ_BITFIELD(typed, sk_kern_sock), socket, socket ? socket->file : NULL))
		e->flags |= FLAG_KERNEL;
}

/*
 * The ICMP error that answered our SYN while a system call had the socket: the
 * socket goes on then, and its queue of errors keeps it (tcp_v4_err, tcp_v6_err, since
 * 5.8). The process sees it by poll() and SO_ERROR, which clears sk_err_soft, and
 * closes. What a connection before left in the queue quotes another SYN.
 */
static __always_inline __u32 syn_error(struct sock *sk, struct tcp_sock *tp)
{
	struct {
		__be16 sport, dport;
		__be32 seq;
	} quoted = {};
	struct sock_exterr_skb *told = NULL;
	struct sk_buff *skb;

	if (!bpf_core_field_exists(told->ee.ee_errno) || !BPF_CORE_READ(sk, sk_error_queue.qlen))
		return 0;
	skb = BPF_CORE_READ(sk, sk_error_queue.prev);
	bpf_probe_read_kernel(&quoted, sizeof(quoted), BPF_CORE_READ(skb, data));
	if (bpf_ntohl(quoted.seq) != tp->snd_una)
		return 0;
	told = (void *)skb + bpf_core_field_offset(skb->cb);
	return BPF_CORE_READ(told, ee.ee_errno);
}

/*
 * Everything that can be read at any moment in any context. e->old_state and
 * e->new_state are set before.
 */
static __always_inline void read_sock(struct event *e, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk); /* NULL for an MPTCP socket */
	unsigned long flags = sk->__sk_common.skc_flags;

	e->family = sk->__sk_common.skc_family;
	e->protocol = sk->sk_protocol;
	e->uid = sk->sk_uid.val;
	e->err = sk->sk_err;
	e->shutdown = sk->sk_shutdown;
	if (flags & 1 << SOCK_DEAD)
		e->flags |= FLAG_DEAD;
	if (flags & 1 << SOCK_DONE)
		e->flags |= FLAG_DONE;
	read_links(e, sk, tp);
	read_addrs(e, sk, tp);
	read_ports(e, sk, tp);
	if (!tp)
		return;
	read_numbers(e, sk, tp);
	if (e->old_state == TCP_SYN_SENT && e->new_state == TCP_CLOSE && !e->err)
		e->err = syn_error(sk, tp);
}

#endif
