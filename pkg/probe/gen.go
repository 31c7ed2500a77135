// SPDX-License-Identifier: Apache-2.0

// Package probe makes events of what the kernel does: it loads the programs of
// bpf/, each on its own, attaches what this kernel allows, and decodes the ring
// buffer. It is the only package that knows BPF.
package probe

//go:generate go tool bpf2go -tags linux -target bpfel,bpfeb -type event -type inspection -type stack -type process -type netns_way -type counters -type sock_info -type port_key -type addr_key bpf ../../bpf/stated.bpf.c -- -mcpu=v3 -I../../bpf -isystem ../../bpf/include -Wall -Wextra -Werror -Wno-unused-parameter
