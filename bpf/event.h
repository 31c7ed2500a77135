/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The wire contract with pkg/event: one fixed-size record for every kind of
 * event. Largest members first, padding explicit, no bitfields; the Go side
 * checks names, sizes and offsets against the BTF of this object.
 */
#ifndef __STATED_EVENT_H
#define __STATED_EVENT_H

/* What happened: event.Kind. */
enum event_kind {
	EVENT_STATE = 1,
	EVENT_SNAPSHOT,
	EVENT_DESTROY,
	EVENT_RESET_SENT,
	EVENT_RESET_RECEIVED,
	EVENT_ACCEPT,
	EVENT_HOLDER,
	EVENT_REQUEST,
	EVENT_REQUEST_END,
	EVENT_TIME_WAIT,
	EVENT_TIME_WAIT_END,
	EVENT_OVERFLOW,
	EVENT_SNAPSHOT_BEGIN,
	EVENT_SNAPSHOT_DONE,
	EVENT_PROCESS, /* struct process, nothing else is */
};

/* Facts of the moment: event.Flags. */
enum event_flag {
	FLAG_TASK = 1 << 0,	 /* the current task caused it */
	FLAG_DEAD = 1 << 1,	 /* SOCK_DEAD */
	FLAG_DONE = 1 << 2,	 /* SOCK_DONE: the peer's FIN has come */
	FLAG_MPTCP = 1 << 3,	 /* subflow */
	FLAG_OWN_ID = 1 << 4,	 /* socket is not a cookie */
	FLAG_NO_SOCKET = 1 << 5, /* sk_socket == NULL */
	FLAG_KTHREAD = 1 << 6,
	FLAG_PARTIAL = 1 << 7,	/* classic tracepoint: no numbers */
	FLAG_FIRST = 1 << 8,	/* not met before */
	FLAG_MINI = 1 << 9,	/* mini socket */
	FLAG_ACKED = 1 << 10,	/* request: the third packet has come */
	FLAG_DEFER = 1 << 11,	/* request: its listener has TCP_DEFER_ACCEPT */
	FLAG_COOKIE = 1 << 12,	/* born of a SYN cookie */
	FLAG_KERNEL = 1 << 13,	/* the kernel's own */
	FLAG_TW_FULL = 1 << 14, /* the end: there was hardly room for one more in TIME_WAIT, if any */
};

/* How the owner is known: event.OwnerSource. */
enum owner_source {
	OWNER_UNKNOWN,
	OWNER_CONNECT,
	OWNER_LISTEN,
	OWNER_ACCEPT,
	OWNER_CLOSE,
	OWNER_READ,
	OWNER_HOLDER,
	OWNER_LISTENER,
};

/* Why a RST was sent: event.ResetReason. */
enum reset_reason {
	RESET_UNKNOWN,
	RESET_NO_SOCKET,
	RESET_ABORT_ON_DATA,
	RESET_TIME_WAIT,
	RESET_INVALID_SYN,
	RESET_ABORT_ON_CLOSE,
	RESET_ABORT_ON_LINGER,
	RESET_ABORT_ON_MEMORY,
	RESET_STATE,
	RESET_KEEPALIVE,
	RESET_DISCONNECT_DATA,
	RESET_PROTOCOL,
};

/* What ended a mini socket: event.EndCause. */
enum end_cause {
	END_UNKNOWN,
	END_TIMER,
	END_RESET,	/* by a RST of the peer */
	END_RESET_SENT, /* by a RST of ours */
	END_SYN,	/* a SYN took the addresses for a new connection */
	END_REUSED,	/* connect() took the port */
	END_KILLED,	/* SOCK_DESTROY */
	END_NETNS,	/* with its network namespace */
	END_LISTENER,	/* request: its listener listens no more */
	END_ICMP,
};

struct event {
	__u64 time_ns;	      /* CLOCK_BOOTTIME */
	__u64 seq;	      /* attempts to emit on this CPU, failed ones included */
	__u64 socket;	      /* cookie, or our own number with FLAG_OWN_ID */
	__u64 cgroup;	      /* of the socket, 0 unknown */
	__u64 task_start_ns;  /* of the current thread group, with FLAG_TASK */
	__u64 owner_start_ns; /* 0 unknown */
	__u64 began_ns;	      /* EVENT_SNAPSHOT, EVENT_HOLDER: no later than that it came into its state, 0 unknown */
	__u64 bytes_sent;     /* EVENT_OVERFLOW: SYNs dropped since we watch */
	__u64 bytes_resent;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u64 mptcp; /* socket of the MPTCP connection that this subflow is of, 0 unknown */
	__u32 lost;  /* failed attempts on this CPU so far */
	__u32 netns; /* inode */
	__u32 uid;
	__u32 pid; /* current thread group */
	__u32 tid; /* current thread */
	__u32 owner_pid;
	__u32 srtt_us;
	__u32 retransmits;
	__u32 unread; /* bytes, FIN included; LISTEN: queue length */
	__u32 unsent; /* bytes; LISTEN: queue limit */
	__s32 fd;
	__u8 laddr[16]; /* network order; AF_INET in the first four */
	__u8 raddr[16];
	__u16 lport; /* host order */
	__u16 rport; /* host order */
	__u16 family;
	__u16 protocol;
	__u16 err;
	__u16 cpu;
	__u16 flags;
	__u8 kind;
	__u8 old_state;
	__u8 new_state;
	__u8 shutdown;
	__u8 owner_source;
	__u8 reset; /* EVENT_REQUEST_END, EVENT_TIME_WAIT_END: enum end_cause */
	__u8 comm[16];
	__u8 owner_comm[16];
};

_Static_assert(sizeof(struct event) == 224, "struct event has a hole, or grew");

#define PATH_BYTES 256

/*
 * A program that runs in a process, told before the first event that it is part
 * of: event.Process. The record is told from struct event by its size. Paths
 * are built from their end, so they end where their field ends.
 */
struct process {
	__u64 time_ns;
	__u64 start_ns; /* of the thread group, CLOCK_BOOTTIME */
	__u64 cgroup;	/* v2 */
	__u32 pid;
	__u32 ppid;
	__u32 inner_pid; /* in its own pid namespace */
	__u32 pidns;	 /* inode */
	__u32 uid;	 /* effective */
	__u32 image;	 /* counts execve() */
	__u16 exe_at;	 /* where in exe it begins; above PATH_BYTES: unknown */
	__u16 group_at;
	__u8 exe_deleted;
	__u8 _pad[3];
	__u8 comm[16]; /* of the group leader */
	__u8 exe[PATH_BYTES];
	__u8 group[PATH_BYTES];
	__u8 slack[PATH_BYTES]; /* as the verifier does not see that writes end before */
};

_Static_assert(sizeof(struct process) == 72 + 3 * PATH_BYTES, "struct process has a hole, or grew");
_Static_assert(sizeof(struct process) != sizeof(struct event), "told apart by size");

/* A socket that was looked at on request: what the iterators of inspect.h write. */
struct inspection {
	struct event event;
	__u64 inode;	       /* of struct socket, as in /proc/PID/fd; 0 none */
	__u64 last_segment_ns; /* CLOCK_BOOTTIME of the last segment in or out, 0 unknown */
	__u64 now_mono_ns;     /* CLOCK_MONOTONIC and jiffies when looked at */
	__u64 now_jiffies;
	__u32 last_received; /* jiffies, low half; 0 no data yet */
	__u32 last_sent;     /* of a mini socket: when its timer expires */
	__u32 last_acked;    /* of the last acknowledgement that came */
	__u32 references;    /* to the open file, 0 none */
	__u16 facts;	     /* enum inspection_fact */
	__u8 timeouts;	     /* of the retransmission timer in a row, nothing acknowledged since */
	__u8 probes;	     /* of the peer's window or keep-alives, not answered yet */
	__u32 _pad;
};

enum inspection_fact {
	INSPECTED_WAITED = 1 << 0, /* somebody sleeps on the socket, or polls it */
	INSPECTED_OPENED = 1 << 1, /* the peer's SYN has come: it was connected, now or before */
	INSPECTED_SHUT = 1 << 2,   /* the peer's window is closed, and was probed */
};

/* How to get into a network namespace: what the iterators of netns.h write. */
struct netns_way {
	__u32 inode;
	__u32 pid;
	__u32 tid;
	__s32 fd;     /* of the process; -1: the thread lives in it */
	__u32 socket; /* fd is a socket of it; 0: it is the namespace itself */
};

#define STACK_FRAMES 28 /* what a program may have on its stack, with 6 words of top, on 5.10 */
#define STACK_TOP 6

/* Where a socket was opened: event.Stack. */
struct stack {
	__u64 task_start_ns; /* of the thread group */
	__u64 start_code;    /* of the program that ran: another one after execve() */
	__u64 start_stack;
	__u64 top[STACK_TOP];	       /* words at the stack pointer, amd64 only; zero unknown */
	__u64 addresses[STACK_FRAMES]; /* innermost first */
	__u32 pid;
	__u32 frames; /* addresses that are set */
	__u8 comm[16];
};

/* Counters of one CPU: probe.Stats. */
struct counters {
	__u64 seq;
	__u64 lost;	      /* no room in the ring buffer */
	__u64 filtered;	      /* withheld on request */
	__u64 storage_failed; /* no memory to remember a socket */
	__u64 ids;	      /* own socket numbers given out */
	__u64 requests;	      /* SYNs that were queued */
	__u64 untold;	      /* of those, not told of: there were too many */
	__u64 window_ns;      /* when the present tenth of a second began */
	__u64 in_window;      /* requests since then */
	__u64 completing;     /* address of the request that becomes a connection right now */
	__u64 resetting;      /* address of the listener that sent a RST last */
	__u64 resetting_port; /* of the peer, in network order */
	__u64 resetting_ns;
	__u64 stacks_lost; /* no room to remember a stack */
	__u64 made_good;   /* changes of state that st_set_state was skipped for and st_state_again told */
};

#endif
