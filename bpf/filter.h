/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The filter in the kernel only withholds what can never match, and says so
 * once per connection: what it cannot know yet passes, and pkg/filter decides.
 * So no connection is cut in half.
 */
#ifndef __STATED_FILTER_H
#define __STATED_FILTER_H

#define CGROUP_DEPTH 16

static __always_inline bool cgroup_matches(struct sock *sk)
{
	struct kernfs_node *node;
	int i;

	if (!bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return true; /* cannot tell */
	node = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn);
	for (i = 0; i < CGROUP_DEPTH && node; i++) {
		if (BPF_CORE_READ(node, id) == cfg_cgroup)
			return true;
		node = parent_of(node);
	}
	return false;
}

static __always_inline bool port_listed(__u16 port, __u16 side)
{
	struct port_key key = {.port = port, .side = side};

	return bpf_map_lookup_elem(&filter_ports, &key);
}

static __always_inline enum verdict filter_ports_of(__u16 lport, __u16 rport)
{
	if (cfg_ports & PORT_PEER && !port_listed(rport, PORT_PEER))
		return VERDICT_DROP;
	if (cfg_ports & PORT_ANY && port_listed(rport, PORT_ANY))
		goto local;
	/* at CLOSE -> SYN_SENT the port may not be chosen yet (tcp_v4_connect) */
	if (cfg_ports & (PORT_LOCAL | PORT_ANY) && !lport)
		return VERDICT_OPEN;
	if (cfg_ports & PORT_ANY && !port_listed(lport, PORT_ANY))
		return VERDICT_DROP;
local:
	if (cfg_ports & PORT_LOCAL) {
		if (!lport)
			return VERDICT_OPEN;
		if (!port_listed(lport, PORT_LOCAL))
			return VERDICT_DROP;
	}
	return VERDICT_KEEP;
}

static __always_inline void map_addr(struct addr_key *key, const __u8 *addr, bool v4)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->prefix_len = 128;
	if (v4) {
		key->addr[10] = key->addr[11] = 0xff;
		__builtin_memcpy(key->addr + 12, addr, 4);
	} else {
		__builtin_memcpy(key->addr, addr, 16);
	}
}

/* Owners that no later event replaces. */
static __always_inline bool owner_settled(struct sock_info *info)
{
	return info && (info->owner_source == OWNER_CONNECT || info->owner_source == OWNER_LISTEN ||
			info->owner_source == OWNER_ACCEPT);
}

static __always_inline enum verdict filter_owner(struct sock_info *info)
{
	if (!cfg_pids && !cfg_comms)
		return VERDICT_KEEP;
	if (!owner_settled(info))
		return VERDICT_OPEN;
	if (cfg_pids && !bpf_map_lookup_elem(&filter_pids, &info->owner_pid))
		return VERDICT_DROP;
	if (cfg_comms && !bpf_map_lookup_elem(&filter_comms, info->owner_comm))
		return VERDICT_DROP;
	return VERDICT_KEEP;
}

static __always_inline enum verdict filter_addr(struct event *e)
{
	struct addr_key local, peer;
	bool v4 = e->family == AF_INET;

	map_addr(&local, e->laddr, v4);
	map_addr(&peer, e->raddr, v4);
	if (cfg_family) {
		v4 = !*(__u64 *)peer.addr && *(__u32 *)(peer.addr + 8) == bpf_htonl(0xffff);
		if (v4 != (cfg_family == 4))
			return VERDICT_DROP;
	}
	if (cfg_addrs && !bpf_map_lookup_elem(&filter_addrs, &local) &&
	    !bpf_map_lookup_elem(&filter_addrs, &peer))
		return VERDICT_DROP;
	return VERDICT_KEEP;
}

static __always_inline enum verdict filter(struct event *e, struct sock *sk, struct sock_info *info)
{
	enum verdict ports, owner;

	if (!cfg_filter)
		return VERDICT_KEEP;
	if (info && info->verdict)
		return info->verdict;
	if (cfg_netns && e->netns != cfg_netns)
		goto drop;
	if (cfg_cgroup && !cgroup_matches(sk))
		goto drop;
	/* an MPTCP socket gets its addresses late */
	if (e->protocol == IPPROTO_MPTCP && (cfg_ports || cfg_addrs || cfg_family))
		return VERDICT_OPEN;
	if ((cfg_addrs || cfg_family) && filter_addr(e) == VERDICT_DROP)
		goto drop;
	ports = cfg_ports ? filter_ports_of(e->lport, e->rport) : VERDICT_KEEP;
	owner = filter_owner(info);
	if (ports == VERDICT_DROP || owner == VERDICT_DROP)
		goto drop;
	if (ports == VERDICT_OPEN || owner == VERDICT_OPEN)
		return VERDICT_OPEN;
	if (info)
		info->verdict = VERDICT_KEEP;
	return VERDICT_KEEP;
drop:
	if (info)
		info->verdict = VERDICT_DROP;
	return VERDICT_DROP;
}

#endif
