// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/probe"
)

// traceBuffer is an instance of the kernel's own trace buffer
// (Documentation/trace/ftrace.rst, "Instances") with one event in it.
type traceBuffer struct {
	dir  string
	stop chan struct{}
	done chan error
	text bytes.Buffer
}

// openTraceBuffer begins to keep the changes of state of TCP sockets with one
// of the ports, in so many kB for each CPU.
func openTraceBuffer(t *testing.T, size string, ports ...uint16) *traceBuffer {
	t.Helper()
	b := &traceBuffer{dir: fmt.Sprintf("/sys/kernel/tracing/instances/stated-test-%d", os.Getpid()), stop: make(chan struct{}), done: make(chan error, 1)}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		missing(t, "the kernel's trace buffer (mount -t tracefs tracefs /sys/kernel/tracing): %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(b.dir); err != nil { // rmdir(2): its files are no hindrance
			t.Error(err)
		}
	})
	var wanted []string
	for _, p := range ports {
		wanted = append(wanted, fmt.Sprintf("sport == %d || dport == %d", p, p))
	}
	const events = "events/sock/inet_sock_set_state/"
	for _, set := range [][2]string{
		{"trace_clock", "mono"}, // one clock for all CPUs, by which their buffers are merged
		{"buffer_size_kb", size},
		{events + "filter", "protocol == 6 && (" + strings.Join(wanted, " || ") + ")"},
		{events + "enable", "1"},
	} {
		if err := os.WriteFile(filepath.Join(b.dir, set[0]), []byte(set[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(filepath.Join(b.dir, "trace_pipe"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer unix.Close(fd)
		b.done <- b.read(fd)
	}()
	return b
}

func (b *traceBuffer) read(fd int) error {
	buf := make([]byte, 1<<16)
	for stopping := false; ; {
		n, err := unix.Read(fd, buf)
		switch {
		case err == nil && n > 0:
			b.text.Write(buf[:n])
		case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("read trace_pipe: %w", err)
		case stopping:
			return nil
		default:
			select {
			case <-b.stop:
				stopping = true // read what is left
			case <-time.After(time.Millisecond):
			}
		}
	}
}

// close ends the tracing and returns the lines, and how many events the buffer
// itself lost: overwritten ones and those that found it busy.
func (b *traceBuffer) close(t *testing.T) (lines []string, lost int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, "events/sock/inet_sock_set_state/enable"), []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	close(b.stop)
	if err := <-b.done; err != nil {
		t.Fatal(err)
	}
	stats, err := filepath.Glob(filepath.Join(b.dir, "per_cpu/cpu*/stats"))
	if err != nil || len(stats) == 0 {
		t.Fatal("no statistics: ", err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			if key == "overrun" || key == "commit overrun" || key == "dropped events" {
				n, err := strconv.Atoi(strings.TrimSpace(value))
				if err != nil {
					t.Fatal(err)
				}
				lost += n
			}
		}
	}
	for line := range strings.Lines(b.text.String()) {
		lines = append(lines, line)
	}
	return lines, lost
}

// parseTrace reads the text of an inet_sock_set_state event, whose format is
// in its format file (TP_printk in include/trace/events/sock.h).
func parseTrace(line string) (x transition, ok bool) {
	_, text, ok := strings.Cut(line, " inet_sock_set_state: ")
	if !ok {
		return x, false
	}
	f := make(map[string]string)
	for word := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(word, "=")
		f[key] = value
	}
	var errs [4]error
	x.local, errs[0] = endpoint(f["saddr"], f["sport"])
	x.peer, errs[1] = endpoint(f["daddr"], f["dport"])
	x.from, errs[2] = event.ParseState(strings.TrimPrefix(f["oldstate"], "TCP_"))
	x.to, errs[3] = event.ParseState(strings.TrimPrefix(f["newstate"], "TCP_"))
	return x, errors.Join(errs[:]...) == nil
}

// seenTransition is what is kept of our events.
type seenTransition struct {
	socket event.SocketID
	netns  uint32
	transition
}

// gather reads the probe until stop is called and nothing more comes; stop
// returns the changes of state of TCP sockets.
func gather(p *probe.Probe) (stop func() ([]seenTransition, error)) {
	type result struct {
		seen []seenTransition
		err  error
	}
	ask, answer := make(chan struct{}), make(chan result)
	go func() {
		var r result
		for asked, quiet := false, 0; r.err == nil && quiet < 3; {
			var e event.Event
			err := p.Read(&e)
			switch {
			case errors.Is(err, event.ErrIdle):
				if asked {
					quiet++
				}
			case err != nil:
				r.err = err
			case e.Kind == event.KindLost:
				r.err = fmt.Errorf("%d events lost", e.Count)
			case e.Kind == event.KindState && e.Protocol == event.ProtoTCP:
				r.seen = append(r.seen, seenTransition{e.Socket, e.Netns, transitionOf(&e)})
			}
			select {
			case <-ask:
				asked = true
			default:
			}
		}
		answer <- r
	}()
	return func() ([]seenTransition, error) {
		go func() { ask <- struct{}{} }() // the reader may have failed
		r := <-answer
		return r.seen, r.err
	}
}

// TestTraceBuffer: under churn on all CPUs, the same transitions as the
// kernel's own trace buffer has, none missing on our side, in the same order
// for each socket. Its text names no socket: each connection has a client
// address of its own instead. A buffer that is too small counts what it lost:
// then the counts must agree to the last event.
func TestTraceBuffer(t *testing.T) {
	t.Run("whole", func(t *testing.T) {
		if lost := compareTraceBuffer(t, 8000, "16384"); lost > 0 {
			t.Logf("the trace buffer lost %d events: which ones is not known", lost)
		}
	})
	t.Run("overrun", func(t *testing.T) { compareTraceBuffer(t, 3000, "64") })
}

// compareTraceBuffer makes twice n connections and returns how many events the
// buffer lost.
func compareTraceBuffer(t *testing.T, n int, size string) (lost int) {
	p := openProbe(t, probe.Options{RingBytes: 32 << 20})
	stop := gather(p)
	s := newSpace(t)
	var listeners [2]netip.AddrPort
	var fds [2]int
	ready, traced := make(chan struct{}), make(chan struct{})
	ended := s.start(func() {
		for i := range listeners {
			fds[i], listeners[i] = s.listen(s.v4, 64)
		}
		close(ready)
		<-traced
		other := s.beside(func(s *space) { s.churn(fds[1], listeners[1], 2, n) })
		s.churn(fds[0], listeners[0], 1, n)
		if err := <-other; err != nil {
			panic(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("in the namespace: %v", err)
	}
	b := openTraceBuffer(t, size, listeners[0].Port(), listeners[1].Port())
	close(traced)
	if err := <-ended; err != nil {
		t.Fatalf("in the namespace: %v", err)
	}
	lines, lost := b.close(t)
	seen, err := stop()
	if err != nil {
		t.Fatal(err)
	}
	// of returns who a transition is about: a client or a server, by the address
	// of the client; "" for a listener's own, and for what is not of this test.
	of := func(x transition) string {
		switch {
		case slices.Contains(listeners[:], x.peer):
			return "client " + x.local.Addr().String()
		case slices.Contains(listeners[:], x.local) && x.peer.Port() != 0:
			return "server " + x.peer.Addr().String()
		}
		return ""
	}
	var ours, theirs lives[string]
	var told, heard int
	for _, x := range seen {
		if key := of(x.transition); key != "" && x.netns == s.inode {
			ours.add(key, x.transition)
			told++
		}
	}
	for _, line := range lines {
		if x, ok := parseTrace(line); ok && of(x) != "" {
			theirs.add(of(x), x)
			heard++
		}
	}
	t.Logf("%d transitions of %d connections; the trace buffer has %d and lost %d", told, 2*n, heard, lost)
	if told != heard+lost {
		t.Errorf("%d transitions, the trace buffer has %d and lost %d", told, heard, lost)
	}
	if len(ours.all) != 4*n {
		t.Errorf("%d ends of %d connections", len(ours.all), 2*n)
	}
	if lost > 0 {
		return lost // which ones is not known
	}
	onlyTheirs, onlyOurs := difference(theirs.texts(), ours.texts())
	for _, life := range onlyTheirs[:min(len(onlyTheirs), 10)] {
		t.Errorf("only in the trace buffer\n\t%s", life)
	}
	for _, life := range onlyOurs[:min(len(onlyOurs), 10)] {
		t.Errorf("only stated saw\n\t%s", life)
	}
	return 0
}
