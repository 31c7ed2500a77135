/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The only way out of the kernel: reserve, fill, submit; and the only place where an event can be lost. */
#ifndef __STATED_EMIT_H
#define __STATED_EMIT_H

static __always_inline struct event *reserve(void)
{
	struct counters *n = count();
	struct event *e;

	if (!n)
		return NULL;
	n->seq++;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		__sync_fetch_and_add(&n->lost, 1); /* another task may run here meanwhile, from 7.0 on */
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->seq = n->seq;
	e->lost = n->lost;
	e->cpu = bpf_get_smp_processor_id();
	return e;
}

static __always_inline void submit(struct event *e)
{
	bpf_ringbuf_submit(e, wakeup());
}

static __always_inline void discard_filtered(struct event *e)
{
	struct counters *n = count();

	if (n)
		n->filtered++;
	bpf_ringbuf_discard(e, wakeup()); /* it takes room until it is read over */
}

/*
 * Whether the filter has decided against the connection already: then an event of it
 * takes no room in the ring, where others' may be many more than what is wanted.
 */
static __always_inline bool unwanted(struct sock_info *info)
{
	struct counters *n;

	if (!cfg_filter || !info)
		return false;
	if (!info->verdict && filter_owner(info) == VERDICT_DROP)
		info->verdict = VERDICT_DROP;
	if (info->verdict != VERDICT_DROP)
		return false;
	n = count();
	if (n) {
		n->seq++;
		n->filtered++;
	}
	return true;
}

#define WHAT(kind, old, new) ((__u32)(kind) << 16 | (__u32)(old) << 8 | (__u32)(new))
#define KIND_MASK 0x7f
#define WHAT_TW_FULL (1U << 23) /* FLAG_TW_FULL */

/* An event of a full socket that is in (or on its way from old to) a state. */
static __noinline int fill_sock(struct event *e, struct sock *sk, __u64 time_ns, __u32 what)
{
	e->time_ns = time_ns;
	e->kind = what >> 16 & KIND_MASK;
	e->old_state = what >> 8;
	e->new_state = what;
	e->flags = what & WHAT_TW_FULL ? FLAG_TW_FULL : 0;
	read_sock(e, sk);
	return 0;
}

/* The same event behind that of the current process, if it is not known yet. */
static __always_inline struct event *introduced(struct event *e, struct sock *sk, __u64 time_ns, __u32 what)
{
	struct counters *n = count();

	if (!is_news())
		return e;
	if (n)
		n->seq--;
	bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
	tell_process();
	e = reserve();
	if (e)
		fill_sock(e, sk, time_ns, what);
	return e;
}

/* Owner and identity, as remembered. */
static __always_inline void fill_info(struct event *e, struct sock *sk, struct sock_info *info)
{
	__u64 key = (__u64)sk;

	if (info && !info->id && needs_own_id(sk))
		info->id = own_id(); /* its birth was before us, or its entry was made anew */
	e->socket = id_of(sk, info);
	if (!info)
		return;
	if (info->id)
		e->flags |= FLAG_OWN_ID;
	if (e->protocol == IPPROTO_MPTCP)
		bpf_map_update_elem(&mptcp_ids, &key, &info->id, BPF_ANY);
	if (!(info->flags & INFO_SEEN)) {
		info->flags |= INFO_SEEN;
		e->flags |= FLAG_FIRST;
	}
	if (info->flags & INFO_COOKIE)
		e->flags |= FLAG_COOKIE;
	e->owner_source = info->owner_source;
	e->owner_pid = info->owner_pid;
	e->owner_start_ns = info->owner_start_ns;
	__builtin_memcpy(e->owner_comm, info->owner_comm, 16);
}

static __always_inline void fill_task(struct event *e, bool did)
{
	__u64 id = bpf_get_current_pid_tgid();

	e->pid = id >> 32;
	e->tid = id;
	if (!did) {
		bpf_get_current_comm(e->comm, sizeof(e->comm));
		return;
	}
	if (current_group(&e->task_start_ns, e->comm))
		e->flags |= FLAG_KTHREAD;
	/* an MPTCP worker closes for somebody else, the connection or a subflow of it */
	if (!(e->flags & FLAG_KTHREAD && (e->protocol == IPPROTO_MPTCP || e->flags & FLAG_MPTCP)))
		e->flags |= FLAG_TASK;
}

/*
 * When a socket in its state came into it at the latest, CLOCK_BOOTTIME, 0 unknown: when
 * the last segment came or went, as no change of state is made without one.
 */
static __always_inline __u64 in_state_since(struct sock *sk)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (sk->__sk_common.skc_state == TCP_SYN_SENT)
		return first_syn((struct tcp_sock *)sk);
	return last_segment((struct tcp_sock *)sk, bpf_ktime_get_boot_ns(), bpf_ktime_get_ns());
}

static __noinline int emit_sock(struct sock *sk, struct sock_info *info, __u64 time_ns, __u32 what)
{
	struct event *e;
	bool did;

	if (unwanted(info))
		return 0;
	e = reserve();
	if (!e)
		return 0;
	fill_sock(e, sk, time_ns, what);
	if (filter(e, sk, info) == VERDICT_DROP) {
		discard_filtered(e);
		return 0;
	}
	did = e->kind == EVENT_STATE && task_did(sk, e->old_state, e->new_state);
	if (did) {
		e = introduced(e, sk, time_ns, what);
		if (!e)
			return 0;
	}
	fill_task(e, did);
	if (e->kind == EVENT_SNAPSHOT)
		e->began_ns = in_state_since(sk);
	fill_info(e, sk, info);
	e->reset = what >> 24;
	submit(e);
	return 0;
}

/* A birth that could not be told at once (st_set_state) comes before whatever else is told of the socket. */
static __always_inline void tell_birth(struct sock *sk, struct sock_info *info)
{
	__u64 born = info->born_ns;

	if (!born)
		return;
	info->born_ns = 0;
	emit_sock(sk, info, born, WHAT(EVENT_STATE, TCP_LISTEN, TCP_SYN_RECV));
}

#endif
