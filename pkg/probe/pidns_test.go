// SPDX-License-Identifier: Apache-2.0

package probe

import "testing"

func TestInnerPIDs(t *testing.T) {
	for ino, inner := range map[uint64]bool{4026531836: false, 4026532177: true} {
		if err := innerPIDs(ino); (err != nil) != inner {
			t.Errorf("%d: %v", ino, err)
		}
	}
}
