/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where in the code a socket was opened: the user's stack at connect() and at
 * accept(), in the context of the task that called.
 *
 * Each socket has its addresses in an entry of its own. A map of stack traces
 * (bpf_get_stackid) would share equal ones, but it keeps one stack for each
 * bucket: two that fall into the same bucket either lose the second for good,
 * or take its place (BPF_F_REUSE_STACKID), or, compared by hash alone
 * (BPF_F_FAST_STACK_CMP), pass for the same. Here nothing is shared, so nothing
 * can be mistaken, and user space puts equal stacks together. They are written
 * on the BPF stack first: a buffer per CPU can be overwritten by who preempts us,
 * and an entry of the table be another socket's by the time that it is filled,
 * where a thread closes what another one has just accepted.
 */
#ifndef __STATED_STACK_H
#define __STATED_STACK_H

/*
 * By the number of the socket, deleted when the socket is destroyed. Not LRU:
 * what is not used for longest is what leaks. Full: the new socket has none,
 * counted as stacks_lost. pkg/probe makes it of one entry where it is off.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct stack);
} stacks SEC(".maps");

struct pt_regs___x86 {
	unsigned long ip;
	unsigned long sp;
} __attribute__((preserve_access_index));

/*
 * What lies at the top of the user's stack. The functions that enter the kernel
 * have no frame of their own in most libraries, so that the frame pointer is
 * their caller's and the walk misses him; his return address is here.
 */
static __always_inline void read_top(struct stack *s)
{
	struct pt_regs___x86 *regs = NULL;

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs) || !bpf_core_field_exists(regs->ip))
		return;
	regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	bpf_probe_read_user(s->top, sizeof(s->top), (void *)BPF_CORE_READ(regs, sp));
}

/*
 * Remember the stack of the current task for a socket. A kernel thread has none;
 * a worker of io_uring has one that begins with address 0 (copy_thread clears
 * its registers).
 */
static __noinline int remember_stack(void *ctx, __u64 socket)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct stack s = {};
	struct counters *n;
	long bytes;

	bytes = bpf_get_stack(ctx, s.addresses, sizeof(s.addresses), BPF_F_USER_STACK);
	if (bytes < (long)sizeof(__u64) || !s.addresses[0])
		return 0;
	s.frames = bytes / sizeof(__u64);
	s.pid = bpf_get_current_pid_tgid() >> 32;
	current_group(&s.task_start_ns, s.comm);
	s.start_code = BPF_CORE_READ(task, mm, start_code);
	s.start_stack = BPF_CORE_READ(task, mm, start_stack);
	read_top(&s);
	if (bpf_map_update_elem(&stacks, &socket, &s, BPF_ANY) && (n = count()))
		n->stacks_lost++;
	return 0;
}

static __always_inline void forget_stack(struct sock *sk, struct sock_info *info)
{
	__u64 socket;

	if (!cfg_stacks)
		return;
	socket = id_of(sk, info);
	bpf_map_delete_elem(&stacks, &socket);
}

#endif
