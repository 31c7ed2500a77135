// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestHaltedLive: a process that is stopped forgets nothing, it does nothing.
func TestHaltedLive(t *testing.T) {
	requireRoot(t)
	argv := python(t)
	if argv == nil {
		notInstalled(t, "python3")
	}
	p := plant(t, false, append(argv, "data_unread")...)
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(p.pid)
	stopped := "[" + pid + "] is stopped (SIGSTOP or a debugger), and reads, accepts and closes nothing: kill -CONT " + pid
	fd := strings.Trim(string(p.holders[1][1]), "[]")
	for _, args := range [][]string{
		{"explain", pid, "--min-age", "1ms"},
		{"explain", pid + "/" + fd, "--min-age", "1ms"},
		{"leaks", "--netns", fmt.Sprintf("/proc/%d/ns/net", p.pid), "--min-age", "1ms"},
	} {
		if out := until(t, []string{stopped}, args...); strings.Contains(out, "gdb") {
			t.Errorf("stated %s: gives another reason, too\n%s", args[0], out)
		}
	}
}
