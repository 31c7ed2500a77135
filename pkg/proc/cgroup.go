// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"strconv"
	"strings"
)

// Cgroup is what the path of a control group says by the conventions of systemd,
// the container runtimes and kubelet. What the path does not say is empty. Names
// in it are chosen by those who make groups: escape before printing.
type Cgroup struct {
	Path     string // from the root of the hierarchy, "" unknown
	ID       uint64 // cgroup v2 id (bpf_get_current_cgroup_id), 0 unknown
	Unit     string // system unit: nginx.service, session-3.scope, user@1000.service
	UserUnit string // unit of the user's own manager, below user@UID.service
	Slice    string // innermost slice above Unit: system.slice
	Container
}

// Container is the innermost container of a path.
type Container struct {
	ID      string // the runtime's: mostly 64 hex digits; of lxc and nspawn the name
	Name    string // where the path has it (lxc, nspawn); Names finds the others
	Runtime string // docker, containerd, cri-o, podman, lxc, systemd-nspawn; "" unknown
	PodUID  string // Kubernetes; of static pods a hash without dashes
}

// runtimes are the prefixes of container groups: PREFIX-ID.scope with the
// systemd driver, PREFIX-ID or SLICE:PREFIX:ID else. The longest match must
// come first; monitors are no containers.
var runtimes = []struct{ prefix, runtime string }{
	{"docker", "docker"},             // moby daemon/oci_linux.go, WithCgroups
	{"cri-containerd", "containerd"}, // containerd internal/cri/server/podsandbox/helpers.go, getCgroupsPath
	{"nerdctl", "containerd"},        // nerdctl pkg/cmd/container/run_cgroup_linux.go
	{"crio-conmon", ""},              // cri-o internal/config/cgmgr: the monitor
	{"crio", "cri-o"},
	{"libpod-conmon", ""},        // podman libpod/oci_conmon_linux.go: the monitor
	{"libpod-payload", "podman"}, // podman --cgroups=split
	{"libpod", "podman"},
}

// ParseCgroup reads a path as found in /proc/PID/cgroup.
func ParseCgroup(path string) Cgroup {
	path = strings.TrimSuffix(path, " (deleted)") // kernel/cgroup/cgroup.c, proc_cgroup_show
	c := Cgroup{Path: path}
	c.parseUnits(path)
	parent := ""
	for seg := range strings.SplitSeq(path, "/") {
		if seg == "" {
			continue
		}
		if uid := podUID(seg); uid != "" {
			c.Container = Container{PodUID: uid}
		}
		c.parseContainer(seg, parent, path)
		parent = seg
	}
	return c
}

// parseUnits follows systemd's src/basic/cgroup-util.c, cg_path_get_unit and
// cg_path_get_user_unit: slices, then the unit.
func (c *Cgroup) parseUnits(path string) {
	rest, slice, unit := nextUnit(path)
	c.Slice, c.Unit = slice, unit
	if strings.HasPrefix(unit, "user@") {
		_, _, c.UserUnit = nextUnit(rest)
	}
}

// nextUnit skips slices and returns the unit below the last of them, and what
// is left of the path. A segment that is no unit ends the search.
func nextUnit(path string) (rest, slice, unit string) {
	rest = path
	for {
		var seg string
		rest = strings.TrimLeft(rest, "/")
		seg, rest, _ = strings.Cut(rest, "/")
		seg = strings.TrimPrefix(seg, "_") // cg_unescape
		switch {
		case strings.HasSuffix(seg, ".slice") && isUnitName(seg):
			slice = seg
		case isUnitName(seg):
			return rest, slice, seg
		default:
			return "", slice, ""
		}
	}
}

// isUnitName follows systemd's src/basic/unit-name.c for the kinds that have a group.
func isUnitName(s string) bool {
	dot := strings.LastIndexByte(s, '.')
	if dot <= 0 || len(s) > 255 {
		return false
	}
	switch s[dot:] {
	case ".service", ".scope", ".slice", ".socket", ".mount", ".swap":
	default:
		return false
	}
	for i := range len(s) {
		if b := s[i]; !isAlnum(b) && !strings.ContainsRune(":-_.\\@", rune(b)) {
			return false
		}
	}
	return true
}

func isAlnum(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

// podUID returns the uid in kubelet's names of a pod's group: podUID below
// kubepods[/QOS] with the cgroupfs driver, [PREFIX-]kubepods[-QOS]-podUID.slice
// with dashes as underscores with the systemd driver
// (kubernetes pkg/kubelet/cm/pod_container_manager_linux.go, cgroup_manager_linux.go).
func podUID(seg string) string {
	seg, _, _ = strings.Cut(seg, ":") // SLICE:PREFIX:ID
	uid, ok := strings.CutPrefix(seg, "pod")
	if name, isSlice := strings.CutSuffix(seg, ".slice"); isSlice {
		i := strings.LastIndex(name, "-pod")
		if i < 0 || !strings.Contains(name[:i], "kubepods") {
			return ""
		}
		uid, ok = strings.ReplaceAll(name[i+len("-pod"):], "_", "-"), true
	}
	if !ok || !isHex(strings.ReplaceAll(uid, "-", ""), 32) {
		return ""
	}
	return uid
}

// parseContainer takes a container from one segment of the path, if it is one.
func (c *Cgroup) parseContainer(seg, parent, path string) {
	set := func(id, runtime string) {
		c.Container = Container{ID: id, Runtime: runtime, PodUID: c.PodUID}
	}
	name, isScope := strings.CutSuffix(seg, ".scope")
	for _, r := range runtimes {
		id, ok := strings.CutPrefix(name, r.prefix+"-")
		if !ok {
			_, id, ok = strings.Cut(name, ":"+r.prefix+":")
		}
		if ok && isHex(id, 64) {
			if r.runtime != "" {
				set(id, r.runtime)
			}
			return
		}
	}
	if isHex(seg, 64) {
		set(seg, bareRuntime(parent))
		return
	}
	c.parseNamed(seg, parent, name, isScope)
}

// bareRuntime says whose a group is that is called by its id alone.
func bareRuntime(parent string) string {
	switch parent {
	case "docker":
		return "docker"
	case "libpod_parent":
		return "podman"
	}
	return "" // a pod's of any runtime, docker --cgroup-parent, ...
}

// parseNamed takes the containers that go by a name.
func (c *Cgroup) parseNamed(seg, parent, name string, isScope bool) {
	var runtime string
	switch {
	case strings.HasPrefix(seg, "lxc.payload."): // lxc src/lxc/cgroups/cgfsng.c
		name, runtime = seg[len("lxc.payload."):], "lxc"
	case parent == "lxc" && !strings.HasPrefix(seg, "lxc."):
		name, runtime = seg, "lxc"
	case isScope && parent == "machine.slice" && strings.HasPrefix(name, "machine-"):
		name = unescapeUnit(name[len("machine-"):]) // systemd src/machine/machined-dbus.c
		if strings.HasPrefix(name, "qemu-") {
			return // libvirt's virtual machines
		}
		runtime = "systemd-nspawn"
		if rest, ok := strings.CutPrefix(name, "lxc-"); ok { // libvirt's
			name, runtime = rest, "lxc"
		}
	case parent == "machine.slice" && strings.HasPrefix(seg, "systemd-nspawn@") && strings.HasSuffix(seg, ".service"):
		name = unescapeUnit(strings.TrimSuffix(seg[len("systemd-nspawn@"):], ".service"))
		runtime = "systemd-nspawn"
	default:
		return
	}
	if name != "" {
		c.Container = Container{ID: name, Name: name, Runtime: runtime, PodUID: c.PodUID}
	}
}

// unescapeUnit undoes systemd's \xNN (src/basic/unit-name.c, unit_name_unescape).
func unescapeUnit(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		if len(s) >= 4 && s[:2] == `\x` {
			if v, err := strconv.ParseUint(s[2:4], 16, 8); err == nil {
				b.WriteByte(byte(v))
				s = s[4:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range len(s) {
		if b := s[i]; !(b >= '0' && b <= '9' || b >= 'a' && b <= 'f') {
			return false
		}
	}
	return true
}
