// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// keepers are the ways to keep a network namespace that no process lives in.
// Each begins in it, on a thread of its own, and returns what ends it.
var keepers = []struct {
	name string
	keep func(t *testing.T) (end func())
}{
	{"a thread", nil}, // inSpace itself
	{"a descriptor", func(*testing.T) func() {
		fd := must(unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0))
		return func() { unix.Close(fd) }
	}},
	{"a socket", func(*testing.T) func() { return func() {} }}, // the listener that all have
	{"a name", func(t *testing.T) func() {
		path := filepath.Join(t.TempDir(), "a name")
		check(os.WriteFile(path, nil, 0o600))
		check(unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
		return func() { unix.Unmount(path, unix.MNT_DETACH) }
	}},
}

// TestNamespaces: the sockets of a network namespace are found whoever keeps it.
func TestNamespaces(t *testing.T) {
	requireKernel(t)
	i := must(OpenInspector())
	defer i.Close()
	p := must(Open(Options{}))
	defer p.Close()
	for _, k := range keepers {
		t.Run(k.name, func(t *testing.T) {
			var inode uint32
			look := func(how string, i *Inspector) {
				n := 0
				if err := i.Sockets(event.AllStates, func(s *event.Sighting) {
					if s.Netns == inode && s.New == event.StateListen {
						n++
					}
				}); err != nil {
					t.Error(err)
				}
				if n != 1 {
					t.Errorf("%s: its socket was found %d times", how, n)
				}
			}
			both := func() {
				look("alone", i)
				look("by sock_diag", OpenSockDiag())
				of := must(p.Inspector())
				look("with the probe", of)
				check(of.Close())
			}
			var fd, tid int
			end := func() {}
			inSpace(t, func(s *space) {
				fd, _ = s.listen(local4(), 8, 0)
				s.fds = nil // it outlives the thread
				tid = unix.Gettid()
				inode = s.inode
				if k.keep == nil {
					both()
				} else {
					end = k.keep(t)
				}
			})
			if k.keep != nil {
				task := fmt.Sprintf("/proc/self/task/%d", tid)
				for _, err := os.Stat(task); err == nil; _, err = os.Stat(task) {
					time.Sleep(time.Millisecond) // the thread ends
				}
				both()
			}
			unix.Close(fd)
			end()
		})
	}
}
