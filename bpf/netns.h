/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Ways into network namespaces. Each namespace is told once, to the reader of
 * the iterator, by who keeps it: a thread that lives in it, a descriptor of the
 * namespace, or a TCP socket of it.
 */
#ifndef __STATED_NETNS_H
#define __STATED_NETNS_H

#define NSFS_MAGIC 0x6e736673 /* include/uapi/linux/magic.h */

/*
 * Inode numbers of namespaces that were told, or that pkg/probe knows by other
 * means. It empties the map before each look. Full: a namespace is told again
 * and again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, __u8);
} netns_known SEC(".maps");

static __always_inline int tell_netns(struct seq_file *seq, __u32 inode, struct task_struct *task, __s32 fd, bool socket)
{
	struct netns_way way = {.inode = inode, .pid = task->tgid, .tid = task->pid, .fd = fd, .socket = socket};
	__u8 one = 1;

	if (!inode || bpf_map_lookup_elem(&netns_known, &inode))
		return 0;
	bpf_map_update_elem(&netns_known, &inode, &one, BPF_ANY);
	bpf_seq_write(seq, &way, sizeof(way));
	return 0;
}

SEC("iter/task")
int st_netns_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (!task)
		return 0;
	return tell_netns(ctx->meta->seq, BPF_CORE_READ(task, nsproxy, net_ns, ns.inum), task, -1, false);
}

/* Namespaces of all kinds have their number from one counter, so those of another kind are told, too. */
SEC("iter/task_file")
int st_netns_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;
	__u64 magic;
	__u16 family;

	if (!task || !file)
		return 0;
	magic = file->f_inode->i_sb->s_magic;
	if (magic == NSFS_MAGIC)
		return tell_netns(ctx->meta->seq, file->f_inode->i_ino, task, ctx->fd, false);
	if (magic != SOCKFS_MAGIC)
		return 0;
	socket = file->private_data;
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	return tell_netns(ctx->meta->seq, BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum), task, ctx->fd, true);
}

#endif
