/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Knobs that pkg/probe sets before loading. The verifier removes what they
 * switch off, so helpers that a kernel lacks may stand behind one.
 */
#ifndef __STATED_CONFIG_H
#define __STATED_CONFIG_H

/*
 * Tracing programs may use bpf_sk_storage_get (since 5.11, 8e4597c627fb) and
 * bpf_get_socket_cookie (since 5.12, c5dbb89fc2ac).
 */
const volatile __u32 cfg_sk_helpers = 0;
const volatile __u32 cfg_reset_reason = 0;	     /* tcp_send_reset has a third argument, since 6.10 */
const volatile __u32 cfg_wakeup_bytes = 1024 * 1024; /* wake the reader when this much waits; pkg/probe sets it */
const volatile __u32 cfg_tp_skaddr = 8;		     /* offset of skaddr in the classic tracepoint's record */
const volatile __u32 cfg_requests = 2000;	     /* half-open connections told of in a tenth of a second, per CPU */
const volatile __u32 cfg_stacks = 0;		     /* remember the user's stack at connect() and accept() */

/* Filters; zero means any. Conditions of different kinds must all hold. */
const volatile __u32 cfg_filter = 0; /* any of those below is set */
const volatile __u32 cfg_family = 0; /* 4 or 6, of the address */
const volatile __u32 cfg_netns = 0;
const volatile __u64 cfg_cgroup = 0; /* the cgroup or one below it */
const volatile __u32 cfg_ports = 0;  /* bits: enum port_side */
const volatile __u32 cfg_addrs = 0;
const volatile __u32 cfg_pids = 0;
const volatile __u32 cfg_tree = 0; /* children of the pids as well */
const volatile __u32 cfg_comms = 0;

#endif
