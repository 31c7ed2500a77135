/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef __STATED_MAPS_H
#define __STATED_MAPS_H

/*
 * One ring for all CPUs: the order of reservation is the causal order of the
 * events of a socket, since all of them happen under its lock. Full: the event
 * is dropped and counted (counters.lost, event.lost).
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 * 1024 * 1024); /* pkg/probe sets it */
} events SEC(".maps");

/*
 * A wake-up costs microseconds, so the reader polls with a deadline and is
 * woken only when the data waiting crosses a mark. A crossing missed in a race
 * costs one deadline.
 */
static __always_inline __u64 wakeup(void)
{
	__u64 waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);

	if (waiting >= cfg_wakeup_bytes && waiting < cfg_wakeup_bytes + 4 * sizeof(struct event))
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} totals SEC(".maps");

/* What the kernel side remembers of a socket. */
struct sock_info {
	__u64 id; /* our own number; 0: the cookie serves */
	__u64 owner_start_ns;
	__u64 born_ns; /* time of LISTEN -> SYN_RECV, not yet told */
	__u32 owner_pid;
	__u8 owner_source;
	__u8 verdict; /* of the filter: enum verdict */
	__u8 flags;   /* enum info_flag */
	__u8 taken;   /* the last CHANGE, which st_set_state or st_state_again took */
	__u8 owner_comm[16];
};

enum info_flag {
	INFO_SEEN = 1 << 0,   /* an event was made of it */
	INFO_HELD = 1 << 1,   /* CLOSE while a descriptor was open */
	INFO_COOKIE = 1 << 2, /* made of a SYN cookie */
};

/*
 * Dies with its socket: no stale entry, no address reuse. Inserted at the first
 * event. BPF_F_CLONE gives a child its listener's entry (sk_clone_lock), which
 * is how a connection that nobody accepted yet names its listener's owner.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct sock_info);
} sock_infos SEC(".maps");

/*
 * The same by socket address, where tracing programs may not use socket
 * storage, or it had no memory. Inserted at the first event, begun anew at each birth, deleted at
 * tcp_destroy_sock, or at -> CLOSE where that is all we see. Full: the entry
 * unused for longest goes, and its socket is FLAG_FIRST again. The address
 * never leaves the kernel.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct sock_info);
} sock_infos_lru SEC(".maps");

/*
 * The entry that tcp_destroy_sock deleted last on this CPU: tcp_rcv_state_process
 * ends an orphan before the RST is sent for it. Overwritten, never deleted.
 */
struct destroyed {
	__u64 sk;
	struct sock_info info;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct destroyed);
} last_destroyed SEC(".maps");

/*
 * Numbers of MPTCP connections by their address, as subflows point to them.
 * Written at each event of the connection. Never deleted, as nothing tells that
 * the memory is free: whoever has the address next writes its own before it has
 * a subflow. Full: the subflows of the connection unused for longest are told
 * without it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} mptcp_ids SEC(".maps");

/*
 * Processes of which struct process has been told, and what ran where then.
 * Full: the one unused for longest is told again. Nothing deletes an entry, as
 * the time of start makes its key good for ever.
 */
struct process_key {
	__u64 start_ns;
	__u32 pid;
	__u32 _pad;
};

struct told {
	__u64 groups; /* address of its set of control groups, only to be compared */
	__u64 image;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct process_key);
	__type(value, struct told);
} told SEC(".maps");

enum verdict {
	VERDICT_OPEN, /* not all is known that the filter asks for: let it pass */
	VERDICT_KEEP,
	VERDICT_DROP,
};

enum port_side {
	PORT_LOCAL = 1 << 0,
	PORT_PEER = 1 << 1,
	PORT_ANY = 1 << 2,
};

struct port_key {
	__u16 port; /* host order */
	__u16 side; /* one of enum port_side */
};

struct addr_key {
	__u32 prefix_len;
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
};

/* Filters, filled by pkg/probe before attaching. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct port_key);
	__type(value, __u8);
} filter_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct addr_key);
	__type(value, __u8);
} filter_addrs SEC(".maps");

/* With cfg_tree, st_fork inserts and st_exit deletes. Full: st_fork fails, counted as storage_failed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u32);
	__type(value, __u8);
} filter_pids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u8[16]);
	__type(value, __u8);
} filter_comms SEC(".maps");

#endif
