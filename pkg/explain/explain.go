// SPDX-License-Identifier: Apache-2.0

// Package explain says what the TCP states mean, to a person who has to act.
// The texts are in states.txt, for anybody to edit.
package explain

import (
	_ "embed"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/stated-tcp/stated/pkg/event"
)

//go:embed states.txt
var articles string

//go:embed diagram.txt
var diagram string

// Width is how many columns the texts use.
const Width = 80

// sections, in order: the key in states.txt and the words before it.
var sections = []struct{ key, title string }{
	{"is", "What it is"},
	{"side", "Which side"},
	{"normal", "How long is normal"},
	{"many", "When many pile up"},
	{"do", "What to do"},
}

// article returns a state's sections by key.
func article(s event.State) map[string]string {
	out := make(map[string]string)
	_, text, ok := strings.Cut(articles, "== "+s.String()+"\n")
	if !ok {
		return out
	}
	text, _, _ = strings.Cut(text, "\n== ")
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			out[key] = value
		}
	}
	return out
}

// Brief says what a state is in a sentence, or in two short ones.
func Brief(s event.State) string {
	all := article(s)["is"]
	if first, _, more := strings.Cut(all, ". "); more && len(all) > 2*Width {
		return first + "."
	}
	return all
}

// Do returns what to do when sockets pile up in a state.
func Do(s event.State) string { return article(s)["do"] }

// State writes the article on s, with states spelled by n in its head.
func State(w io.Writer, s event.State, n event.Naming) error {
	a := article(s)
	var b strings.Builder
	b.WriteString(s.Name(n))
	var others []string
	for _, other := range event.Namings() {
		if name := s.Name(other); other != n {
			others = append(others, fmt.Sprintf("%s (%s)", name, other))
		}
	}
	b.WriteString("\n\n")
	for _, section := range sections {
		b.WriteString(section.title + "\n")
		wrap(&b, a[section.key])
		b.WriteByte('\n')
	}
	b.WriteString("Neighbours\n")
	wrap(&b, "Comes from "+list(a["before"], n)+"; goes to "+list(a["after"], n)+".")
	b.WriteByte('\n')
	b.WriteString("Look at it\n")
	for command := range strings.SplitSeq(a["look"], " | ") {
		if strings.HasPrefix(command, "stated trace") {
			command = "sudo " + command
		}
		b.WriteString("  " + command + "\n")
	}
	b.WriteString("\nElsewhere\n")
	wrap(&b, strings.Join(others, ", "))
	b.WriteString("\nSources\n")
	wrap(&b, a["source"])
	_, err := io.WriteString(w, b.String())
	return err
}

func list(names string, n event.Naming) string {
	var out []string
	for word := range strings.FieldsSeq(names) {
		if s, err := event.ParseState(word); err == nil {
			out = append(out, s.Name(n))
		}
	}
	return strings.Join(out, ", ")
}

// wrap writes text in lines of Width, indented by two.
func wrap(b *strings.Builder, text string) {
	column := 0
	for word := range strings.FieldsSeq(text) {
		n := utf8.RuneCountInString(word)
		if column > 0 && column+1+n > Width {
			b.WriteByte('\n')
			column = 0
		}
		if column == 0 {
			b.WriteString("  " + word)
			column = 2 + n
			continue
		}
		b.WriteString(" " + word)
		column += 1 + n
	}
	b.WriteByte('\n')
}

// Diagram returns how the states follow each other, in the kernel's spelling.
func Diagram() string { return diagram }

// Names writes a table of every state in every naming.
func Names(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, n := range event.Namings() {
		fmt.Fprintf(t, "%s\t", strings.ToUpper(n.String()))
	}
	fmt.Fprintln(t)
	for s := event.StateEstablished; s < event.NumStates; s++ {
		for _, n := range event.Namings() {
			fmt.Fprintf(t, "%s\t", s.Name(n))
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
