// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"debug/elf"

	"golang.org/x/sys/unix"
)

const machine = elf.EM_AARCH64

func withOld(calls map[int64]waitCall) map[int64]waitCall {
	calls[unix.SYS_ACCEPT] = waitCall{"accept", onFD}
	return calls
}
