// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/filter"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

// filterFlags are the conditions that trace, record and replay share.
type filterFlags struct {
	pids, ports, local, remote []uint
	comms, addrs, roles        []string
	states, netns, cgroup      string
	minDuration                time.Duration
	v4, v6                     bool
}

func (f *filterFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.UintSliceVar(&f.pids, "pid", nil, "owned by this process `ID`")
	fs.Var((*names)(&f.comms), "comm", "owned by a process of this `NAME`, as ls shows it")
	fs.UintSliceVar(&f.ports, "port", nil, "with this `PORT` at either end")
	fs.UintSliceVar(&f.local, "lport", nil, "with this `PORT` at our end")
	fs.UintSliceVar(&f.remote, "rport", nil, "with this `PORT` at the other end")
	fs.StringSliceVar(&f.addrs, "addr", nil, "with an address in this `CIDR` at either end")
	fs.StringVar(&f.states, "state", "", "that were in one of these `STATES`, in any spelling")
	fs.DurationVar(&f.minDuration, "min-duration", 0, "that lasted at least this `TIME`; with --events, that stayed as long in the state")
	fs.StringVar(&f.netns, "netns", "", "in this network namespace: a `PATH`, a name of ip-netns(8), or an inode number")
	fs.StringVar(&f.cgroup, "cgroup", "", "of a process in this cgroup v2 or below it: a `PATH`")
	fs.StringSliceVar(&f.roles, "role", nil, "in this `ROLE`: client, server, listener, simultaneous, unknown")
	fs.BoolVarP(&f.v4, "ipv4", "4", false, "over IPv4 only")
	fs.BoolVarP(&f.v6, "ipv6", "6", false, "over IPv6 only")
}

func (f *filterFlags) parse() (*filter.Filter, error) {
	var out filter.Filter
	var err error
	for _, list := range []struct {
		flag string
		from []uint
		to   *[]uint16
	}{{"port", f.ports, &out.Ports}, {"lport", f.local, &out.Local}, {"rport", f.remote, &out.Remote}} {
		for _, p := range list.from {
			if p == 0 || p > 65535 {
				return nil, usagef("--%s %d: ports are 1 to 65535", list.flag, p)
			}
			*list.to = append(*list.to, uint16(p))
		}
	}
	for _, pid := range f.pids {
		if pid == 0 || pid > 1<<22 {
			return nil, usagef("--pid %d: process ids are 1 to %d", pid, 1<<22)
		}
		out.PIDs = append(out.PIDs, uint32(pid))
	}
	for _, s := range f.addrs {
		prefix, err := parsePrefix(s)
		if err != nil {
			return nil, usagef("--addr %q: neither an address nor a CIDR like 10.0.0.0/8", s)
		}
		out.Addrs = append(out.Addrs, prefix)
	}
	for _, s := range f.roles {
		role, ok := lifecycle.ParseRole(s)
		if !ok {
			return nil, usagef("--role %q: one of client, server, listener, simultaneous, unknown", s)
		}
		out.Roles = append(out.Roles, role)
	}
	if f.states != "" {
		if out.States, err = event.ParseStates(f.states); err != nil {
			return nil, usagef("--state: %w", err)
		}
	}
	if f.minDuration < 0 {
		return nil, usagef("--min-duration %v: a time cannot be negative", f.minDuration)
	}
	for _, name := range f.comms {
		out.Comms = append(out.Comms, string(render.Unescape([]byte(name))))
	}
	out.MinDuration = f.minDuration
	switch {
	case f.v4 && f.v6: // both is all
	case f.v4:
		out.Family = 4
	case f.v6:
		out.Family = 6
	}
	if f.netns != "" {
		if out.Netns, err = netnsInode(f.netns); err != nil {
			return nil, usagef("--netns %q: %w", f.netns, err)
		}
	}
	if f.cgroup != "" {
		if out.Cgroup, err = cgroupID(f.cgroup); err != nil {
			return nil, usagef("--cgroup %q: %w", f.cgroup, err)
		}
	}
	return &out, nil
}

// names is a flag that may be repeated, or have several with commas between them. They
// may have any quotes in them, unlike those of pflag's StringSlice.
type names []string

func (n *names) Set(s string) error {
	*n = append(*n, strings.Split(s, ",")...)
	return nil
}

func (n *names) String() string { return strings.Join(*n, ",") }

// Type is how completions and manual pages call it.
func (n *names) Type() string { return "strings" }

// parsePrefix takes IPv4-mapped IPv6 addresses for IPv4, as which they are shown.
func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(s)
	if addr, mapped := prefix.Addr(), prefix.Bits()-96; addr.Is4In6() && mapped >= 0 {
		prefix = netip.PrefixFrom(addr.Unmap(), mapped)
	}
	return prefix, err
}

func netnsInode(s string) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		if n == 0 {
			return 0, errors.New("no network namespace has this number")
		}
		return uint32(n), nil
	}
	if !strings.Contains(s, "/") {
		s = filepath.Join("/run/netns", s)
	}
	fd, err := unix.Open(s, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: s, Err: err}
	}
	defer unix.Close(fd)
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return 0, fmt.Errorf("%s is no network namespace", s)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: s, Err: err}
	}
	return uint32(st.Ino), nil
}

// cgroupID is the inode of the cgroup's folder, as kernfs numbers them
// (cgroup_id in include/linux/cgroup.h).
func cgroupID(s string) (uint64, error) {
	var errs []error
	for _, root := range []string{"", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		path := filepath.Join(root, s)
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err != nil {
			errs = append(errs, &os.PathError{Op: "stat", Path: path, Err: err})
			continue
		}
		if fs.Type != unix.CGROUP2_SUPER_MAGIC {
			errs = append(errs, fmt.Errorf("%s is in no cgroup v2 file system", path))
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return 0, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		return st.Ino, nil
	}
	return 0, errors.Join(errs...)
}

// outputFlags say how trace and replay show things.
type outputFlags struct {
	format, names, color string
	cmdline              bool
	events               bool
	count                int
	utc                  bool
	openAfter            time.Duration
}

func (o *outputFlags) register(cmd *cobra.Command) {
	o.registerFormat(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&o.events, "events", false, "show every change of state, not finished connections")
	fs.DurationVar(&o.openAfter, "open-after", 0, "also show connections that stay in a state for longer than this `TIME`, while they do")
	fs.IntVar(&o.count, "count", 0, "end after showing `N`")
	fs.BoolVar(&o.utc, "utc", false, "show times in UTC")
}

// registerFormat adds the flags of what is shown once, without times.
func (o *outputFlags) registerFormat(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVarP(&o.format, "output", "o", "text", "`FORMAT`: text, wide, json (one object a line), or ecs (json by the Elastic Common Schema)")
	fs.StringVar(&o.names, "names", "kernel", "spell states like `SYSTEM`: kernel, ss, rfc, bsd, windows, solaris, otel")
	fs.StringVar(&o.color, "color", "auto", "`WHEN` to use colours: auto, always, never")
}

// registerCmdline adds the flag of what may hold passwords.
func (o *outputFlags) registerCmdline(cmd *cobra.Command, shown bool) {
	cmd.Flags().BoolVar(&o.cmdline, "cmdline", shown, "show the arguments of processes, which may hold passwords")
}

// screen is the size of the terminal that out is.
func screen(out any) (rows, columns int, ok bool) {
	f, isFile := out.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	columns, rows, err := term.GetSize(int(f.Fd()))
	return rows, columns, err == nil && rows > 0 && columns > 0
}

func (o *outputFlags) parse(host render.Host, out any) (render.Options, error) {
	opts := render.Options{Host: host}
	var err error
	if opts.Format, err = render.ParseFormat(o.format); err != nil {
		return opts, usagef("--output: %w", err)
	}
	if opts.Names, err = event.ParseNaming(o.names); err != nil {
		return opts, usagef("--names: %w", err)
	}
	if o.openAfter < 0 {
		return opts, usagef("--open-after %v: a time cannot be negative", o.openAfter)
	}
	if o.count < 0 {
		return opts, usagef("--count %d: a number of at least 1", o.count)
	}
	if o.utc {
		opts.Location = time.UTC
	}
	_, opts.Width, _ = screen(out)
	switch o.color {
	case "always":
		opts.Color = true
	case "never":
	case "auto":
		f, isFile := out.(*os.File)
		opts.Color = isFile && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	default:
		return opts, usagef("--color %q: one of auto, always, never", o.color)
	}
	return opts, nil
}
