// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"regexp"
	"strconv"
	"strings"
)

// cgroups reads /proc/PID/cgroup: the path in cgroup v2, and the unit and
// container that any of the paths names.
func cgroups(text string) (path, unit string, c Container) {
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, p, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		if controllers == "" {
			path = p
		}
		if controllers != "" && controllers != "name=systemd" && c.ID != "" {
			continue
		}
		if u := unitOf(p); u != "" && unit == "" {
			unit = u
		}
		if found := containerOf(p); found.ID != "" && c.ID == "" {
			c = found
		} else if c.PodUID == "" && found.PodUID != "" {
			c.PodUID = found.PodUID
		}
	}
	return path, unit, c
}

// unitOf returns the systemd unit that a cgroup path lies in: the innermost
// service or scope, of the user's manager where there is one.
func unitOf(path string) string {
	unit := ""
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case strings.HasPrefix(part, "user@") && strings.HasSuffix(part, ".service"):
			// the user's manager; its own units follow
			if unit == "" {
				unit = part
			}
		case strings.HasSuffix(part, ".service"), strings.HasSuffix(part, ".scope"):
			unit = unescape(part)
		}
	}
	return unit
}

// unescape undoes systemd-escape(1): \x2d is a dash.
func unescape(s string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, `\x`)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if len(rest) >= 2 {
			if v, err := strconv.ParseUint(rest[:2], 16, 8); err == nil {
				b.WriteByte(byte(v))
				s = rest[2:]
				continue
			}
		}
		b.WriteString(`\x`)
		s = rest
	}
}

var (
	hex64 = regexp.MustCompile(`(?:^|[-_/:.])([0-9a-f]{64})(?:[./]|$)`)
	pod   = regexp.MustCompile(`pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})`)
)

// containerOf reads the spellings of the runtimes, in their cgroupfs and
// systemd forms.
func containerOf(path string) (c Container) {
	if m := pod.FindStringSubmatch(path); m != nil {
		c.PodUID = strings.ReplaceAll(m[1], "_", "-")
	}
	if all := hex64.FindAllStringSubmatch(path, -1); all != nil {
		c.ID = all[len(all)-1][1] // the innermost
		c.Runtime = runtimeOf(path)
		return c
	}
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case strings.HasPrefix(part, "lxc.payload."):
			c.ID, c.Runtime = strings.TrimPrefix(part, "lxc.payload."), "lxc"
		case strings.HasPrefix(part, "machine-") && strings.HasSuffix(part, ".scope"):
			c.ID, c.Runtime = unescape(strings.TrimSuffix(strings.TrimPrefix(part, "machine-"), ".scope")), "nspawn"
		}
	}
	return c
}

func runtimeOf(path string) string {
	for _, r := range [...]struct{ mark, name string }{
		{"cri-containerd", "containerd"}, {"crio-", "cri-o"}, {"crio:", "cri-o"}, {"libpod", "podman"},
		{"docker", "docker"}, {"containerd", "containerd"}, {"/lxc/", "lxc"},
	} {
		if strings.Contains(path, r.mark) {
			return r.name
		}
	}
	return ""
}
