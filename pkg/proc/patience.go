// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What is read of a process's own memory, or below its root, may wait for as
// long as somebody likes: behind both may be a file system in user space.
const patience = 50 * time.Millisecond // for one read

// MaxStuck is how many things a Guard lets wait at the same time; then it starts
// no more.
const MaxStuck = 8

// Guard runs what may never return. Safe for use by several goroutines.
type Guard struct{ stuck atomic.Int32 }

// Stuck returns how many go on now.
func (g *Guard) Stuck() int { return int(g.stuck.Load()) }

func (g *Guard) enter() bool {
	if g.stuck.Add(1) <= MaxStuck {
		return true
	}
	g.leave()
	return false
}

func (g *Guard) leave() { g.stuck.Add(-1) }

// Patiently returns what f makes, or false when that takes longer: f goes on
// then, and its result is dropped; or when too many others do.
func Patiently[T any](g *Guard, longest time.Duration, f func() T) (result T, ok bool) {
	if !g.enter() {
		return result, false
	}
	return await(g, longest, f)
}

// await is Patiently behind enter.
func await[T any](g *Guard, longest time.Duration, f func() T) (result T, ok bool) {
	done := make(chan T, 1)
	go func() {
		result := f()
		g.leave()
		done <- result
	}()
	timer := time.NewTimer(longest)
	defer timer.Stop()
	select {
	case result = <-done:
		return result, true
	case <-timer.C:
		return result, false
	}
}

// patiently is Patiently with a descriptor of f's own for d.
func patiently[T any](g *Guard, d dir, f func(dir) T) (result T, ok bool) {
	if !g.enter() {
		return result, false
	}
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		g.leave()
		return result, false
	}
	own := dir{fd}
	return await(g, patience, func() T {
		defer own.close()
		return f(own)
	})
}
