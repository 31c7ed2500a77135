// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stated-tcp/stated/pkg/event"
)

// A kernel may keep programs, and its own trace events, from running while a
// task of process 1 is on the CPU, and count nothing: a virtual machine that
// hides what governs it from whoever lives in it. Then what a softirq does on
// top of such a task is told to no program, while the trace buffer, which looks
// at the event and not at the task, has it. unseen knows these changes of state.
type unseen struct{ dir string }

// watchUnseen begins to keep the changes of state in an instance of the trace
// buffer (Documentation/trace/ftrace.rst). Without tracefs it knows of none.
func watchUnseen(t *testing.T) *unseen {
	u := &unseen{fmt.Sprintf("/sys/kernel/tracing/instances/stated-unseen-%d", os.Getpid())}
	if err := os.Mkdir(u.dir, 0o700); err != nil {
		t.Logf("without the kernel's trace buffer: %v", err)
		return nil
	}
	t.Cleanup(func() {
		if err := os.Remove(u.dir); err != nil { // rmdir(2): its files are no hindrance
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(u.dir, "events/sock/inet_sock_set_state/enable"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	return u
}

// of returns the lines of changes that happened on top of a task of process 1
// to sockets that are ours, and that are not among the events. In a PID namespace the
// buffer's numbers of tasks are not ours, and it finds none.
func (u *unseen) of(t *testing.T, events []event.Event, ours func(local, peer netip.AddrPort) bool) (lines string) {
	t.Helper()
	if u == nil {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(u.dir, "trace"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		// NAME-TID [CPU] FLAGS TIME: inet_sock_set_state: WORD=VALUE...
		task, change, ok := strings.Cut(line, " inet_sock_set_state: ")
		task, _, ok2 := strings.Cut(task, " [")
		if !ok || !ok2 {
			continue
		}
		tid := task[strings.LastIndexByte(task, '-')+1:]
		if _, err := os.Stat("/proc/1/task/" + strings.TrimSpace(tid)); err != nil {
			continue
		}
		value := make(map[string]string)
		for word := range strings.FieldsSeq(change) {
			name, v, _ := strings.Cut(word, "=")
			value[name] = v
		}
		end := func(address, port string) netip.AddrPort { // of IPv4 they are IPv4-mapped
			at, _ := netip.ParseAddrPort("[" + value[address] + "]:" + value[port])
			return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		}
		told := slices.ContainsFunc(events, func(e event.Event) bool {
			return e.Kind == event.KindState && "TCP_"+e.Old.String() == value["oldstate"] && "TCP_"+e.New.String() == value["newstate"]
		})
		if !told && ours(end("saddrv6", "sport"), end("daddrv6", "dport")) {
			lines += line
		}
	}
	return lines
}
