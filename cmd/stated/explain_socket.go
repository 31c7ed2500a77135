// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/agent"
	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/story"
)

// subject is what explain is asked about: a process, one of its descriptors, an
// address, or a port of any address.
type subject struct {
	pid  uint32
	fd   int32 // -1: all
	addr netip.AddrPort
	port uint16
}

// parseSubject returns nil for what is neither a process nor a socket.
func parseSubject(arg string) (*subject, error) {
	first, second, isFD := strings.Cut(arg, "/")
	if pid, err := strconv.ParseUint(first, 10, 32); err == nil {
		s := &subject{pid: uint32(pid), fd: -1}
		if isFD {
			fd, err := strconv.ParseInt(second, 10, 32)
			if err != nil || fd < 0 {
				return nil, usagef("%q: a process and its descriptor are two numbers, as in 4242/87", arg)
			}
			s.fd = int32(fd)
		}
		if pid == 0 || pid > 1<<22 {
			return nil, usagef("%q: process ids are 1 to %d", arg, 1<<22)
		}
		return s, nil
	}
	if port, only := strings.CutPrefix(arg, ":"); only && isNumber(port) {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return nil, usagef("%q: a port is 1 to 65535", arg)
		}
		return &subject{port: uint16(n), fd: -1}, nil
	}
	if addr, err := netip.ParseAddrPort(fromSS(arg)); err == nil && addr.Port() != 0 {
		return &subject{addr: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}, nil
	}
	if !strings.ContainsAny(arg, ".:[") {
		return nil, nil
	}
	if i := strings.LastIndexByte(arg, ':'); i > 0 && arg[0] != '[' {
		if inBrackets, err := netip.ParseAddrPort("[" + arg[:i] + "]" + arg[i:]); err == nil && inBrackets.Addr().Is6() {
			return nil, usagef("%q: an IPv6 address stands in brackets before its port: write %s", arg, inBrackets)
		}
	}
	if i := strings.LastIndexByte(arg, ':'); i > 0 && isNumber(arg[i+1:]) {
		if _, err := netip.ParseAddrPort(arg[:i] + ":1"); err == nil {
			return nil, usagef("%q: a port is 1 to 65535", arg)
		}
	}
	if addr, err := netip.ParseAddr(strings.Trim(arg, "[]")); err == nil {
		return nil, usagef("%q has no port: write %s", arg, netip.AddrPortFrom(addr, 443))
	}
	return nil, usagef("%q is no address with a port: write 10.0.0.5:443, [2001:db8::1]:443, or :443 for any", arg)
}

var device = regexp.MustCompile(`%[^]:%]+`)

// fromSS makes an address with a port of what ss shows: with the device that a socket is
// bound to, as in [fe80::1]%eth0:80 or 127.0.0.53%lo:53, and * for a listener on IPv4 and
// IPv6. Sockets are found by address and port, whatever their device.
func fromSS(arg string) string {
	arg = device.ReplaceAllString(arg, "")
	if port, any := strings.CutPrefix(arg, "*:"); any {
		return "[::]:" + port
	}
	return arg
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// onlooker explains what is there now.
type onlooker struct {
	names    event.Naming
	minAge   time.Duration
	examples int
	classic  bool
}

func (o *onlooker) explain(cmd *cobra.Command, about *subject) error {
	if o.minAge < 0 || o.examples < 0 {
		return usagef("--min-age and --examples cannot be negative")
	}
	processes := newProcesses(proc.Options{Cmdline: true}, nil)
	task, err := processes.named(about.pid)
	if err != nil {
		return err
	}
	inspector, err := openInspector(cmd, o.classic)
	if err != nil {
		return err
	}
	defer inspector.Close()
	now, _ := probe.Now()
	c, lookErr := agent.Look(inspector, event.AllStates, now, nil)
	if lookErr != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "stated: not all could be looked at: %s\n", firstLine(lookErr))
	}
	processes.place(c)
	answers := processes.answering(c, about.addr)
	c.Drop(func(s *census.Socket) bool { return !about.matches(s) && !slices.Contains(answers, s) })
	teller := story.Teller{Now: now, MinAge: int64(o.minAge), Names: o.names, Processes: processes.withDescriptors, Waits: processes.waits,
		Netns: processes.here(), Inside: processes.in, Outside: probe.InnerPIDs() != nil}
	var b []byte
	switch {
	case about.addr.IsValid() || about.port != 0 || about.fd >= 0:
		if len(c.Sockets) == 0 {
			return about.missing()
		}
		b = teller.Sockets(nil, c.Sockets, o.examples)
	default:
		b = teller.Process(nil, task, c.Sockets, o.examples)
	}
	_, err = cmd.OutOrStdout().Write(b)
	return err
}

// named finds the process of a number; of 0 none.
func (p *processes) named(pid uint32) (event.Task, error) {
	if pid == 0 {
		return event.Task{}, nil
	}
	found, err := p.Resolver.Lookup(event.Task{PID: pid})
	if errors.Is(err, proc.ErrGone) {
		return event.Task{}, fmt.Errorf("there is no process %d", pid)
	}
	if err != nil {
		return event.Task{}, err
	}
	return event.Task{PID: pid, Start: found.Start, Comm: event.MakeComm(found.Comm)}, nil
}

func (s *subject) matches(have *census.Socket) bool {
	switch {
	case s.addr.IsValid():
		return have.Local == s.addr || have.New != event.StateListen && have.Peer == s.addr
	case s.port != 0:
		return have.Local.Port() == s.port || have.New != event.StateListen && have.Peer.Port() == s.port
	case s.fd < 0:
		return story.Of(have, s.pid)
	}
	return slices.ContainsFunc(have.Holders, func(h census.Holder) bool { return h.PID == s.pid && slices.Contains(h.FDs, s.fd) })
}

// answering returns the listeners on any address that a call to this one would
// come to.
func (p *processes) answering(c *census.Census, addr netip.AddrPort) []*census.Socket {
	if !addr.IsValid() {
		return nil
	}
	return c.Answering(addr, func(s *census.Socket) bool {
		if addr.Addr().IsLoopback() {
			return true
		}
		addrs, err := p.Resolver.Addrs(p.in(s))
		return err == nil && slices.Contains(addrs, addr.Addr())
	})
}

// missing says why there is nothing to tell of.
func (s *subject) missing() error {
	if s.addr.IsValid() {
		return fmt.Errorf("no TCP socket of this host has %s at either end ('stated ls' shows all)", s.addr)
	}
	if s.port != 0 {
		return fmt.Errorf("no TCP socket of this host has port %d at either end ('stated ls' shows all)", s.port)
	}
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", s.pid, s.fd))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("process %d has no descriptor %d", s.pid, s.fd)
	case err != nil:
		return fmt.Errorf("look at descriptor %d of process %d: %w", s.fd, s.pid, err)
	}
	return fmt.Errorf("descriptor %d of process %d is no TCP socket, but %q", s.fd, s.pid, target)
}
