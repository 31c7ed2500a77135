// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"debug/elf"

	"golang.org/x/sys/unix"
)

const machine = elf.EM_X86_64

func withOld(calls map[int64]waitCall) map[int64]waitCall {
	calls[unix.SYS_ACCEPT] = waitCall{"accept", onFD}
	calls[unix.SYS_EPOLL_WAIT] = waitCall{"epoll_wait", onEpoll}
	calls[unix.SYS_POLL] = waitCall{"poll", onPoll}
	calls[unix.SYS_SELECT] = waitCall{"select", onSelect}
	return calls
}
