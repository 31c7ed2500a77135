// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"strings"
	"testing"
)

func TestParseCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	const uid = "2e0a7e5c-9b1f-4b0e-8a5b-0d3c1f6b7a90"
	uid_ := strings.ReplaceAll(uid, "-", "_")
	user := "/user.slice/user-1000.slice/user@1000.service"
	for path, want := range map[string]Cgroup{
		"/":                                     {},
		"/init.scope":                           {Unit: "init.scope"},
		"/system.slice/nginx.service":           {Unit: "nginx.service", Slice: "system.slice"},
		"/system.slice/nginx.service/sub":       {Unit: "nginx.service", Slice: "system.slice"},
		"/system.slice/nginx.service (deleted)": {Unit: "nginx.service", Slice: "system.slice"},
		"/system.slice/system-getty.slice/getty@tty1.service":             {Unit: "getty@tty1.service", Slice: "system-getty.slice"},
		"/system.slice/system-serial\\x2dgetty.slice/getty@ttyS0.service": {Unit: "getty@ttyS0.service", Slice: "system-serial\\x2dgetty.slice"},
		"/system.slice/_cgroup.service":                                   {Unit: "cgroup.service", Slice: "system.slice"},
		"/user.slice/user-1000.slice/session-3.scope":                     {Unit: "session-3.scope", Slice: "user-1000.slice"},
		user + "/app.slice/app-gnome\\x2dterminal.scope":                  {Unit: "user@1000.service", UserUnit: "app-gnome\\x2dterminal.scope", Slice: "user-1000.slice"},
		user + "/init.scope":                                              {Unit: "user@1000.service", UserUnit: "init.scope", Slice: "user-1000.slice"},
		"/process_api/a8f71a7d4ab1aa7f3ba5761a78c1dc61":                   {},
		"/sys\ntem.slice/x.service":                                       {},

		"/docker/" + id:                          {Container: Container{ID: id, Runtime: "docker"}},
		"/docker/" + id + "/init.scope":          {Container: Container{ID: id, Runtime: "docker"}},
		"/docker/" + id[:63]:                     {},
		"/system.slice/docker-" + id + ".scope":  {Unit: "docker-" + id + ".scope", Slice: "system.slice", Container: Container{ID: id, Runtime: "docker"}},
		"/system.slice/nerdctl-" + id + ".scope": {Unit: "nerdctl-" + id + ".scope", Slice: "system.slice", Container: Container{ID: id, Runtime: "containerd"}},
		"/ecs/0123abcd/" + id:                    {Container: Container{ID: id}},
		"/default/" + id:                         {Container: Container{ID: id}},
		user + "/user.slice/docker-" + id + ".scope": {Unit: "user@1000.service", UserUnit: "docker-" + id + ".scope", Slice: "user-1000.slice",
			Container: Container{ID: id, Runtime: "docker"}},
		"/system.slice/containerd.service/kubepods-burstable-pod" + uid_ + ".slice:cri-containerd:" + id: {Unit: "containerd.service", Slice: "system.slice",
			Container: Container{ID: id, Runtime: "containerd", PodUID: uid}},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uid_ + ".slice/cri-containerd-" + id + ".scope": {
			Unit: "cri-containerd-" + id + ".scope", Slice: "kubepods-burstable-pod" + uid_ + ".slice", Container: Container{ID: id, Runtime: "containerd", PodUID: uid}},
		"/kubepods.slice/kubepods-pod" + uid_ + ".slice/crio-" + id + ".scope/container": {
			Unit: "crio-" + id + ".scope", Slice: "kubepods-pod" + uid_ + ".slice", Container: Container{ID: id, Runtime: "cri-o", PodUID: uid}},
		"/kubepods.slice/kubepods-pod" + uid_ + ".slice/crio-conmon-" + id + ".scope": {
			Unit: "crio-conmon-" + id + ".scope", Slice: "kubepods-pod" + uid_ + ".slice", Container: Container{PodUID: uid}},
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort-pod" + uid_ + ".slice": {
			Slice: "kubelet-kubepods-besteffort-pod" + uid_ + ".slice", Container: Container{PodUID: uid}},
		"/kubepods/besteffort/pod" + uid + "/" + id:            {Container: Container{ID: id, PodUID: uid}},
		"/kubepods/pod" + id[:32] + "/" + id:                   {Container: Container{ID: id, PodUID: id[:32]}},
		"/kubepods/burstable/pod" + uid + "/crio-" + id:        {Container: Container{ID: id, Runtime: "cri-o", PodUID: uid}},
		"/docker/" + strings.Repeat("f", 64) + "/docker/" + id: {Container: Container{ID: id, Runtime: "docker"}},

		"/machine.slice/libpod-" + id + ".scope/container": {Unit: "libpod-" + id + ".scope", Slice: "machine.slice", Container: Container{ID: id, Runtime: "podman"}},
		"/machine.slice/libpod-conmon-" + id + ".scope":    {Unit: "libpod-conmon-" + id + ".scope", Slice: "machine.slice"},
		user + "/user.slice/libpod-" + id + ".scope": {Unit: "user@1000.service", UserUnit: "libpod-" + id + ".scope", Slice: "user-1000.slice",
			Container: Container{ID: id, Runtime: "podman"}},
		"/system.slice/web.service/libpod-payload-" + id: {Unit: "web.service", Slice: "system.slice", Container: Container{ID: id, Runtime: "podman"}},
		"/libpod_parent/libpod-" + id:                    {Container: Container{ID: id, Runtime: "podman"}},

		"/lxc.payload.web/system.slice/x.service": {Container: Container{ID: "web", Name: "web", Runtime: "lxc"}},
		"/lxc.monitor.web":                        {},
		"/lxc/101/ns":                             {Container: Container{ID: "101", Name: "101", Runtime: "lxc"}},
		"/machine.slice/machine-my\\x2dbox.scope": {Unit: "machine-my\\x2dbox.scope", Slice: "machine.slice",
			Container: Container{ID: "my-box", Name: "my-box", Runtime: "systemd-nspawn"}},
		"/machine.slice/systemd-nspawn@box.service/payload": {Unit: "systemd-nspawn@box.service", Slice: "machine.slice",
			Container: Container{ID: "box", Name: "box", Runtime: "systemd-nspawn"}},
		"/machine.slice/machine-qemu\\x2d1\\x2dvm.scope": {Unit: "machine-qemu\\x2d1\\x2dvm.scope", Slice: "machine.slice"},
	} {
		want.Path = strings.TrimSuffix(path, deleted)
		if got := ParseCgroup(path); got != want {
			t.Errorf("%s\n got %+v\nwant %+v", path, got, want)
		}
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add(`/machine.slice/machine-my\x2.scope`)
	f.Fuzz(func(t *testing.T, path string) {
		if c := ParseCgroup(path); len(c.Container.ID) > len(path) {
			t.Errorf("%q: %+v", path, c)
		}
	})
}
