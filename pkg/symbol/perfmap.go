// SPDX-License-Identifier: Apache-2.0

package symbol

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxPerfMap     = 64 << 20 // bytes
	maxPerfEntries = 1 << 19
	maxPerfName    = 1024
)

type perfEntry struct {
	start, size uint64
	name        string
}

// perfMap is what a JIT compiler says of its code.
type perfMap struct {
	entries []perfEntry // by start
	why     string      // an address has no name
}

// readPerfMap reads /tmp/perf-PID.map (Linux tools/perf/Documentation/jit-interface.txt)
// in the root of the process and by the id in its pid namespace. The file must
// belong to the user of the process or to root: anybody can write to /tmp.
func (p *Process) readPerfMap() *perfMap {
	uid, nspid, err := p.identity()
	if err != nil {
		return &perfMap{why: err.Error()}
	}
	f, err := openIn(p.root, "/tmp/perf-"+nspid+".map", true)
	if errors.Is(err, unix.ENOENT) {
		return &perfMap{why: "no /tmp/perf-" + nspid + ".map (Node: --perf-basic-prof; Java: jcmd PID Compiler.perfmap)"}
	}
	if err != nil {
		return &perfMap{why: err.Error()}
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &perfMap{why: err.Error()}
	}
	if st.Uid != uid && st.Uid != 0 {
		return &perfMap{why: fmt.Sprintf("%s belongs to user %d, not to the process's", f.Name(), st.Uid)}
	}
	m := parsePerfMap(io.LimitReader(f, maxPerfMap))
	m.why = "not in " + f.Name()
	return m
}

// identity returns the effective user and the innermost id of the process.
func (p *Process) identity() (uid uint32, nspid string, err error) {
	f, err := openAt(p.proc, "status", 0)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return 0, "", err
	}
	found := false
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		w := strings.Fields(rest)
		switch {
		case name == "Uid" && len(w) == 4:
			v, err := strconv.ParseUint(w[1], 10, 32)
			uid, found = uint32(v), err == nil
		case name == "NSpid" && len(w) > 0:
			nspid = w[len(w)-1]
		}
	}
	if _, err := strconv.ParseUint(nspid, 10, 32); err != nil || !found {
		return 0, "", errors.New("the kernel does not tell its id in its namespace (before 4.1)")
	}
	return uid, nspid, nil
}

// parsePerfMap reads "START SIZE NAME" lines, numbers in hexadecimal. Later
// lines win: compilers use addresses again.
func parsePerfMap(r io.Reader) *perfMap {
	m := &perfMap{}
	br := bufio.NewReaderSize(r, 64<<10)
	for len(m.entries) < maxPerfEntries {
		line, err := br.ReadSlice('\n')
		if e, ok := parsePerfEntry(string(line)); ok {
			m.entries = append(m.entries, e)
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = br.ReadSlice('\n')
		}
		if err != nil {
			break
		}
	}
	sort.SliceStable(m.entries, func(i, j int) bool { return m.entries[i].start < m.entries[j].start })
	return m
}

func parsePerfEntry(line string) (perfEntry, bool) {
	line = strings.TrimRight(line, "\n")
	a, rest, _ := strings.Cut(line, " ")
	b, name, ok := strings.Cut(rest, " ")
	start, err1 := strconv.ParseUint(strings.TrimPrefix(a, "0x"), 16, 64)
	size, err2 := strconv.ParseUint(strings.TrimPrefix(b, "0x"), 16, 64)
	if !ok || name == "" || err1 != nil || err2 != nil || size == 0 || start+size < start {
		return perfEntry{}, false
	}
	return perfEntry{start, size, strings.Clone(name[:min(len(name), maxPerfName)])}, true
}

// find returns the entry with an address. Of entries that overlap it looks at
// the nearest alone, so that a hostile file costs no more.
func (m *perfMap) find(pc uint64) (name string, start uint64, ok bool) {
	i := sort.Search(len(m.entries), func(i int) bool { return m.entries[i].start > pc }) - 1
	for n := 0; i >= 0 && n < 16; i, n = i-1, n+1 {
		if e := m.entries[i]; pc-e.start < e.size {
			return e.name, e.start, true
		}
	}
	return "", 0, false
}
