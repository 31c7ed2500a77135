// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
// to sockets whose own address is in one of the networks.
func (u *unseen) of(networks ...netip.Prefix) (lines string, err error) {
	if u == nil {
		return "", nil
	}
	text, err := os.ReadFile(filepath.Join(u.dir, "trace"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		// NAME-TID [CPU] FLAGS TIME: inet_sock_set_state: ... saddr=A daddr=A saddrv6=A ...
		task, change, ok := strings.Cut(line, " inet_sock_set_state: ")
		task, _, ok2 := strings.Cut(task, " [")
		if !ok || !ok2 {
			continue
		}
		tid := task[strings.LastIndexByte(task, '-')+1:]
		if _, err := os.Stat("/proc/1/task/" + strings.TrimSpace(tid)); err != nil {
			continue
		}
		for word := range strings.FieldsSeq(change) {
			name, value, _ := strings.Cut(word, "=")
			a, err := netip.ParseAddr(value)
			if err != nil || name != "saddr" && name != "saddrv6" {
				continue
			}
			for _, n := range networks {
				if n.Contains(a) {
					lines += line
				}
			}
		}
	}
	return lines, nil
}
