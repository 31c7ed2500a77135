/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What only fentry and fexit can see: sockets that are no full sockets. A
 * request is a SYN that was answered; a time-wait socket is what a connection
 * leaves behind, in FIN_WAIT2 or TIME_WAIT. They have a struct sock_common,
 * the cookie of the connection, and neither owner nor memory of ours.
 *
 * A bool among the arguments is one byte, with anything above it.
 */
#ifndef __STATED_TRAMPOLINE_H
#define __STATED_TRAMPOLINE_H

/*
 * Why a mini socket is about to end, until it does: by its address, for a
 * request that we reset by its listener's address and the peer's port.
 * Inserted where the cause shows, deleted at the end; what never ended because
 * of it goes when the map is full.
 */
struct end_key {
	__u64 address;
	__u64 peer_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct end_key);
	__type(value, __u8);
} end_causes SEC(".maps");

/*
 * SYNs that a listener's full queue made the kernel drop, by the listener's
 * cookie, which is never used again: what nobody adds to goes when it is full.
 */
struct overflow {
	__u64 dropped;
	__u64 told;
	__u64 told_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct overflow);
} overflows SEC(".maps");

#define TENTH_NS 100000000ULL
#define END_EARLY 0x80 /* beside a cause in end_causes: inet_twsk_deschedule_put was called */

static __always_inline void mark_end(void *address, __u16 peer_port, __u8 cause)
{
	struct end_key key = {.address = (__u64)address, .peer_port = peer_port};

	bpf_map_update_elem(&end_causes, &key, &cause, BPF_ANY);
}

/* 0: none */
static __always_inline __u8 take_end(void *address, __u16 peer_port)
{
	struct end_key key = {.address = (__u64)address, .peer_port = peer_port};
	__u8 *found = bpf_map_lookup_elem(&end_causes, &key), cause;

	if (!found)
		return 0;
	cause = *found;
	bpf_map_delete_elem(&end_causes, &key);
	return cause;
}

static __always_inline void read_mini(struct event *e, struct sock_common *skc)
{
	e->family = skc->skc_family;
	e->protocol = IPPROTO_TCP;
	e->netns = skc->skc_net.net->ns.inum;
	if (e->family == AF_INET6) {
		bpf_probe_read_kernel(e->laddr, 16, &skc->skc_v6_rcv_saddr);
		bpf_probe_read_kernel(e->raddr, 16, &skc->skc_v6_daddr);
	} else {
		*(__be32 *)e->laddr = skc->skc_rcv_saddr;
		*(__be32 *)e->raddr = skc->skc_daddr;
	}
	e->lport = skc->skc_num;
	e->rport = bpf_ntohs(skc->skc_dport);
	e->flags |= FLAG_MINI;
}

/* What can be told of a mini socket: it has no owner and no cgroup. */
static __always_inline bool mini_wanted(struct event *e)
{
	if (!cfg_filter)
		return true;
	if (cfg_netns && e->netns != cfg_netns)
		return false;
	if ((cfg_addrs || cfg_family) && filter_addr(e) == VERDICT_DROP)
		return false;
	return !cfg_ports || filter_ports_of(e->lport, e->rport) != VERDICT_DROP;
}

static __always_inline struct event *reserve_mini(struct sock_common *skc, __u64 id, __u32 what)
{
	struct event *e = reserve();

	if (!e)
		return NULL;
	e->time_ns = bpf_ktime_get_boot_ns();
	e->socket = id;
	e->kind = what >> 16;
	e->old_state = what >> 8;
	e->new_state = what;
	e->reset = what >> 24;
	read_mini(e, skc);
	return e;
}

/* ------------------------------------------------------------- requests -- */

/* Whether a flood of SYNs leaves room to tell of one more. All are counted. */
static __always_inline bool may_tell(__u64 now)
{
	struct counters *n = count();

	if (!n)
		return false;
	n->requests++;
	if (now - n->window_ns >= TENTH_NS) {
		n->window_ns = now;
		n->in_window = 0;
	}
	if (++n->in_window <= cfg_requests)
		return true;
	n->untold++;
	return false;
}

/*
 * A SYN was queued. Its cookie, which the connection and its time-wait socket
 * inherit, is made here: a request without one was not told of.
 */
SEC("fentry/inet_csk_reqsk_queue_hash_add")
int BPF_PROG(st_request, struct sock *sk, struct request_sock *req)
{
	struct sock_common *skc = &req->__req_common;
	struct sock_info *info;
	struct event *e;

	if (!may_tell(bpf_ktime_get_boot_ns()))
		return 0;
	e = reserve_mini(skc, 0, WHAT(EVENT_REQUEST, TCP_LISTEN, TCP_NEW_SYN_RECV));
	if (!e)
		return 0;
	if (filter(e, sk, NULL) == VERDICT_DROP) {
		discard_filtered(e);
		return 0;
	}
	e->socket = bpf_get_socket_cookie(req);
	e->uid = sk->sk_uid.val;
	e->cgroup = cgroup_of(sk);
	info = info_of(sk, false);
	if (info && info->owner_pid) {
		e->owner_source = OWNER_LISTENER;
		e->owner_pid = info->owner_pid;
		e->owner_start_ns = info->owner_start_ns;
		__builtin_memcpy(e->owner_comm, info->owner_comm, 16);
	}
	submit(e);
	return 0;
}

/*
 * The third packet made a connection of a request (inet_csk_complete_hashdance
 * in net/ipv4/inet_connection_sock.c), which drops it on this CPU before it
 * returns: that end is no news.
 */
SEC("fentry/inet_csk_complete_hashdance")
int BPF_PROG(st_complete, struct sock *sk, struct sock *child, struct request_sock *req)
{
	struct counters *n = count();

	if (n && (__u8)ctx[3])
		n->completing = (__u64)req;
	return 0;
}

static __always_inline int request_end(struct sock *sk, struct request_sock *req, bool unlinked, __u8 otherwise)
{
	struct sock_common *skc = &req->__req_common;
	struct inet_request_sock *ireq = (void *)req;
	struct tcp_sock *listener;
	struct counters *n = count();
	struct event *e;
	__u64 id = skc->skc_cookie.counter;
	__u8 cause;

	if (n && n->completing == (__u64)req) {
		n->completing = 0;
		return 0;
	}
	if (!unlinked)
		return 0; /* somebody else took it out */
	cause = take_end(req, 0);
	if (!cause)
		cause = take_end(sk, bpf_ntohs(skc->skc_dport));
	if (!id)
		return 0;
	if (!cause && sk->__sk_common.skc_state != TCP_LISTEN)
		cause = END_LISTENER;
	if (!cause)
		cause = otherwise;
	if (cause == END_KILLED)
		introduce();
	e = reserve_mini(skc, id, WHAT(EVENT_REQUEST_END, TCP_NEW_SYN_RECV, TCP_CLOSE) | cause << 24);
	if (!e)
		return 0;
	if (BPF_CORE_READ_BITFIELD_PROBED(ireq, acked))
		e->flags |= FLAG_ACKED;
	listener = bpf_skc_to_tcp_sock(sk);
	if (listener && listener->inet_conn.icsk_accept_queue.rskq_defer_accept)
		e->flags |= FLAG_DEFER;
	e->retransmits = req->num_retrans;
	e->unread = sk->sk_ack_backlog;
	e->unsent = sk->sk_max_ack_backlog;
	fill_task(e, cause == END_KILLED);
	submit(e);
	return 0;
}

SEC("fexit/__inet_csk_reqsk_queue_drop")
int st_req_drop(__u64 *ctx)
{
	/* without the timer or another mark, what is left is tcp_check_req on a RST */
	return request_end((void *)ctx[0], (void *)ctx[1], (__u8)ctx[3], (__u8)ctx[2] ? END_TIMER : END_RESET);
}

/* Before 6.12 and its stable fixes (e8c526f2bdf1), the timer comes through here as well. */
SEC("fexit/inet_csk_reqsk_queue_drop")
int st_req_drop_old(__u64 *ctx)
{
	return request_end((void *)ctx[0], (void *)ctx[1], (__u8)ctx[2], END_UNKNOWN);
}

/* An ICMP error that ends a request. */
SEC("fentry/tcp_req_err")
int BPF_PROG(st_req_err, struct sock *sk, __u32 seq)
{
	if (sk->__sk_common.skc_state == TCP_NEW_SYN_RECV && (__u8)ctx[2])
		mark_end(sk, 0, END_ICMP);
	return 0;
}

/* A RST that a listener sends because a handshake went wrong: to whom. */
static __always_inline void reset_by_listener(struct sock *listener, struct sk_buff *skb)
{
	unsigned char *header;
	__be16 port;

	if (!skb)
		return;
	header = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, transport_header);
	if (!bpf_probe_read_kernel(&port, sizeof(port), header))
		mark_end(listener, bpf_ntohs(port), END_RESET_SENT);
}

static __always_inline void tell_overflow(struct sock *sk, struct overflow *o, __u64 now)
{
	struct event *e;

	if (o->dropped == o->told)
		return;
	e = reserve();
	if (!e)
		return;
	e->time_ns = now;
	e->kind = EVENT_OVERFLOW;
	e->old_state = e->new_state = TCP_LISTEN;
	read_sock(e, sk);
	if (filter(e, sk, info_of(sk, false)) == VERDICT_DROP) {
		discard_filtered(e);
		return;
	}
	fill_info(e, sk, info_of(sk, false));
	e->bytes_sent = o->dropped;
	o->told = o->dropped;
	o->told_ns = now;
	submit(e);
}

/* What was counted and not told yet, when the listener is looked at. */
static __always_inline void flush_overflow(struct sock *sk, __u64 now)
{
	__u64 key = (__u64)sk->__sk_common.skc_cookie.counter;
	struct overflow *o = bpf_map_lookup_elem(&overflows, &key);

	if (o)
		tell_overflow(sk, o, now);
}

/*
 * A SYN for a listener whose queue of accepted connections is full is dropped
 * (sk_acceptq_is_full in tcp_conn_request, net/ipv4/tcp_input.c). All are
 * counted; told at most ten times a second for each listener.
 */
SEC("fentry/tcp_conn_request")
int BPF_PROG(st_conn_request, void *rsk_ops, void *af_ops, struct sock *sk)
{
	struct overflow *o, fresh = {};
	__u64 key, now;

	if (sk->sk_ack_backlog <= sk->sk_max_ack_backlog)
		return 0;
	key = bpf_get_socket_cookie(sk);
	bpf_map_update_elem(&overflows, &key, &fresh, BPF_NOEXIST);
	o = bpf_map_lookup_elem(&overflows, &key);
	if (!o)
		return 0;
	__sync_fetch_and_add(&o->dropped, 1);
	now = bpf_ktime_get_boot_ns();
	if (now - o->told_ns >= TENTH_NS)
		tell_overflow(sk, o, now);
	return 0;
}

static __always_inline int made_of_cookie(struct sock *child)
{
	struct sock_info *info;

	if (!child)
		return 0;
	info = info_of(child, false);
	if (info)
		info->flags |= INFO_COOKIE;
	return 0;
}

/* A connection made of a SYN cookie never was a request. The child is what is returned. */
SEC("fexit/tcp_get_cookie_sock")
int BPF_PROG(st_cookie, struct sock *sk, void *skb, void *req, void *dst, struct sock *child)
{
	return made_of_cookie(child);
}

/* Some kernels have one argument more. */
SEC("fexit/tcp_get_cookie_sock")
int BPF_PROG(st_cookie_tsoff, struct sock *sk, void *skb, void *req, void *dst, __u32 tsoff, struct sock *child)
{
	return made_of_cookie(child);
}

/* --------------------------------------------------------------- accept -- */

/* The current task has the socket: it accepted it, or reads from it. */
static __always_inline int took(struct sock *sk, struct sock_info *info, __u8 source, __u8 kind)
{
	__u8 state = sk->__sk_common.skc_state;
	__u32 what = WHAT(kind, state, state);
	struct event *e;
	__u64 now;

	if (!info->id && needs_own_id(sk))
		info->id = own_id();
	info->owner_source = source;
	info->owner_pid = bpf_get_current_pid_tgid() >> 32;
	current_group(&info->owner_start_ns, info->owner_comm);
	tell_birth(sk, info);
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

/* accept() gives the connection to a struct socket (sock_graft), by system call or io_uring. */
SEC("fentry/security_sock_graft")
int BPF_PROG(st_graft, struct sock *sk, struct socket *parent)
{
	struct sock_info *info;

	if (sk->sk_protocol != IPPROTO_TCP && sk->sk_protocol != IPPROTO_MPTCP)
		return 0;
	if (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6)
		return 0;
	if (BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), flags) & PF_WQ_WORKER)
		return 0; /* mostly for somebody else: SMC */
	info = info_of(sk, true);
	return info ? took(sk, info, OWNER_ACCEPT, EVENT_ACCEPT) : 0;
}

/*
 * A process reads: the first one owns a socket of which nothing better is
 * known. Often called, so pkg/probe leaves it out where st_graft works.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(st_read, struct sock *sk)
{
	struct sock_info *info = info_of(sk, true);
	struct task_struct *task;

	if (!info || !owner_weak(info))
		return 0;
	task = (void *)bpf_get_current_task();
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return 0; /* for somebody else */
	return took(sk, info, OWNER_READ, EVENT_HOLDER);
}

/* ------------------------------------------------------------ time-wait -- */

/* The time-wait socket takes over the cookie only if there is one by now (inet_twsk_alloc). */
SEC("fentry/tcp_time_wait")
int BPF_PROG(st_time_wait, struct sock *sk)
{
	if (sk->__sk_common.skc_cookie.counter)
		return 0;
	if (sk->sk_protocol == IPPROTO_TCP)
		bpf_get_socket_cookie(sk);
	return 0;
}

/* Armed: the start, or the change of FIN_WAIT2 to TIME_WAIT, or a FIN that came again. */
SEC("fentry/__inet_twsk_schedule")
int BPF_PROG(st_tw_schedule, struct inet_timewait_sock *tw)
{
	struct sock_common *skc = &tw->__tw_common;
	struct event *e;

	if (!skc->skc_cookie.counter)
		return 0;
	e = reserve_mini(skc, skc->skc_cookie.counter,
			 WHAT(EVENT_TIME_WAIT, (__u8)ctx[2] ? TCP_TIME_WAIT : 0, tw->tw_substate));
	if (!e)
		return 0;
	if (!mini_wanted(e)) {
		discard_filtered(e);
		return 0;
	}
	submit(e);
	return 0;
}

/* A segment for a time-wait socket: why it may end now. TCP's flags are byte 13 of its header. */
SEC("fentry/tcp_timewait_state_process")
int BPF_PROG(st_tw_segment, struct inet_timewait_sock *tw, struct sk_buff *skb, void *th)
{
	__u8 header[14];
	__u8 fin_syn_rst;

	if (bpf_probe_read_kernel(header, sizeof(header), th))
		return 0;
	fin_syn_rst = header[13] & 7;
	if (fin_syn_rst & 4)
		mark_end(tw, 0, END_RESET);
	else if (tw->tw_substate == TCP_FIN_WAIT2 && (fin_syn_rst & 2 || skb->len > (header[12] >> 4) * 4))
		mark_end(tw, 0, END_RESET_SENT);
	else if (fin_syn_rst & 2)
		mark_end(tw, 0, END_SYN);
	return 0;
}

/* Whether connect() may have the addresses of a time-wait socket: yes ends it. */
SEC("fexit/tcp_twsk_unique")
int BPF_PROG(st_tw_unique, struct sock *sk, struct sock *sktw, void *twp, int yes)
{
	if (yes)
		mark_end(sktw, 0, END_REUSED);
	return 0;
}

/* SOCK_DESTROY, or bpf_sock_destroy(). */
SEC("fentry/tcp_abort")
int BPF_PROG(st_abort, struct sock *sk)
{
	__u8 state = sk->__sk_common.skc_state;

	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		mark_end(sk, 0, END_KILLED);
	return 0;
}

static __always_inline bool netns_gone(struct net *net)
{
	if (bpf_core_field_exists(net->ns.__ns_ref))
		return !BPF_CORE_READ(net, ns.__ns_ref.refs.counter);
	if (bpf_core_field_exists(net->ns.count))
		return !BPF_CORE_READ(net, ns.count.refs.counter);
	return false;
}

/* Ends before its time, for whatever reason. */
SEC("fentry/inet_twsk_deschedule_put")
int BPF_PROG(st_tw_early, struct inet_timewait_sock *tw)
{
	struct end_key key = {.address = (__u64)tw};
	__u8 *cause = bpf_map_lookup_elem(&end_causes, &key);

	if (cause)
		*cause |= END_EARLY;
	else
		mark_end(tw, 0, END_EARLY | (netns_gone(tw->__tw_common.skc_net.net) ? END_NETNS : END_UNKNOWN));
	return 0;
}

/* The end, whatever the cause: without END_EARLY, the timer. */
SEC("fentry/inet_twsk_kill")
int BPF_PROG(st_tw_kill, struct inet_timewait_sock *tw)
{
	struct sock_common *skc = &tw->__tw_common;
	__u8 cause = take_end(tw, 0);
	struct event *e;

	if (!skc->skc_cookie.counter)
		return 0;
	cause = cause & END_EARLY ? cause & ~END_EARLY : END_TIMER;
	if (cause == END_KILLED || cause == END_REUSED)
		introduce();
	e = reserve_mini(skc, skc->skc_cookie.counter,
			 WHAT(EVENT_TIME_WAIT_END, tw->tw_substate, TCP_CLOSE) | cause << 24);
	if (!e)
		return 0;
	fill_task(e, cause == END_KILLED || cause == END_REUSED);
	submit(e);
	return 0;
}

#endif
