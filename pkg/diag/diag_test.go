// SPDX-License-Identifier: Apache-2.0

package diag

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
)

// TestForgedAnswer: what another process sends to the port of a list is not taken
// for the kernel's answer.
func TestForgedAnswer(t *testing.T) {
	for range 400 { // several datagrams of the kernel
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	const cookie = 1<<32 | 0x17 // of message
	forged := netlink(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_MULTI, message(event.StateCloseWait, 0, 77, tcpInfo(unix.TCPInfo{})))
	forged = append(forged, netlink(unix.NLMSG_DONE, unix.NLM_F_MULTI, native.AppendUint32(nil, 0))...)
	var sent error
	listeners, batches := 0, 0
	err := new(Lister).List(1, event.SetOf(event.StateListen, event.StateCloseWait), func(b *Batch) error {
		if batches++; batches == 1 {
			sent = forge(forged)
		}
		for i := range b.Sockets {
			switch s := &b.Sockets[i]; {
			case s.Socket == cookie && s.Peer.Port() == 40001:
				t.Errorf("told as the kernel's: %+v", s)
			case s.New == event.StateListen:
				listeners++
			}
		}
		return nil
	})
	refused := errors.Is(sent, unix.EPERM) && os.Getenv("STATED_KERNEL_TEST") == "" // not root
	switch {
	case errors.Is(err, errors.ErrUnsupported), refused:
		t.Skip(err, sent)
	case err != nil:
		t.Fatal(err)
	case !errors.Is(sent, unix.ECONNREFUSED):
		t.Errorf("the kernel delivers what others send: %v", sent)
	}
	if listeners < 400 {
		t.Errorf("%d of 400 listeners", listeners)
	}
}

// forge sends to the port of the list, which is the id of the process while no
// other socket of it has that (netlink_autobind).
func forge(datagram []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, datagram, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: uint32(unix.Getpid())})
}
