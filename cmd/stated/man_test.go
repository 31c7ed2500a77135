// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra/doc"
)

// TestManPages makes a page of each command, in STATED_MAN when that is set
// (`make man`): the generator is no part of the program.
func TestManPages(t *testing.T) {
	dir := installed(t)
	root := newRoot()
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "stated", Manual: "stated"}, dir); err != nil {
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

// TestCompletions makes those of each shell, beside the pages.
func TestCompletions(t *testing.T) {
	dir := installed(t)
	root := newRoot()
	for _, shell := range []struct {
		name, file string
		write      func(path string) error
	}{
		{"bash", "stated.bash", func(path string) error { return root.GenBashCompletionFileV2(path, true) }},
		{"zsh", "_stated", root.GenZshCompletionFile},
		{"fish", "stated.fish", func(path string) error { return root.GenFishCompletionFile(path, true) }},
	} {
		path := filepath.Join(dir, shell.file)
		if err := shell.write(path); err != nil {
			t.Fatal(err)
		}
		if _, err := exec.LookPath(shell.name); err != nil {
			continue
		}
		if out, err := exec.Command(shell.name, "-n", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s does not read its completions: %v\n%s", shell.name, err, out)
		}
	}
	out, stderr, code := runStated(t, "__complete", "trace", "--ope")
	if code != 0 || !strings.Contains(out, "--open-after") {
		t.Errorf("exit code %d, %s%s", code, out, stderr)
	}
}

// installed is the folder for what is no part of the program but made of it.
func installed(t *testing.T) string {
	if dir := os.Getenv("STATED_MAN"); dir != "" {
		return dir
	}
	return t.TempDir()
}
