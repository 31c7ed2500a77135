// SPDX-License-Identifier: Apache-2.0

package event

// Stack is where in the code a socket was opened: at connect(), or where
// accept() returned it.
type Stack struct {
	Task Task // the process that called
	// Image tells the program that ran from another one that the process runs
	// after execve(): mm->start_code and mm->start_stack, fields 26 and 28 of
	// /proc/PID/stat (proc(5)).
	Image [2]uint64
	// Addresses are those that the calls return to, innermost first, found by
	// the frame pointers of the program.
	Addresses []uint64
	// Top are the words at the stack pointer: the caller of a function without
	// a frame of its own is among them. nil unknown.
	Top []uint64
	// Deeper says that there were more addresses than are taken.
	Deeper bool
}
