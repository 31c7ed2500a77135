// SPDX-License-Identifier: Apache-2.0

package probe

import "testing"

// TestSettle: a run that was skipped matters where nobody told in its place, and what
// was counted once is not taken back.
func TestSettle(t *testing.T) {
	p := &Probe{}
	for _, tt := range []struct {
		state, madeGood, graft, graftAgain, destroy, deadAgain, accept uint64
		want                                                           uint64
	}{
		{},
		{state: 7, madeGood: 7},
		{destroy: 3},
		{destroy: 3, deadAgain: 1, graft: 2, graftAgain: 5, want: 1 + 2},
		{accept: 4, deadAgain: 9, want: 4},
		{state: 7, madeGood: 5, want: 2},
		{state: 7, madeGood: 7, want: 2},
	} {
		s := Stats{MadeGood: tt.madeGood, Programs: []ProgramStats{
			{Name: bpfProgStSetState, Skipped: tt.state}, {Name: bpfProgStStateAgain, Skipped: 1},
			{Name: bpfProgStGraft, Skipped: tt.graft}, {Name: bpfProgStGraftAgain, Skipped: tt.graftAgain},
			{Name: bpfProgStDestroySock, Skipped: tt.destroy}, {Name: bpfProgStDeadAgain, Skipped: tt.deadAgain},
			{Name: bpfProgStAccept, Skipped: tt.accept},
		}}
		if p.settle(&s); s.Skipped != tt.want {
			t.Errorf("%+v: %d", tt, s.Skipped)
		}
	}
	s := Stats{Programs: []ProgramStats{{Name: bpfProgStDestroySock, Skipped: 3}}}
	if p.settle(&s); s.Skipped != 3 {
		t.Errorf("%d skipped where no second program is loaded", s.Skipped)
	}
}
