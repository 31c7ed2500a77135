// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"cmp"
	"math"
	"slices"
)

// Progress is what became of a leak from one recording to the next.
type Progress uint8

// Progresses: the closed vocabulary of stated.comparison.verdict.
const (
	TooLittle Progress = iota // too little was seen to tell
	Fixed                     // it leaked, and does not any more
	Better                    // a smaller share of the connections leaks
	Same
	Worse
)

var progressNames = [...]string{"too_little", "fixed", "better", "same", "worse"}

// NumProgresses is one more than the largest Progress.
const NumProgresses = len(progressNames)

// String returns the word of the record schema.
func (p Progress) String() string { return progressNames[p] }

// When a difference counts.
const (
	// MaxChance is how likely chance alone may make the difference, if each
	// connection of both recordings leaked with the same probability.
	MaxChance = 0.05
	// MinChange is by what part of it the share that leaks must change, at
	// least, to be called better or worse.
	MinChange = 0.2
)

// Change is a line in both recordings.
type Change struct {
	Line
	Before, After Count
	Progress      Progress
}

// Compare judges each line that leaked in one of the recordings, the worst
// first, and returns how many lines leaked in neither.
func Compare(before, after *Tally) (changes []Change, clean int) {
	lines := make(map[Line]bool)
	for _, t := range []*Tally{before, after} {
		for l := range t.Lines {
			lines[l] = true
		}
	}
	for l := range lines {
		c := Change{Line: l}
		if n := before.Lines[l]; n != nil {
			c.Before = *n
		}
		if n := after.Lines[l]; n != nil {
			c.After = *n
		}
		if c.Before.Leaked+c.Before.Old+c.After.Leaked+c.After.Old == 0 {
			clean++
			continue
		}
		c.Progress = progress(&c.Before, &c.After)
		changes = append(changes, c)
	}
	slices.SortFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(b.After.Leaked+b.After.Old, a.After.Leaked+a.After.Old), cmp.Compare(b.Before.Leaked, a.Before.Leaked),
			bytes.Compare(a.Program[:], b.Program[:]), cmp.Compare(a.Role, b.Role), a.Service.Compare(b.Service))
	})
	return changes, clean
}

// progress is Fisher's test without its correction for finite numbers: if both
// recordings leaked alike, each leak that there was fell into the later one with
// the probability of that one's share of all connections.
func progress(before, after *Count) Progress {
	if before.Conns == 0 || after.Conns == 0 {
		return TooLittle
	}
	n := before.Leaked + after.Leaked
	p := float64(after.Conns) / float64(before.Conns+after.Conns)
	none := binomial(n, 0, p)
	shareBefore, shareAfter := share(before), share(after)
	switch {
	case after.Leaked+after.Old == 0:
		if none <= MaxChance {
			return Fixed
		}
		return TooLittle
	case binomial(n, after.Leaked, p) <= MaxChance && shareAfter <= shareBefore*(1-MinChange):
		return Better
	case 1-binomial(n, after.Leaked-1, p) <= MaxChance && shareAfter >= shareBefore*(1+MinChange):
		return Worse
	case none <= MaxChance:
		return Same
	}
	return TooLittle
}

func share(c *Count) float64 { return float64(c.Leaked) / float64(c.Conns) }

// binomial returns the probability of at most k of n where each has probability
// p, which is neither 0 nor 1.
func binomial(n, k int, p float64) (sum float64) {
	lgamma := func(n int) float64 { v, _ := math.Lgamma(float64(n + 1)); return v }
	for i := range k + 1 {
		sum += math.Exp(lgamma(n) - lgamma(i) - lgamma(n-i) + float64(i)*math.Log(p) + float64(n-i)*math.Log1p(-p))
	}
	return min(sum, 1)
}
