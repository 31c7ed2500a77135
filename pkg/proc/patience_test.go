// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"os"
	"runtime"
	"testing"
)

// TestPatiently: reads that never return cost a moment each, and at some number
// nothing any more, until they do return.
func TestPatiently(t *testing.T) {
	r := New(Options{})
	d, err := r.procDir(uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	comm := func(d dir) string { b, _, _ := d.file("comm", 100); return string(b) }
	if s, ok := patiently(&r.guard, d, comm); !ok || s == "" {
		t.Fatalf("%q, %t", s, ok)
	}
	release := make(chan struct{})
	for range MaxStuck {
		if _, ok := patiently(&r.guard, d, func(dir) string { <-release; return "late" }); ok {
			t.Fatal("it did not wait")
		}
	}
	called := false
	if _, ok := patiently(&r.guard, d, func(dir) string { called = true; return "" }); ok || called {
		t.Errorf("one more was started while %d wait", MaxStuck)
	}
	close(release)
	for r.guard.stuck.Load() > 0 {
		runtime.Gosched()
	}
	if s, ok := patiently(&r.guard, d, comm); !ok || s == "" {
		t.Errorf("afterwards: %q, %t", s, ok)
	}
}
