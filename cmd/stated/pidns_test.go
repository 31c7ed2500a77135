// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os/exec"
	"strings"
	"testing"
)

// TestPIDNamespace: where processes have other numbers than the kernel's, those of
// /proc are shown, and what cannot be followed by them is refused.
func TestPIDNamespace(t *testing.T) {
	requireRoot(t)
	for args, says := range map[string]string{
		"explain $$":       "called ADDRESS",
		"ls --pid $$":      "ADDRESS  bash[",
		"trace --pid $$":   "can be followed: this is a PID namespace other than the host's",
		"trace -- true":    "can be followed: this is a PID namespace other than the host's",
		"trace --for 10ms": "other numbers, which are shown",
		"check":            "to BPF processes have other numbers",
		"leaks --for 10ms": "looking by sock_diag and /proc (this is a PID namespace",
		"explain ADDRESS":  "bash[",
		"ls":               "not known are processes outside of the PID namespace, errors",
		// the test listens
		"explain --examples 9 ADDRESS": "No process was found that holds it: it is of one outside of this PID namespace,",
	} {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := func(s string) string { return strings.ReplaceAll(s, "ADDRESS", l.Addr().String()) }
		script := "exec 3<>/dev/tcp/" + strings.Replace(l.Addr().String(), ":", "/", 1) + "; " + stated + " " + at(args) + "; true"
		out, _ := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "bash", "-c", script).CombinedOutput()
		if !strings.Contains(strings.Join(strings.Fields(string(out)), " "), strings.Join(strings.Fields(at(says)), " ")) { // lines are wrapped
			t.Errorf("%s: no %q in %s", args, at(says), out)
		}
		l.Close()
	}
}
