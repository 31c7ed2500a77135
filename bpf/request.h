/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Half-open connections, and accept queues that are full. */
#ifndef __STATED_REQUEST_H
#define __STATED_REQUEST_H

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

	/* DCCP queues its own here (dccp_v4_conn_request, before 6.16) */
	if (sk->sk_protocol != IPPROTO_TCP || !may_tell(bpf_ktime_get_boot_ns()))
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

/*
 * Whether a RST of ours goes with the end of a request: tcp_check_req sends it right
 * before, on this CPU. Many a RST of a listener ends none, as that for an
 * acknowledgement of nothing.
 */
static __always_inline bool is_reset(struct counters *n, struct sock *listener, __be16 port)
{
	return n && n->resetting == (__u64)listener && n->resetting_port == port &&
	       bpf_ktime_get_boot_ns() - n->resetting_ns < TENTH_NS;
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
	cause = take_end(req);
	if (!unlinked || !id) /* somebody else took it out, or it was not told of */
		return 0;
	if (otherwise == END_TIMER)
		cause = 0; /* what should have ended it did not */
	else if (!cause && is_reset(n, sk, skc->skc_dport))
		cause = END_RESET_SENT;
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
	struct tcp_request_sock *req = (void *)sk;

	if (sk->__sk_common.skc_state == TCP_NEW_SYN_RECV && (__u8)ctx[2] && BPF_CORE_READ(req, snt_isn) == seq)
		mark_end(sk, END_ICMP);
	return 0;
}

/* A RST that a listener sends because a handshake went wrong: to whom. */
static __always_inline void reset_by_listener(struct sock *listener, struct sk_buff *skb)
{
	struct counters *n = count();
	unsigned char *header;
	__be16 port;

	if (!skb || !n)
		return;
	header = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, transport_header);
	if (bpf_probe_read_kernel(&port, sizeof(port), header))
		return;
	n->resetting = (__u64)listener;
	n->resetting_port = port;
	n->resetting_ns = bpf_ktime_get_boot_ns();
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

#endif
