// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// heldExec is how a command is started before it may run: this program is
// started in its place, so that its process id is known and can be watched,
// and turns into the command when it is released.
const heldExec = "__held-exec"

type heldChild struct {
	cmd  *exec.Cmd
	gate *os.File // closing it releases the child
	done bool
}

func startHeld(command []string) (*heldChild, error) {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return nil, fmt.Errorf("find the command: %w", err)
	}
	waits, gate, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer waits.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{heldExec, path}, command...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{waits}
	if err := cmd.Start(); err != nil {
		gate.Close()
		return nil, fmt.Errorf("start %s: %w", command[0], err)
	}
	return &heldChild{cmd: cmd, gate: gate}, nil
}

func (c *heldChild) pid() int { return c.cmd.Process.Pid }

// release lets the command run. A byte says so: an end of file alone means
// that we are gone.
func (c *heldChild) release() {
	c.done = true
	c.gate.Write([]byte{1}) // fails only when the child is dead: wait tells
	c.gate.Close()
}

// wait returns the command's end, an *exec.ExitError unless it is 0.
func (c *heldChild) wait() error { return c.cmd.Wait() }

// abandon ends a child that was never released.
func (c *heldChild) abandon() {
	if !c.done {
		c.gate.Close()
		c.cmd.Wait()
	}
}

// execHeld waits at the gate and becomes the command.
func execHeld(path string, argv []string) int {
	gate := os.NewFile(3, "gate")
	if _, err := io.ReadFull(gate, make([]byte, 1)); err != nil {
		return exitFailed
	}
	gate.Close()
	err := syscall.Exec(path, argv, os.Environ())
	fmt.Fprintf(os.Stderr, "stated: run %s: %v\n", path, err)
	return cannotRun(err)
}
