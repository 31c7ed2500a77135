// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/stated-tcp/stated/pkg/diag"
	"github.com/stated-tcp/stated/pkg/event"
)

func (p *Probe) loadClassic() error {
	offset, err := classicOffset()
	if err != nil {
		return err
	}
	spec, err := p.newSpec()
	if err != nil {
		return err
	}
	if err := spec.Variables[bpfVarCfgTpSkaddr].Set(offset); err != nil {
		return fmt.Errorf("set %s: %w", bpfVarCfgTpSkaddr, err)
	}
	return p.load(&hookClassic, spec)
}

// useSockDiag has it show the sockets that are there.
func (p *Probe) useSockDiag() {
	p.names, p.found = newNames(), make(chan found, foundAhead)
	err := p.guard.lister.List(0, event.SetOf(event.StateSynSent), func(*diag.Batch) error { return nil })
	p.hooks = append(p.hooks, HookStatus{Hook: hookSockDiag, Err: err})
	for i := range p.hooks {
		if h := &p.hooks[i]; err == nil && h.Tier == TierScan && h.Err != nil {
			h.Without = "sock_diag and /proc serve, which know less"
		}
	}
}

// classicOffset returns where skaddr lies in the record of the classic
// tracepoint, from its description in tracefs: the header in front of it is
// longer on some kernels (RHEL 9, PREEMPT_RT). What follows it never changed
// since the protocol became 16 bits wide in 5.6; check it all the same.
func classicOffset() (uint32, error) {
	var text []byte
	var err error
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if text, err = os.ReadFile(dir + "/events/sock/inet_sock_set_state/format"); err == nil {
			break
		}
	}
	if err != nil {
		return 0, fmt.Errorf("read the layout of sock:inet_sock_set_state: %w", err)
	}
	return parseClassicFormat(string(text))
}

func parseClassicFormat(text string) (uint32, error) {
	offsets := make(map[string]int)
	for line := range strings.Lines(text) {
		var offset, size int
		decl, rest, ok := strings.Cut(strings.TrimSpace(line), ";")
		if !ok || !strings.HasPrefix(decl, "field:") {
			continue
		}
		if _, err := fmt.Sscanf(strings.TrimSpace(rest), "offset:%d;\tsize:%d;", &offset, &size); err != nil {
			continue
		}
		name := decl[strings.LastIndexAny(decl, " *")+1:]
		name, _, _ = strings.Cut(name, "[")
		offsets[name] = offset
	}
	base, ok := offsets["skaddr"]
	if !ok {
		return 0, errors.New("sock:inet_sock_set_state has no field skaddr")
	}
	ptr := 8 // all our targets are 64 bits wide
	for name, want := range map[string]int{
		"oldstate": 0, "newstate": 4, "sport": 8, "dport": 10, "family": 12, "protocol": 14,
		"saddr": 16, "daddr": 20, "saddr_v6": 24, "daddr_v6": 40,
	} {
		if got, ok := offsets[name]; !ok || got != base+ptr+want {
			return 0, fmt.Errorf("sock:inet_sock_set_state has %s at %d, expected %d: a kernel before 5.6, or one that we do not know", name, got, base+ptr+want)
		}
	}
	return uint32(base), nil
}
