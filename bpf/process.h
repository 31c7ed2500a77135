/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who a process is, told while it is there: /proc is too late for one that
 * connects and exits. Once for each program that it runs, before the first event
 * that it is part of, and again where it has moved to another control group.
 */
#ifndef __STATED_PROCESS_H
#define __STATED_PROCESS_H

#define PATH_DEPTH 32

/* Puts "/name" before a path that begins at *at. False: there is no room. */
static __always_inline bool prepend(__u8 *path, __u32 *at, const void *name, __u32 len)
{
	__u32 begin = *at;

	if (!len || len >= PATH_BYTES || len + 1 > begin)
		return false;
	begin -= len + 1;
	barrier_var(begin); /* the masks are for the verifier, and clang would see that they do nothing */
	begin &= PATH_BYTES - 1;
	barrier_var(len);
	len &= PATH_BYTES - 1;
	path[begin] = '/';
	bpf_probe_read_kernel(path + begin + 1, len, name);
	*at = begin;
	return true;
}

/* As d_path (fs/d_path.c, prepend_path) from the root of the mount namespace. */
static __always_inline void read_exe(struct process *p, struct task_struct *task)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct vfsmount *vfs = BPF_CORE_READ(exe, f_path.mnt);
	struct dentry *at = BPF_CORE_READ(exe, f_path.dentry), *root = BPF_CORE_READ(vfs, mnt_root), *up;
	struct mount *mount = (void *)vfs - bpf_core_field_offset(struct mount, mnt), *over;
	__u32 begin = PATH_BYTES;
	int i;

	if (!at) /* it has exited: exit_mm comes before exit_files in do_exit */
		return;
	/* d_unlinked */
	p->exe_deleted = !BPF_CORE_READ(at, d_hash.pprev) && BPF_CORE_READ(at, d_parent) != at;
	for (i = 0; i < PATH_DEPTH; i++) {
		if (at == root) {
			over = BPF_CORE_READ(mount, mnt_parent);
			if (over == mount) {
				p->exe_at = begin;
				return;
			}
			at = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = over;
			root = BPF_CORE_READ(mount, mnt.mnt_root);
			continue;
		}
		if (!prepend(p->exe, &begin, BPF_CORE_READ(at, d_name.name), BPF_CORE_READ(at, d_name.len)))
			return;
		up = BPF_CORE_READ(at, d_parent);
		if (up == at) { /* nowhere: memfd_create() */
			p->exe_at = begin;
			return;
		}
		at = up;
	}
}

/* As kernfs_path of the group in cgroup v2. The root has no name; its path is empty. */
static __always_inline void read_group(struct process *p, struct task_struct *task)
{
	struct kernfs_node *node = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn), *up;
	__u32 begin = PATH_BYTES;
	long n;
	int i;

	p->cgroup = BPF_CORE_READ(node, id);
	for (i = 0; i < PATH_DEPTH && node; i++) {
		up = parent_of(node);
		if (!up) {
			p->group_at = begin;
			return;
		}
		n = bpf_probe_read_kernel_str(p->slack, PATH_BYTES, BPF_CORE_READ(node, name));
		if (n < 2 || !prepend(p->group, &begin, p->slack, n - 1))
			return;
		node = up;
	}
}

static __always_inline void read_inner_pid(struct process *p, struct task_struct *leader)
{
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	struct upid *inner = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			     BPF_CORE_READ(pid, level) * bpf_core_type_size(struct upid);

	p->inner_pid = BPF_CORE_READ(inner, nr);
	p->pidns = BPF_CORE_READ(inner, ns, ns.inum);
}

static __always_inline struct process_key key_of(struct task_struct *leader)
{
	struct process_key key = {.start_ns = BPF_CORE_READ(leader, start_boottime), .pid = BPF_CORE_READ(leader, tgid)};

	return key;
}

static __always_inline struct told version_of(struct task_struct *leader)
{
	struct told now = {.groups = (__u64)BPF_CORE_READ(leader, cgroups), .image = BPF_CORE_READ(leader, self_exec_id)};

	return now;
}

/* Whether the program that the current task runs, in its control group, has not been told of. */
static __always_inline bool is_news(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct process_key key = key_of(leader);
	struct told *last = bpf_map_lookup_elem(&told, &key), now = version_of(leader);

	if (last && last->image == now.image && last->groups == now.groups)
		return false;
	return !(BPF_CORE_READ(task, flags) & PF_KTHREAD);
}

/*
 * Tells of the current process. Without room in the ring it is not told, and
 * will be with the next event: nothing is lost, so nothing is counted.
 */
__noinline int tell_process(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct process_key key = key_of(leader);
	struct told now = version_of(leader);
	struct process *p = bpf_ringbuf_reserve(&events, sizeof(*p), 0);

	if (!p)
		return 0;
	p->time_ns = bpf_ktime_get_boot_ns();
	p->start_ns = key.start_ns;
	p->pid = key.pid;
	p->ppid = BPF_CORE_READ(leader, real_parent, tgid);
	p->uid = BPF_CORE_READ(task, cred, euid.val);
	p->image = now.image;
	p->exe_at = p->group_at = PATH_BYTES + 1;
	p->exe_deleted = 0;
	__builtin_memset(p->_pad, 0, sizeof(p->_pad));
	__builtin_memset(p->comm, 0, sizeof(p->comm)); /* what stands behind its end in the kernel is of an older name */
	bpf_core_read_str(p->comm, sizeof(p->comm), &leader->comm);
	read_inner_pid(p, leader);
	read_exe(p, task);
	read_group(p, task);
	bpf_map_update_elem(&told, &key, &now, BPF_ANY);
	bpf_ringbuf_submit(p, wakeup());
	return 0;
}

static __always_inline void introduce(void)
{
	if (is_news())
		tell_process();
}

/*
 * A process that was told of, or its child (inetd), begins another program. Told
 * now, as one that exits has none any more when its sockets are closed.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(st_exec, struct task_struct *task)
{
	struct process_key self = key_of(task->group_leader);
	struct process_key parent = key_of(BPF_CORE_READ(task, group_leader, real_parent, group_leader));

	if (bpf_map_lookup_elem(&told, &self) || bpf_map_lookup_elem(&told, &parent))
		tell_process();
	return 0;
}

#endif
