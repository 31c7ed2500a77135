// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFirstThreadStays: whatever namespaces are looked into, the first thread of the
// process stays in its own. It cannot end, so it would keep another for as long as the
// process lives, and /proc/PID/ns/net would be that.
func TestFirstThreadStays(t *testing.T) {
	requireKernel(t)
	first := func() string { return must(os.Readlink("/proc/self/ns/net")) }
	before := first()
	made := make(chan *os.File)
	go apart(func() {
		check(unix.Unshare(unix.CLONE_NEWNET))
		made <- must(os.Open("/proc/thread-self/ns/net"))
	})
	space := <-made
	defer space.Close()
	n := netns{open: func() (*os.File, error) { return os.Open(fmt.Sprintf("/proc/self/fd/%d", space.Fd())) }}
	for range 2000 {
		if err := n.inside(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if after := first(); after != before {
		t.Errorf("the first thread was in %s, and is in %s now", before, after)
	}
}
