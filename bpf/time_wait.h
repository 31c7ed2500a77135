/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a connection leaves behind: from the mini socket's birth to its end. */
#ifndef __STATED_TIME_WAIT_H
#define __STATED_TIME_WAIT_H

#define END_EARLY 0x80 /* beside a cause in end_causes: inet_twsk_deschedule_put was called */

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
		mark_end(tw, END_RESET);
	else if (tw->tw_substate == TCP_FIN_WAIT2 && (fin_syn_rst & 2 || skb->len > (header[12] >> 4) * 4))
		mark_end(tw, END_RESET_SENT);
	else if (fin_syn_rst & 2)
		mark_end(tw, END_SYN);
	return 0;
}

/* Whether connect() may have the addresses of a time-wait socket: yes ends it. */
SEC("fexit/tcp_twsk_unique")
int BPF_PROG(st_tw_unique, struct sock *sk, struct sock *sktw, void *twp, int yes)
{
	if (yes)
		mark_end(sktw, END_REUSED);
	return 0;
}

/* SOCK_DESTROY, or bpf_sock_destroy(). */
SEC("fentry/tcp_abort")
int BPF_PROG(st_abort, struct sock *sk)
{
	__u8 state = sk->__sk_common.skc_state;

	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		mark_end(sk, END_KILLED);
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
	__u64 key = (__u64)tw;
	__u8 *cause = bpf_map_lookup_elem(&end_causes, &key);

	if (cause)
		*cause |= END_EARLY;
	else
		mark_end(tw, END_EARLY | (netns_gone(tw->__tw_common.skc_net.net) ? END_NETNS : END_UNKNOWN));
	return 0;
}

/* The end, whatever the cause: without END_EARLY, the timer. */
SEC("fentry/inet_twsk_kill")
int BPF_PROG(st_tw_kill, struct inet_timewait_sock *tw)
{
	struct sock_common *skc = &tw->__tw_common;
	__u8 cause = take_end(tw);
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
