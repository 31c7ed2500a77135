// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

const second = int64(time.Second)

func waiting(age census.Age, change func(*census.Socket)) *census.Socket {
	s := &census.Socket{Age: age, Role: lifecycle.RoleClient}
	s.New = event.StateCloseWait
	s.Flags = event.FlagDone
	s.Local = netip.MustParseAddrPort("10.0.0.1:40000")
	s.Peer = netip.MustParseAddrPort("10.0.0.2:443")
	if change != nil {
		change(s)
	}
	return s
}

// TestFind: what is too old is found, what may be is counted apart, what is
// not is none.
func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		socket                  *census.Socket
		found, undecided, young int
	}{
		{"exactly old enough", waiting(census.Age{Min: 30 * second, Max: 30 * second, Known: lifecycle.Seen}, nil), 1, 0, 0},
		{"exactly too young", waiting(census.Age{Min: 30*second - 1, Max: 30*second - 1, Known: lifecycle.Seen}, nil), 0, 0, 1},
		{"at least old enough", waiting(census.Age{Min: 31 * second, Known: lifecycle.AtLeast}, nil), 1, 0, 0},
		{"may be old enough", waiting(census.Age{Min: second, Max: 90 * second, Known: lifecycle.AtLeast}, nil), 0, 1, 0},
		{"no bound", waiting(census.Age{Known: lifecycle.AtLeast}, nil), 0, 1, 0},
		{"at most too young", waiting(census.Age{Min: second, Max: 9 * second, Known: lifecycle.AtLeast}, nil), 0, 0, 1},
		{"another state", waiting(census.Age{Min: 90 * second}, func(s *census.Socket) { s.New = event.StateEstablished }), 0, 0, 0},
		{"never connected", waiting(census.Age{Min: 90 * second}, func(s *census.Socket) { s.New = event.StateClose }), 0, 0, 0},
		{"ended", waiting(census.Age{Min: 90 * second}, func(s *census.Socket) { s.New, s.Opened = event.StateClose, true }), 1, 0, 0},
		{"MPTCP", waiting(census.Age{Min: 90 * second}, func(s *census.Socket) { s.Protocol = event.ProtoMPTCP }), 1, 0, 0},
		{"its subflow", waiting(census.Age{Min: 90 * second}, func(s *census.Socket) { s.Flags |= event.FlagMPTCP }), 0, 0, 0},
	} {
		c := census.New(0)
		c.Sockets = []*census.Socket{tt.socket}
		r := Find(c, Rules{MinAge: 30 * second, States: DefaultStates})
		if len(r.Findings) != tt.found || r.Undecided != tt.undecided || r.Young != tt.young {
			t.Errorf("%s: %d found, %d undecided, %d young", tt.name, len(r.Findings), r.Undecided, r.Young)
		}
	}
}

// TestJudge: verdicts that need no kernel; the others are in pkg/probe.
func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*census.Socket)
		verdict Verdict
		why     bool
	}{
		{"peer does not finish", func(s *census.Socket) { s.New = event.StateFinWait2; s.Inode = 1 }, ShutDown, false},
		{"orphan", func(s *census.Socket) { s.New, s.Flags = event.StateFinWait1, event.FlagDead|event.FlagNoSocket }, Unknown, true},
		{"no answer", func(s *census.Socket) { s.New, s.Flags = event.StateSynSent, 0 }, Unknown, true},
		{"half open", func(s *census.Socket) { s.New, s.Flags = event.StateSynRecv, event.FlagMini|event.FlagNoSocket }, Unknown, true},
		{"open, read", func(s *census.Socket) { s.New, s.Flags = event.StateEstablished, 0 }, Unknown, true},
		{"open, unread", func(s *census.Socket) { s.New, s.Flags, s.Unread = event.StateEstablished, 0, 9 }, DataUnread, false},
		{"open, in the queue", func(s *census.Socket) { s.New, s.Flags = event.StateEstablished, event.FlagNoSocket }, NotAccepted, false},
		{"MPTCP", func(s *census.Socket) { s.Protocol = event.ProtoMPTCP }, Unknown, true},
		{"MPTCP, ended", func(s *census.Socket) { s.Protocol, s.New = event.ProtoMPTCP, event.StateClose }, Hidden, false},
		{"MPTCP subflow", func(s *census.Socket) { s.Flags |= event.FlagMPTCP | event.FlagNoSocket }, Drained, false},
	} {
		f := Judge(waiting(census.Age{}, tt.change))
		if f.Verdict != tt.verdict || (f.Why != "") != tt.why {
			t.Errorf("%s: %s %q", tt.name, f.Verdict, f.Why)
		}
	}
}

// TestCommonIdle: a shared silence before the FIN is told only where most
// agree.
func TestCommonIdle(t *testing.T) {
	for _, tt := range []struct {
		idle []int64
		want int64
	}{
		{[]int64{60, 60, 61, 59}, 60},
		{[]int64{60, 60}, 0},
		{[]int64{10, 20, 30, 40, 50}, 0},
		{[]int64{0, 0, 0, 0}, 0},
		{[]int64{60, 60, 60, 5}, 60},
	} {
		var g Group
		for _, d := range tt.idle {
			g.Findings = append(g.Findings, Finding{Socket: waiting(census.Age{}, func(s *census.Socket) { s.Idle = d * second })})
		}
		if got := g.CommonIdle(); got != tt.want*second {
			t.Errorf("%v: %v", tt.idle, time.Duration(got))
		}
	}
}

// TestGroup: the same processes and service are one group, whatever the ports
// at the other end.
func TestGroup(t *testing.T) {
	var r Report
	add := func(pid uint32, role lifecycle.Role, local, peer string) {
		s := waiting(census.Age{}, nil)
		s.Role, s.Local, s.Peer = role, netip.MustParseAddrPort(local), netip.MustParseAddrPort(peer)
		s.Holders = []census.Holder{{Task: event.Task{PID: pid}, FDs: []int32{3}}}
		r.Findings = append(r.Findings, Judge(s))
	}
	add(1, lifecycle.RoleServer, "10.0.0.1:80", "10.0.0.2:1000")
	add(1, lifecycle.RoleServer, "10.0.0.1:80", "10.0.0.3:1001")
	add(2, lifecycle.RoleServer, "10.0.0.1:80", "10.0.0.3:1002")
	add(1, lifecycle.RoleClient, "10.0.0.1:40000", "10.0.0.9:443")
	add(1, lifecycle.RoleClient, "10.0.0.1:40001", "10.0.0.9:443")
	add(1, lifecycle.RoleClient, "10.0.0.1:40002", "10.0.0.9:8443")
	for name, tt := range map[string]struct {
		by   Key
		want []int
	}{
		"process": {ByProcess, []int{2, 2, 1, 1}}, "peer": {ByPeer, []int{2, 2, 1, 1}},
		"listener": {ByListener, []int{3, 3}},
	} {
		groups := r.Group(tt.by)
		if len(groups) != len(tt.want) {
			t.Fatalf("%s: %d groups", name, len(groups))
		}
		for i, g := range groups {
			if len(g.Findings) != tt.want[i] {
				t.Errorf("%s: group %q of %d", name, g.Key, len(g.Findings))
			}
		}
	}
}
