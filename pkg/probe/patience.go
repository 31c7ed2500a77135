// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"time"

	"github.com/stated-tcp/stated/pkg/diag"
	"github.com/stated-tcp/stated/pkg/proc"
)

// patience is for one question to a descriptor of another process, which may wait
// for as long as that likes: it may hold the lock of its socket (a setsockopt(2)
// that reads memory which it serves itself, by userfaultfd), and the descriptor may
// be of a file system in user space by now.
const patience = 250 * time.Millisecond

// guard runs what may never return.
type guard struct {
	proc.Guard
	lister diag.Lister // has patience of its own
}
