// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// printedSchema is what `stated schema` prints, compiled.
func printedSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, stderr, code := runStated(t, "schema")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validLines fails for each line that the schema does not allow, and returns
// how many lines there were.
func validLines(t *testing.T, s *jsonschema.Schema, text string) (n int) {
	t.Helper()
	for line := range strings.Lines(text) {
		n++
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if err := s.Validate(v); err != nil {
			t.Errorf("%v\n%s", err, line)
		}
	}
	return n
}

// TestRecordingsFitTheSchema replays every recording that is kept here.
// testdata/traffic.rec was made by `stated record --netns` of a namespace in
// which one process opened, closed, reset and refused connections in 18 ways.
func TestRecordingsFitTheSchema(t *testing.T) {
	schema := printedSchema(t)
	var recordings []string
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".rec") {
			recordings = append(recordings, path)
		}
		return err
	})
	if err != nil || len(recordings) == 0 {
		t.Fatalf("recordings: %q, %v", recordings, err)
	}
	for _, path := range recordings {
		for _, args := range [][]string{{"replay", "-o", "json", path}, {"replay", "-o", "json", "--events", path}} {
			out, stderr, code := runStated(t, args...)
			if code != 0 {
				t.Fatalf("%s: exit code %d: %s", path, code, stderr)
			}
			if n := validLines(t, schema, out); n == 0 {
				t.Errorf("%s: nothing", path)
			}
		}
	}
}

// TestLiveOutputFitsTheSchema: what was there before, what changes, what ends.
func TestLiveOutputFitsTheSchema(t *testing.T) {
	requireRoot(t)
	schema := printedSchema(t)
	before, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	for _, flags := range []string{"--existing --events", "--existing", "--existing --classic --events", "--existing --classic"} {
		t.Run(flags, func(t *testing.T) {
			cmd := exec.Command(stated, append(strings.Fields("trace -o json --for 20s"), strings.Fields(flags)...)...)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(stderr); lines.Scan() && !strings.Contains(lines.Text(), "watching"); {
			}
			go io.Copy(io.Discard, stderr)
			churn(t, 20)
			if _, err := net.Dial("tcp", "127.0.0.1:9"); err == nil {
				t.Fatal("port 9 answers")
			}
			// the last that happened is the refusal; what was there before may come later
			n, found, refused := 0, !strings.Contains(flags, "existing"), false
			lines := bufio.NewScanner(stdout)
			for !(found && refused) && lines.Scan() {
				n += validLines(t, schema, lines.Text())
				found = found || strings.Contains(lines.Text(), `"stated.snapshot":true`)
				refused = refused || strings.Contains(lines.Text(), `"network.peer.port":9,`) && strings.Contains(lines.Text(), `"network.connection.state":"closed"`)
			}
			cmd.Process.Signal(os.Interrupt)
			for lines.Scan() {
				n += validLines(t, schema, lines.Text())
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			if n < 20 || !found || !refused {
				t.Errorf("%d lines of 20 connections; found one from before: %v, the refused one: %v", n, found, refused)
			}
		})
	}
}

// TestSchemaCompletes: the shell offers the records.
func TestSchemaCompletes(t *testing.T) {
	out, _, code := runStated(t, "__complete", "schema", "")
	for _, record := range []string{"tcp.state_change", "tcp.connection", "tcp.leak", "stated.gap"} {
		if code != 0 || !strings.Contains(out, record+"\n") {
			t.Errorf("exit code %d, no %s in %q", code, record, out)
		}
		if one, stderr, code := runStated(t, "schema", record); code != 0 || !strings.Contains(one, `"$ref": "#/$defs/`+record+`"`) {
			t.Errorf("schema %s: exit code %d: %s%.200s", record, code, stderr, one)
		}
	}
}
