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
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for args, says := range map[string]string{
		"explain $$":                "called 127.0.0.1:" + port,
		"ls --pid $$":               "127.0.0.1:" + port + "  bash[",
		"trace --pid $$":            "can be followed: this is a PID namespace other than the host's",
		"trace -- true":             "can be followed: this is a PID namespace other than the host's",
		"trace --for 10ms":          "other numbers, which are shown",
		"check":                     "to BPF processes have other numbers",
		"leaks --for 10ms":          "looking by sock_diag and /proc (this is a PID namespace",
		"explain 127.0.0.1:" + port: "bash[",
	} {
		script := "exec 3<>/dev/tcp/127.0.0.1/" + port + "; " + stated + " " + args + "; true"
		out, _ := exec.Command(unshare, "--pid", "--fork", "--mount-proc", "bash", "-c", script).CombinedOutput()
		if !strings.Contains(string(out), says) {
			t.Errorf("%s: no %q in %s", args, says, out)
		}
	}
}
