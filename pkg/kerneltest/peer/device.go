// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a script waits for the kernel: far longer than any
// timer in it, so that only what never comes runs into it.
const patience = 30 * time.Second

// Device is a TUN device: what the kernel sends through it is read by scripts.
// It serves one goroutine.
type Device struct {
	fd    int
	conns []*Conn
}

// Open makes a TUN device in the network namespace of the current thread and
// gives the kernel the addresses on it, each with the length of its network;
// every other address of those networks is the script's. It needs
// CAP_NET_ADMIN and /dev/net/tun, which it makes where it is missing.
func Open(kernel ...netip.Prefix) (*Device, error) {
	const node, name = "/dev/net/tun", "peer0"
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == unix.ENOENT {
		os.MkdirAll("/dev/net", 0o755)
		if err = unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))); err == nil {
			fd, err = unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open %s (is the module tun loaded?): %w", node, err)
	}
	d := &Device{fd: fd}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = up(name, kernel)
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("set up the TUN device %s: %w", name, err)
	}
	return d, nil
}

// Close removes the device.
func (d *Device) Close() error { return unix.Close(d.fd) }

func up(name string, addrs []netip.Prefix) error {
	s4, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s4)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.Addr().Is4() {
			if err := address4(s4, name, a); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s4, unix.SIOCSIFFLAGS, req); err != nil {
		return err
	}
	for _, a := range addrs {
		if a.Addr().Is6() {
			if err := address6(name, a); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
	}
	return nil
}

func address4(s int, name string, a netip.Prefix) error {
	mask := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), a.Bits()).Masked().Addr()
	for _, set := range []struct {
		request uint
		addr    netip.Addr
	}{{unix.SIOCSIFADDR, a.Addr()}, {unix.SIOCSIFNETMASK, mask}} {
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := req.SetInet4Addr(set.addr.AsSlice()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, set.request, req); err != nil {
			return err
		}
	}
	return nil
}

// address6 adds an IPv6 address: struct in6_ifreq (include/uapi/linux/ipv6.h).
// A TUN device is IFF_NOARP, so nobody is asked whether it is free, but the
// work that finds out runs later (addrconf_dad_begin): wait until it is usable.
func address6(name string, a netip.Prefix) error {
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, req); err != nil {
		return err
	}
	in6 := struct {
		addr  [16]byte
		bits  uint32
		index int32
	}{a.Addr().As16(), uint32(a.Bits()), int32(req.Uint32())}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&in6))); errno != 0 {
		return errno
	}
	for deadline := time.Now().Add(patience); tentative(a.Addr()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not usable after %s", patience)
		}
	}
	return nil
}

// tentative reports whether an address is not there, or not to be used yet
// (IFA_F_TENTATIVE; net/ipv6/addrconf.c, if6_seq_show).
func tentative(a netip.Addr) bool {
	list, err := os.ReadFile("/proc/thread-self/net/if_inet6")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(list)) {
		words := strings.Fields(line) // address, index, length, scope, flags, device
		if len(words) == 6 && words[0] == hex.EncodeToString(a.AsSlice()) {
			flags, err := strconv.ParseUint(words[4], 16, 32)
			return err != nil || flags&unix.IFA_F_TENTATIVE != 0
		}
	}
	return true
}

// write hands a packet to the kernel.
func (d *Device) write(b []byte) error {
	_, err := unix.Write(d.fd, b)
	return err
}

// read waits for the next TCP segment that the kernel sends, until a deadline;
// false is that none came. Other packets (router solicitations) are dropped.
func (d *Device) read(deadline time.Time) (Segment, bool, error) {
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(d.fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			left := time.Until(deadline)
			if left <= 0 {
				return Segment{}, false, nil
			}
			fds := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, int(left/time.Millisecond)+1); err != nil && err != unix.EINTR {
				return Segment{}, false, fmt.Errorf("wait for the TUN device: %w", err)
			}
			continue
		case err != nil:
			return Segment{}, false, fmt.Errorf("read from the TUN device: %w", err)
		}
		_, _, _, proto, err := unwrap(buf[:n])
		if err != nil {
			return Segment{}, false, err
		}
		if proto != protoTCP {
			continue
		}
		s, err := Parse(buf[:n])
		return s, true, err
	}
}
