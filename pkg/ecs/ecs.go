// SPDX-License-Identifier: Apache-2.0

// Package ecs turns records, which have OpenTelemetry's names, into documents
// of the Elastic Common Schema: nested objects, with all that the record says.
// What ECS has no name for stands below stated.
package ecs

import (
	"slices"

	"github.com/stated-tcp/stated/pkg/sink/flat"
)

// Converter makes documents. It is not safe for concurrent use. The zero value
// is ready.
type Converter struct {
	slots []slot   // what stands in each row
	used  []int    // rows that are set
	other []byte   // members that no table knows, each with a comma behind it
	text  []byte   // scratch that slots refer to
	facts          // what the record says that several rows follow from
	open  []string // objects that are open while the document is written
}

// slot is a value as JSON text; of a string without its quotes.
type slot struct {
	text   []byte
	set    bool
	quoted bool
}

// Append adds the document of a record, a flat JSON object, without a line's
// end. An error says that the line is no such object; nothing is added then.
func (c *Converter) Append(dst, line []byte) ([]byte, error) {
	if c.slots == nil {
		c.slots = make([]slot, len(rows))
	}
	for _, i := range c.used {
		c.slots[i] = slot{}
	}
	c.used, c.other, c.text, c.facts = c.used[:0], c.other[:0], c.text[:0], facts{}
	s := flat.Scan(line)
	for s.Next() {
		if c.note(s.Key, &s.Value) {
			continue
		}
		if i, ok := byName[string(s.Key)]; ok {
			c.put(i, s.Value.Raw, s.Value.Kind == flat.String)
			continue
		}
		c.other = append(append(append(c.other, '"'), s.Key...), `":`...)
		c.other = append(s.Value.JSON(c.other), ',')
	}
	if err := s.Err(); err != nil {
		return dst, err
	}
	c.derive()
	if n := len(c.other); n > 0 {
		start := len(c.text)
		c.text = append(append(append(c.text, '{'), c.other[:n-1]...), '}')
		c.put(byPath[unmapped], c.text[start:], false)
	}
	return c.write(dst), nil
}

func (c *Converter) put(i int, text []byte, quoted bool) {
	if !c.slots[i].set {
		c.used = append(c.used, i)
	}
	c.slots[i] = slot{text: text, set: true, quoted: quoted}
}

// write adds the rows that are set, in order: it closes the objects that the
// next one does not stand in, and opens those that it does.
func (c *Converter) write(dst []byte) []byte {
	slices.Sort(c.used)
	open := c.open[:0]
	dst = append(dst, '{')
	for _, i := range c.used {
		r, s := &rows[i], &c.slots[i]
		common := 0
		for common < len(open) && common < len(r.parents) && open[common] == r.parents[common] {
			common++
		}
		for range len(open) - common {
			dst = append(dst, '}')
		}
		if dst[len(dst)-1] != '{' {
			dst = append(dst, ',')
		}
		open = open[:common]
		for _, name := range r.parents[common:] {
			dst = append(append(append(dst, '"'), name...), `":{`...)
			open = append(open, name)
		}
		dst = append(dst, r.key...)
		if s.quoted {
			dst = append(append(append(dst, '"'), s.text...), '"')
		} else {
			dst = append(dst, s.text...)
		}
	}
	for range open {
		dst = append(dst, '}')
	}
	c.open = open
	return append(dst, '}')
}
