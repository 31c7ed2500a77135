// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/kerneltest/uring"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// acceptor is a way to accept by io_uring. It returns a descriptor, or with
// fixed a slot of the ring's own table, which no descriptor leads to.
var acceptors = []struct {
	name   string
	fixed  bool
	how    uring.How
	accept func(r *uring.Ring, listener int) error
}{
	{"at once", false, uring.Inline, func(r *uring.Ring, l int) error { return r.SubmitAccept(l, uring.Inline) }},
	{"by a worker", false, uring.Worker, func(r *uring.Ring, l int) error { return r.SubmitAccept(l, uring.Worker) }},
	{"multishot", false, uring.Inline, func(r *uring.Ring, l int) error { return r.SubmitAcceptMultishot(l) }},
	{"without a descriptor", true, uring.Inline, func(r *uring.Ring, l int) error { return r.SubmitAcceptFixed(l, 0) }},
}

// TestUring: who connects and accepts by io_uring is known, though no system
// call of these names is made. Where trampolines see accept itself, that is how
// it is known; elsewhere the first read tells.
func TestUring(t *testing.T) {
	for _, tier := range tiers {
		if tier.opts.Classic {
			continue // sees neither
		}
		t.Run(tier.name, func(t *testing.T) {
			p := openTier(t, tier.opts)
			want := event.OwnerRead
			if p.works(bpfProgStGraft) {
				want = event.OwnerAccept
			}
			for _, way := range acceptors {
				t.Run(way.name, func(t *testing.T) {
					netns := inSpace(t, func(s *space) {
						r, err := uring.New()
						if err != nil {
							panic(skip(err.Error()))
						}
						defer r.Close()
						if way.fixed {
							check(r.RegisterFixed(1))
						}
						l, at := s.listen(local4(), 8, 0)
						check(way.accept(r, l))
						client := must(uring.New())
						defer client.Close()
						c := s.socket(unix.AF_INET, 0)
						check(client.Connect(c, at.(*unix.SockaddrInet4), way.how))
						a, _, err := r.Wait()
						if errors.Is(err, unix.EINVAL) {
							panic(skip("this kernel does not accept so by io_uring"))
						}
						check(err)
						must(client.Write(c, false, []byte("hello")))
						var buf [16]byte
						must(r.Read(a, way.fixed, buf[:]))
						s.close(c)
						must(r.Read(a, way.fixed, buf[:]))
						check(r.CloseFD(a, way.fixed))
						s.close(l)
					})
					for _, c := range collect(t, p, netns, 3).conns {
						source := event.OwnerConnect
						switch c.Role {
						case lifecycle.RoleListener:
							source = event.OwnerListen
						case lifecycle.RoleServer:
							source = want
						}
						if c.Owner.PID != uint32(os.Getpid()) || c.Owner.Source != source {
							t.Errorf("%s: owner %d by %s, want %d by %s", c.Role, c.Owner.PID, c.Owner.Source, os.Getpid(), source)
						}
					}
				})
			}
		})
	}
}
