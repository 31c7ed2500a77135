// SPDX-License-Identifier: Apache-2.0

// Command vminit is the first process of the virtual machines in which the
// kernel tests run: it mounts what they need, loads modules, runs each test
// binary, says how that ended on the console and powers off.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// marker begins the line that tells .ci/vm.sh the result.
const marker = "stated-vm: exit "

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "vminit is the first process of a virtual machine; it does nothing elsewhere")
		os.Exit(2)
	}
	code := 0
	if err := run(); err != nil {
		fmt.Println("stated-vm:", err)
		code = 1
	}
	fmt.Printf("%s%d\n", marker, code)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ kind, path string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
		{"tracefs", "/sys/kernel/tracing"}, {"bpf", "/sys/fs/bpf"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		os.MkdirAll(m.path, 0o755) // sysfs has its own
		if err := unix.Mount(m.kind, m.path, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	for name, target := range map[string]string{"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"} { // as udev makes them
		if err := os.Symlink("/proc/self/fd"+target, "/dev/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for _, kv := range []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "STATED_KERNEL_TEST=1", "STATED_VM=1"} {
		k, v, _ := strings.Cut(kv, "=")
		os.Setenv(k, v)
	}
	modules, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	for _, path := range modules {
		if err := load(path); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	fmt.Println("stated-vm: kernel", unix.ByteSliceToString(u.Release[:]))
	tests, err := filepath.Glob("/tests/*.test")
	if err != nil {
		return fmt.Errorf("list the tests: %w", err)
	}
	if len(tests) == 0 {
		return errors.New("no tests in /tests")
	}
	var failed []string
	for _, path := range tests {
		cmd := exec.Command(path, "-test.v", "-test.timeout=13m", "-test.short", "-test.run="+os.Getenv("STATED_RUN")) // of the kernel's command line
		cmd.Stdout, cmd.Stderr, cmd.Dir = os.Stdout, os.Stdout, "/tests"
		if err := cmd.Run(); err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", filepath.Base(path), err))
		}
	}
	if failed != nil {
		return fmt.Errorf("failed: %s", strings.Join(failed, "; "))
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}
