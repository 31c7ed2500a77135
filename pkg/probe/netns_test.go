// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenNetns: what is no network namespace by now is not opened: a pipe would
// wait for a writer, forever.
func TestOpenNetns(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "net:[4026531840]")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, dir, "/proc/self/ns/mnt", "/dev/null"} {
		if f, err := openNetns(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, %v", path, f, err)
		}
	}
	f, err := openNetns("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other := netns{inode: 1, open: func() (*os.File, error) { return openNetns("/proc/self/ns/net") }}
	if err := other.inside(func() error { t.Error("entered"); return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another namespace than the one meant: %v", err)
	}
}

// TestNetnsOfSocket: only a socket is asked for its namespace.
func TestNetnsOfSocket(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if ns, err := netnsOfSocket(os.Getpid(), int(r.Fd())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v", ns, err)
	}
}
