// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra/doc"
)

// TestManPages makes a page of each command, in STATED_MAN when that is set
// (`make man`): the generator is no part of the program.
func TestManPages(t *testing.T) {
	dir := os.Getenv("STATED_MAN")
	if dir == "" {
		dir = t.TempDir()
	}
	root := newRoot()
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, &doc.GenManHeader{Title: "STATED", Section: "1", Source: "stated", Manual: "stated"}, dir); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "stated-agent.1"))
	if err != nil || !strings.Contains(string(page), "SIGHUP") {
		t.Errorf("%v: %s", err, page)
	}
	for _, cmd := range root.Commands() {
		if cmd.Name() == "help" || !cmd.IsAvailableCommand() {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "stated-"+cmd.Name()+".1")); err != nil {
			t.Error(err)
		}
	}
}
