// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"bufio"
	"io"
	"strconv"
	"strings"
)

const (
	maxMaps     = 32 << 20 // bytes of /proc/PID/maps; a process may have 65530 mappings (vm.max_map_count), or more
	maxMapsLine = 8 << 10  // a path has at most 4096 bytes, of which newlines take four
)

// mapping is one line of /proc/PID/maps that can be executed.
type mapping struct {
	start, end uint64
	offset     uint64
	dev, ino   uint64
	path       string // "(deleted)" removed
	deleted    bool
}

// anonymous reports whether there is no file with code: JIT compilers use plain
// memory, memfd or names of their own ([anon:...], prctl PR_SET_VMA).
func (m mapping) anonymous() bool {
	return m.path == "" || m.path == "[heap]" || m.path == "[stack]" || strings.HasPrefix(m.path, "[anon") ||
		strings.HasPrefix(m.path, "/memfd:") || strings.HasPrefix(m.path, "//anon") || strings.HasPrefix(m.path, "/dev/zero")
}

// parseMaps reads /proc/PID/maps (proc_pid_maps(5); fs/proc/task_mmu.c, show_map_vma),
// which is sorted by address. Lines that make no sense are left out.
func parseMaps(r io.Reader) ([]mapping, error) {
	var out []mapping
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), 4*maxMapsLine)
	for sc.Scan() {
		m, ok := parseMapping(sc.Text())
		if ok && (len(out) == 0 || m.start >= out[len(out)-1].end) {
			out = append(out, m)
		}
	}
	return out, sc.Err()
}

// parseMapping reads "55d0-55e0 r-xp 00002000 fe:00 325835      /usr/bin/cat".
func parseMapping(line string) (m mapping, ok bool) {
	var f [5]string
	rest := line
	for i := range f {
		f[i], rest, _ = strings.Cut(rest, " ")
	}
	low, high, ok1 := strings.Cut(f[0], "-")
	major, minor, ok2 := strings.Cut(f[3], ":")
	if !ok1 || !ok2 || len(f[1]) != 4 || f[1][2] != 'x' {
		return m, false
	}
	var maj, min uint64
	for _, n := range []struct {
		dst  *uint64
		s    string
		base int
	}{{&m.start, low, 16}, {&m.end, high, 16}, {&m.offset, f[2], 16}, {&maj, major, 16}, {&min, minor, 16}, {&m.ino, f[4], 10}} {
		v, err := strconv.ParseUint(n.s, n.base, 64)
		if err != nil {
			return m, false
		}
		*n.dst = v
	}
	m.dev = maj<<32 | min // a key, not a dev_t
	m.path = strings.ReplaceAll(strings.TrimLeft(rest, " "), `\012`, "\n")
	m.path, m.deleted = strings.CutSuffix(m.path, " (deleted)")
	return m, m.start < m.end
}
