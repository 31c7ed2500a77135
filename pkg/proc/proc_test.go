// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const id = "3f4e1b2c3f4e1b2c3f4e1b2c3f4e1b2c3f4e1b2c3f4e1b2c3f4e1b2c3f4e1b2c"

func TestCgroups(t *testing.T) {
	const uid = "12345678-1234-1234-1234-123456789abc"
	under := strings.ReplaceAll(uid, "-", "_")
	for _, tt := range []struct {
		text, path, unit string
		want             Container
	}{
		{"0::/\n", "/", "", Container{}},
		{"0::/system.slice/nginx.service\n", "/system.slice/nginx.service", "nginx.service", Container{}},
		{"0::/user.slice/user-1000.slice/session-3.scope\n", "/user.slice/user-1000.slice/session-3.scope", "session-3.scope", Container{}},
		{"0::/user.slice/user-1000.slice/user@1000.service/app.slice/db.service\n",
			"/user.slice/user-1000.slice/user@1000.service/app.slice/db.service", "db.service", Container{}},
		{"0::/user.slice/user-1000.slice/user@1000.service/init.scope\n",
			"/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope", Container{}},
		{`0::/system.slice/dev\x2dserver.service` + "\n", `/system.slice/dev\x2dserver.service`, "dev-server.service", Container{}},
		{"0::/docker/" + id + "\n", "/docker/" + id, "", Container{ID: id, Runtime: "docker"}},
		{"0::/system.slice/docker-" + id + ".scope\n", "/system.slice/docker-" + id + ".scope", "docker-" + id + ".scope", Container{ID: id, Runtime: "docker"}},
		{"0::/machine.slice/libpod-" + id + ".scope/container\n", "/machine.slice/libpod-" + id + ".scope/container", "libpod-" + id + ".scope", Container{ID: id, Runtime: "podman"}},
		{"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id + ".scope\n",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id + ".scope",
			"cri-containerd-" + id + ".scope", Container{ID: id, Runtime: "containerd", PodUID: uid}},
		{"0::/kubepods/besteffort/pod" + uid + "/" + id + "\n", "/kubepods/besteffort/pod" + uid + "/" + id, "", Container{ID: id, PodUID: uid}},
		{"0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id + ".scope\n", "/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id + ".scope",
			"crio-" + id + ".scope", Container{ID: id, Runtime: "cri-o", PodUID: uid}},
		{"0::/lxc.payload.web/system.slice/x.service\n", "/lxc.payload.web/system.slice/x.service", "x.service", Container{ID: "web", Runtime: "lxc"}},
		{`0::/machine.slice/machine-my\x2dbox.scope` + "\n", `/machine.slice/machine-my\x2dbox.scope`, "machine-my-box.scope", Container{ID: "my-box", Runtime: "nspawn"}},
		{"12:memory:/docker/" + id + "\n1:name=systemd:/docker/" + id + "\n0::/system.slice/containerd.service\n",
			"/system.slice/containerd.service", "containerd.service", Container{ID: id, Runtime: "docker"}},
		{"garbage\n::\n", "", "", Container{}},
	} {
		path, unit, c := cgroups(tt.text)
		if path != tt.path || unit != tt.unit || c != tt.want {
			t.Errorf("%q:\n%q %q %+v", tt.text, path, unit, c)
		}
	}
}

// fakeProc writes a process into a root of its own.
func fakeProc(t *testing.T, root string, pid int, ticks int64, comm string) {
	t.Helper()
	dir := filepath.Join(root, "proc", strconv.Itoa(pid))
	if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("stat", fmt.Sprintf("%d (%s) S 1 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 %d 1 1", pid, comm, ticks))
	write("comm", comm+"\n")
	write("cmdline", "java\x00-jar\x00a b.jar\x00")
	write("status", "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t42\t7\n")
	write("cgroup", "0::/system.slice/shop.service\n")
	write("limits", "Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 524288               files\n")
	for _, fd := range []string{"0", "1", "2"} {
		write("fd/"+fd, "")
	}
	os.Remove(filepath.Join(dir, "exe"))
	if err := os.Symlink("/opt/java (deleted)", filepath.Join(dir, "exe")); err != nil {
		t.Fatal(err)
	}
}

func TestLookup(t *testing.T) {
	root := t.TempDir()
	fakeProc(t, root, 42, 1000, `) evil ( \n)`)
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0\nshop:x:1000:1000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := New(root, 2)
	const start = 1000*tick + 1234
	p, err := r.Lookup(42, start)
	if err != nil {
		t.Fatal(err)
	}
	if p.Exe != "/opt/java" || !p.Deleted || p.User != "shop" || p.NSPID != 7 || p.Unit != "shop.service" ||
		!slices.Equal(p.Cmdline, []string{"java", "-jar", "a b.jar"}) || p.Comm != `) evil ( \n)` {
		t.Errorf("%+v", p)
	}
	if open, limit := r.Descriptors(42); open != 3 || limit != 1024 {
		t.Errorf("%d of %d descriptors", open, limit)
	}
	if _, err := r.Lookup(42, start+5*tick); !errors.Is(err, ErrGone) {
		t.Errorf("another process of this number: %v", err)
	}
	// It ends, and its number is taken by another: both are told apart.
	fakeProc(t, root, 42, 9000, "new")
	if again, err := r.Lookup(42, start); err != nil || again.Comm != p.Comm {
		t.Errorf("the process that has ended: %+v, %v", again, err)
	}
	if other, err := r.Lookup(42, 9000*tick); err != nil || other.Comm != "new" {
		t.Errorf("its successor: %+v, %v", other, err)
	}
	// The memory is bounded: the one unused for longest goes.
	fakeProc(t, root, 43, 1, "third")
	if _, err := r.Lookup(43, tick); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup(42, start); !errors.Is(err, ErrGone) {
		t.Errorf("still remembered: %v", err)
	}
	if _, err := r.Lookup(999, 0); !errors.Is(err, ErrGone) {
		t.Errorf("a process that never was: %v", err)
	}
}

// TestLive: a real child is known after it is gone.
func TestLive(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := New("/", 16)
	pid := uint32(cmd.Process.Pid)
	any, err := r.Lookup(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup(pid, any.Start); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	p, err := r.Lookup(pid, any.Start)
	if err != nil {
		t.Fatal(err)
	}
	if p.UID != uint32(os.Getuid()) || p.PID != pid {
		t.Errorf("%+v", p)
	}
	if _, err := r.Lookup(pid, 0); !errors.Is(err, ErrGone) {
		t.Errorf("alive: %v", err)
	}
}

func FuzzCgroups(f *testing.F) {
	f.Add("0::/docker/" + id)
	f.Add(`0::/a\x2d\x`)
	f.Fuzz(func(t *testing.T, text string) {
		_, unit, _ := cgroups(text)
		if len(unit) > len(text) {
			t.Errorf("unit %q of %q", unit, text)
		}
	})
}
