/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Looking at the sockets that are there, on request: each as an event with what
 * says why it stays. What is seen goes to the reader of the iterator and not
 * through the ring, so nothing is lost and nothing is told that was not asked.
 */
#ifndef __STATED_INSPECT_H
#define __STATED_INSPECT_H

#define SOCKFS_MAGIC 0x534F434B /* include/uapi/linux/magic.h */
/* include/net/inet_connection_sock.h */
#define ICSK_TIME_RETRANS 1
#define ICSK_TIME_PROBE0 3
#define TCP_CA_LOSS 4 /* TCP_CA_Loss in include/uapi/linux/tcp.h */

/* A bit for each state that is asked for. Set by pkg/probe before each run. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} inspect_states SEC(".maps");

static __always_inline bool inspected(int state)
{
	__u32 zero = 0, *states = bpf_map_lookup_elem(&inspect_states, &zero);

	return states && *states & 1 << (state & 31);
}

/* struct socket lives in its inode (SOCK_INODE in include/net/sock.h). */
static __always_inline __u64 inode_of(struct socket *socket)
{
	struct socket_alloc *alloc = (void *)socket - bpf_core_field_offset(struct socket_alloc, socket);

	return BPF_CORE_READ(alloc, vfs_inode.i_ino);
}

static __always_inline __u32 references(struct file *file)
{
	struct file___ref *counted = (void *)file;

	if (bpf_core_field_exists(counted->f_ref)) /* holds one less than the count */
		return BPF_CORE_READ(counted, f_ref.refcnt.counter) + 1;
	return BPF_CORE_READ(file, f_count.counter);
}

/* Whether a thread sleeps on the socket, or a poll, an epoll or io_uring has registered with it. */
static __always_inline bool waited_for(struct sock *sk)
{
	struct socket_wq *wq = BPF_CORE_READ(sk, sk_wq);

	return wq && BPF_CORE_READ(wq, wait.head.next) != (void *)wq + bpf_core_field_offset(wq->wait.head);
}

/*
 * Everything here is read by bpf_probe_read_kernel: a socket that is found
 * through a descriptor is neither locked nor typed. What changes meanwhile may
 * be told half old, half new.
 */
static __always_inline void inspect_common(struct event *e, struct sock_common *skc)
{
	e->family = BPF_CORE_READ(skc, skc_family);
	e->netns = BPF_CORE_READ(skc, skc_net.net, ns.inum);
	if (cfg_sk_helpers)
		e->socket = BPF_CORE_READ(skc, skc_cookie.counter);
	e->lport = BPF_CORE_READ(skc, skc_num);
	e->rport = bpf_ntohs(BPF_CORE_READ(skc, skc_dport));
	if (e->family == AF_INET6) {
		BPF_CORE_READ_INTO((struct in6_addr *)e->laddr, skc, skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO((struct in6_addr *)e->raddr, skc, skc_v6_daddr);
	} else {
		*(__be32 *)e->laddr = BPF_CORE_READ(skc, skc_rcv_saddr);
		*(__be32 *)e->raddr = BPF_CORE_READ(skc, skc_daddr);
	}
}

/* In e->new_state and e->protocol stands what they are. */
static __always_inline void inspect_numbers(struct event *e, struct tcp_sock *tp)
{
	if (e->new_state == TCP_LISTEN) {
		e->unread = BPF_CORE_READ((struct sock *)tp, sk_ack_backlog);
		e->unsent = BPF_CORE_READ((struct sock *)tp, sk_max_ack_backlog);
		return;
	}
	e->bytes_sent = BPF_CORE_READ(tp, bytes_sent);
	e->bytes_resent = BPF_CORE_READ(tp, bytes_retrans);
	e->bytes_acked = BPF_CORE_READ(tp, bytes_acked);
	e->bytes_received = BPF_CORE_READ(tp, bytes_received);
	e->srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3;
	e->retransmits = BPF_CORE_READ(tp, total_retrans);
	if (e->new_state != TCP_SYN_SENT)
		e->unread = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);
	e->unsent = BPF_CORE_READ(tp, write_seq) - BPF_CORE_READ(tp, snd_una);
	if (bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ(tp, is_mptcp)) {
		e->flags |= FLAG_MPTCP;
		e->mptcp = mptcp_of(tp);
	}
}

/*
 * What the kernel waits for. The probe timer runs for data that is held back by
 * our side, too, as by TCP_CORK: then the first probe sends it. One that finds
 * the window closed counts in icsk_backoff (tcp_send_probe0). A segment that is
 * sent again into a window that was closed behind it counts nowhere on all
 * kernels, but is taken for lost (tcp_retransmit_timer).
 */
static __always_inline void inspect_timer(struct inspection *i, struct inet_connection_sock *icsk)
{
	int pending = BPF_CORE_READ(icsk, icsk_pending), state = i->event.new_state;
	bool shut = false;

	i->timeouts = BPF_CORE_READ(icsk, icsk_retransmits);
	i->probes = BPF_CORE_READ(icsk, icsk_probes_out);
	if (pending == ICSK_TIME_PROBE0)
		shut = BPF_CORE_READ(icsk, icsk_backoff);
	else if (pending == ICSK_TIME_RETRANS && state != TCP_SYN_SENT && state != TCP_SYN_RECV)
		shut = !BPF_CORE_READ((struct tcp_sock *)icsk, snd_wnd) &&
		       BPF_CORE_READ_BITFIELD_PROBED(icsk, icsk_ca_state) == TCP_CA_LOSS;
	if (shut)
		i->facts |= INSPECTED_SHUT;
}

/*
 * An MPTCP connection, of which the fields of TCP are unused. Its first subflow
 * stays for as long as it does, also when that has ended (__mptcp_close_ssk in
 * net/mptcp/protocol.c), and tells when a segment came or went. One that was
 * disconnected keeps its peer; that it is not shut tells (mptcp_disconnect).
 */
static __always_inline void inspect_mptcp(struct inspection *i, struct sock *sk)
{
	struct event *e = &i->event;
	__u64 *id, key = (__u64)sk;
	struct tcp_sock *first;

	id = bpf_map_lookup_elem(&mptcp_ids, &key);
	e->socket = id ? *id : 0; /* the cookie may be another's: needs_own_id */
	e->flags |= id ? FLAG_OWN_ID : 0;
	if (!bpf_core_type_exists(struct mptcp_sock))
		return;
	first = (struct tcp_sock *)BPF_CORE_READ((struct mptcp_sock *)sk, first);
	if (!first)
		return;
	if (e->new_state != TCP_SYN_SENT && e->new_state != TCP_LISTEN && BPF_CORE_READ(first, rcv_nxt) &&
	    (e->new_state != TCP_CLOSE || e->shutdown || e->err))
		i->facts |= INSPECTED_OPENED;
	i->last_segment_ns = last_segment(first, e->time_ns, i->now_mono_ns);
}

/* A subflow whose connection was closed is the kernel's: it is not marked itself (__mptcp_close). */
static __always_inline void inspect_subflow(struct event *e, struct tcp_sock *tp)
{
	struct mptcp_subflow_context *subflow;
	struct sock *conn;

	if (!bpf_core_type_exists(struct mptcp_subflow_context))
		return;
	subflow = BPF_CORE_READ(tp, inet_conn.icsk_ulp_data);
	conn = BPF_CORE_READ(subflow, conn);
	if (BPF_CORE_READ(conn, __sk_common.skc_flags) & 1 << SOCK_DEAD)
		e->flags |= FLAG_DEAD;
}

static __always_inline void inspect_sock(struct inspection *i, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	unsigned long flags = BPF_CORE_READ(sk, __sk_common.skc_flags);
	struct socket *socket = BPF_CORE_READ(sk, sk_socket);
	__u16 sport = bpf_ntohs(BPF_CORE_READ(tp, inet_conn.icsk_inet.inet_sport));
	struct event *e = &i->event;
	struct sock_info *info;
	struct file *file = NULL;
	__u64 key;

	inspect_common(e, &sk->__sk_common);
	if (sport) /* stays when the port is given back */
		e->lport = sport;
	e->uid = BPF_CORE_READ(sk, sk_uid.val);
	e->cgroup = cgroup_of(sk);
	e->err = BPF_CORE_READ(sk, sk_err);
	e->shutdown = BPF_CORE_READ(sk, sk_shutdown);
	e->flags |= flags & 1 << SOCK_DEAD ? FLAG_DEAD : 0;
	e->flags |= flags & 1 << SOCK_DONE ? FLAG_DONE : 0;
	i->now_mono_ns = bpf_ktime_get_ns();
	i->now_jiffies = bpf_jiffies64();
	if (socket) {
		i->inode = inode_of(socket);
		file = BPF_CORE_READ(socket, file);
		if (file)
			i->references = references(file);
		if (waited_for(sk))
			i->facts |= INSPECTED_WAITED;
	} else {
		e->flags |= FLAG_NO_SOCKET;
	}
	key = (__u64)sk;
	info = bpf_map_lookup_elem(&sock_infos_lru, &key);
	if (info && info->id) {
		e->socket = info->id;
		e->flags |= FLAG_OWN_ID;
	}
	if (e->protocol != IPPROTO_TCP) {
		inspect_mptcp(i, sk);
		return;
	}
	inspect_numbers(e, tp);
	if (e->flags & FLAG_MPTCP)
		inspect_subflow(e, tp);
	inspect_timer(i, &tp->inet_conn);
	if (!(e->flags & FLAG_MPTCP) && is_kernels(BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock), socket, file))
		e->flags |= FLAG_KERNEL;
	/* set with the peer's SYN, in tcp_rcv_synsent_state_process or tcp_create_openreq_child */
	if (BPF_CORE_READ(tp, rcv_nxt))
		i->facts |= INSPECTED_OPENED;
	i->last_segment_ns = last_segment(tp, e->time_ns, i->now_mono_ns);
	if (e->new_state == TCP_SYN_SENT)
		e->began_ns = first_syn(tp);
	i->last_acked = BPF_CORE_READ(tp, rcv_tstamp);
	i->last_received = e->bytes_received ? BPF_CORE_READ(tp, inet_conn.icsk_ack.lrcvtime) : 0;
	i->last_sent = e->bytes_sent ? BPF_CORE_READ(tp, lsndtime) : 0;
}

SEC("iter/tcp")
int st_inspect_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_timewait_sock *tw;
	struct tcp_request_sock *req;
	struct inspection i = {};
	struct event *e = &i.event;
	int state;

	if (!skc)
		return 0;
	state = skc->skc_state == TCP_NEW_SYN_RECV ? TCP_SYN_RECV : skc->skc_state;
	if (!inspected(state))
		return 0;
	e->kind = EVENT_SNAPSHOT;
	e->time_ns = bpf_ktime_get_boot_ns();
	e->fd = -1;
	e->protocol = IPPROTO_TCP;
	e->old_state = e->new_state = state;
	if (bpf_skc_to_tcp_sock(skc)) {
		if (cfg_sk_helpers)
			bpf_get_socket_cookie(skc); /* it has one from now on */
		inspect_sock(&i, (struct sock *)skc);
	} else {
		e->flags = FLAG_MINI | FLAG_NO_SOCKET;
		inspect_common(e, skc);
		tw = bpf_skc_to_tcp_timewait_sock(skc);
		if (tw) {
			e->old_state = e->new_state = tw->tw_sk.tw_substate;
			i.last_sent = tw->tw_sk.tw_timer.expires;
			i.now_mono_ns = bpf_ktime_get_ns();
			i.now_jiffies = bpf_jiffies64();
		}
		req = bpf_skc_to_tcp_request_sock(skc);
		if (req)
			e->retransmits = req->req.req.num_retrans;
	}
	bpf_seq_write(ctx->meta->seq, &i, sizeof(i));
	return 0;
}

/*
 * Each descriptor of a TCP socket: who holds it. Also the only way to a socket
 * in CLOSE, which is in no table of the kernel. By the inode, because 5.10
 * lacks bpf_sock_from_file.
 */
SEC("iter/task_file")
int st_inspect_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct inspection i = {};
	struct event *e = &i.event;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file || file->f_inode->i_sb->s_magic != SOCKFS_MAGIC)
		return 0;
	socket = file->private_data;
	sk = BPF_CORE_READ(socket, sk);
	e->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (e->family != AF_INET && e->family != AF_INET6)
		return 0;
	e->protocol = BPF_CORE_READ(sk, sk_protocol);
	e->old_state = e->new_state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (e->protocol != IPPROTO_MPTCP && (e->protocol != IPPROTO_TCP || !inspected(e->new_state)))
		return 0; /* MPTCP in any state: its subflows are in others */
	e->kind = EVENT_HOLDER;
	e->time_ns = bpf_ktime_get_boot_ns();
	e->fd = ctx->fd;
	e->flags = FLAG_TASK;
	e->pid = e->tid = task->tgid;
	e->task_start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	bpf_core_read_str(e->comm, 16, &task->group_leader->comm);
	inspect_sock(&i, sk);
	bpf_seq_write(ctx->meta->seq, &i, sizeof(i));
	return 0;
}

#endif
