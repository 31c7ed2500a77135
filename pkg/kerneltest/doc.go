// SPDX-License-Identifier: Apache-2.0

// Package kerneltest holds stated against witnesses that know nothing of it:
// other tracers, the kernel's own trace buffer, ss, and what servers and
// clients log themselves. It has tests only.
package kerneltest
