// SPDX-License-Identifier: Apache-2.0

// Command stated tells the truth about every TCP connection of a Linux host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/probe"
)

// Exit codes, beside 0 and a child's own.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitUnusable = 3 // the kernel or the privileges do not allow it
	exitLeaks    = 4 // leaks found more than --max
)

// cannotRun is what a shell exits with for a command that it cannot run.
func cannotRun(err error) int {
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, exec.ErrNotFound) {
		return 127
	}
	return 126
}

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) > 2 && args[0] == heldExec {
		return execHeld(args[1], args[2:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A closed pipe is the end of the work, told by the write, not by a signal.
	signal.Ignore(syscall.SIGPIPE)
	root := newRoot()
	root.SetArgs(args)
	return code(root.ExecuteContext(ctx))
}

// code reports err and maps it to the exit code.
func code(err error) int {
	var child *exec.ExitError
	var unusable *probe.UnusableError
	var usage usageError
	var unfound *exec.Error
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE):
		return 0
	case errors.Is(err, errLeaks):
		return exitLeaks // the report has said it
	case errors.As(err, &child):
		if status, ok := child.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal())
		}
		return child.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "stated: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nstated: "))
	switch {
	case errors.As(err, &unusable):
		return exitUnusable
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &unfound):
		return cannotRun(unfound.Err)
	}
	return exitFailed
}

// plain says that a flag should be a number without naming the function that found
// it is none.
func plain(err error) error {
	var number *strconv.NumError
	if !errors.As(err, &number) {
		return err
	}
	why := fmt.Sprintf("%q is not a number", number.Num)
	if errors.Is(number.Err, strconv.ErrRange) {
		why = number.Num + " is too large a number"
	}
	return errors.New(strings.Replace(err.Error(), number.Error(), why, 1))
}

// untilHangup has SIGHUP end a command, as SIGTERM does.
func untilHangup(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
		defer stop()
		cmd.SetContext(ctx)
		return run(cmd, args)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "stated",
		Short: "Tell the truth about every TCP connection of this host",
		Long: `stated watches every TCP connection of this host through the kernel's own
state changes: which state each is in, since when, who owns it, how it ended.

Most of it needs root, or CAP_BPF and CAP_PERFMON; 'stated check' says what
this kernel allows. 'stated explain' needs nothing.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see '%s --help')", plain(err), cmd.CommandPath())}
	})
	root.AddCommand(newTrace(), newAgent(), newLeaks(), newLs(), newRecord(), newReplay(), newExplain(), newSchema(), newCheck(), newVersion())
	for _, cmd := range append(root.Commands(), root) {
		args := cmd.Args
		if args == nil {
			args = cobra.NoArgs
		}
		cmd.Args = func(cmd *cobra.Command, a []string) error {
			if err := args(cmd, a); err != nil {
				return usageError{fmt.Errorf("%w (see '%s --help')", err, cmd.CommandPath())}
			}
			return nil
		}
		if cmd.RunE != nil && cmd.Name() != agentName {
			cmd.RunE = untilHangup(cmd.RunE)
		}
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return root
}
