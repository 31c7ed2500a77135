// SPDX-License-Identifier: Apache-2.0

package event

// Process is what the kernel side tells of a process while it is there, with
// KindProcess: once for each program that it runs and each control group that
// it moves to, before the first event that it is part of. Event.Task names it. All text is chosen by processes: escape
// before printing.
type Process struct {
	Image      uint32 // counts execve(): another number, another program
	PPID       uint32 // the parent's, in the initial pid namespace
	InnerPID   uint32 // in its own pid namespace
	PIDNS      uint32 // inode number of that
	UID        uint32 // effective, in the initial user namespace
	Cgroup     uint64 // id of its cgroup v2, 0 unknown
	Group      string // its path; "" unknown, or the root; proc.Resolver.Learn then fills in that of v1
	User       string // name of UID on its host; the kernel does not know it, Learn fills it in
	Exe        string // path of the program in its mount namespace; "" unknown: exiting, or longer than 255 bytes
	ExeDeleted bool   // the file was unlinked since (mostly an upgrade)
}
