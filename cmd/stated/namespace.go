// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"slices"

	"github.com/stated-tcp/stated/pkg/census"
)

// here is the network namespace that stated runs in, 0 not known.
func (p *processes) here() uint32 {
	netns, err := p.Resolver.Netns(uint32(os.Getpid()))
	if err != nil {
		return 0
	}
	return netns
}

// place remembers which processes have to do with sockets of which namespace.
func (p *processes) place(c *census.Census) {
	const enough = 8
	p.placed = make(map[uint32][]uint32)
	for _, s := range c.Sockets {
		for _, t := range s.Owners() {
			if near := p.placed[s.Netns]; len(near) < enough && !slices.Contains(near, t.PID) {
				p.placed[s.Netns] = append(near, t.PID)
			}
		}
	}
}

// in returns a process in the network namespace of a socket, 0 for none: one that
// has to do with it, or with another one there. Who holds a socket may itself be
// elsewhere.
func (p *processes) in(s *census.Socket) uint32 {
	inside := func(pid uint32) bool {
		netns, err := p.Resolver.Netns(pid)
		return err == nil && netns == s.Netns
	}
	for _, t := range s.Owners() {
		if inside(t.PID) {
			return t.PID
		}
	}
	if self := uint32(os.Getpid()); inside(self) {
		return self
	}
	for _, pid := range p.placed[s.Netns] {
		if inside(pid) {
			return pid
		}
	}
	return 0
}
