/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Sockets that are no full sockets: a request is a SYN that was answered, a
 * time-wait socket what a connection leaves behind, in FIN_WAIT2 or TIME_WAIT. They
 * have a struct sock_common, the cookie of the connection, and neither owner nor
 * memory of ours. Beside iterators only fentry and fexit see them (request.h,
 * time_wait.h), where a bool among the arguments is one byte, with anything above it.
 */
#ifndef __STATED_MINI_H
#define __STATED_MINI_H

/*
 * Why a mini socket is about to end, until it does, by its address. Inserted where
 * the cause shows, deleted at the end; what never ended because of it goes when the
 * map is full.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u8);
} end_causes SEC(".maps");

static __always_inline void mark_end(void *address, __u8 cause)
{
	__u64 key = (__u64)address;

	bpf_map_update_elem(&end_causes, &key, &cause, BPF_ANY);
}

/* 0: none */
static __always_inline __u8 take_end(void *address)
{
	__u64 key = (__u64)address;
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

#endif
