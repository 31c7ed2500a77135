// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// dashboard is what the test reads of Grafana's JSON model of one.
type dashboard struct {
	Templating struct {
		List []struct{ Name, Query string }
	}
	Panels []struct {
		ID          int
		Type, Title string
		Datasource  struct{ UID string }
		GridPos     struct{ X, Y, W, H int }
		Targets     []struct{ RefID, Expr, LegendFormat string }
	}
}

var (
	variable  = regexp.MustCompile(`\$\{?\w+\}?`)
	labelUses = []*regexp.Regexp{
		regexp.MustCompile(`by \(([^)]*)\)`), // separated by ", "
		regexp.MustCompile(`[{,]\s*(\w+)\s*[=!]`),
	}
	legendUse = regexp.MustCompile(`{{\s*(\w+)\s*}}`)
)

// grafana stands for the variables that Grafana puts in.
var grafana = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*")

// TestDashboard: each expression asks for metrics and labels that exist, each
// metric is on the dashboard, and promtool, where it is there, can parse all.
func TestDashboard(t *testing.T) {
	text, page := distFile(t, "dashboard.json")
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	shown := make(map[string]bool)
	for _, v := range d.Templating.List {
		for _, name := range metricName.FindAllString(v.Query, -1) {
			shown[name] = true
			if metricOf(page, name) == "" {
				t.Errorf("variable %s: there is no metric %s", v.Name, name)
			}
		}
	}
	var rules []map[string]string
	for _, p := range d.Panels {
		if p.Type == "row" {
			continue
		}
		if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: data source %q, %d targets", p.Title, p.Datasource.UID, len(p.Targets))
		}
		for _, target := range p.Targets {
			expr := grafana.Replace(target.Expr)
			for _, err := range checkExpr(page, expr, target.LegendFormat, shown) {
				t.Errorf("%s, %s: %v", p.Title, target.RefID, err)
			}
			rules = append(rules, map[string]string{"record": fmt.Sprintf("panel_%d:%s", p.ID, target.RefID), "expr": expr})
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(page, -1) {
		if !shown[m[1]] {
			t.Errorf("%s is not on the dashboard", m[1])
		}
	}
	file, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}}) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "panels.yaml"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	d.checkLayout(t)
	runPromtool(t, dir, []string{"check", "rules", "panels.yaml"})
}

// checkLayout finds panels that share an id or a place.
func (d *dashboard) checkLayout(t *testing.T) {
	ids := make(map[int]bool)
	cells := make(map[[2]int]string)
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: the id %d is taken", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s is over the edge or over %q at %d,%d", p.Title, other, x, y)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
	}
}

// TestCheckExpr: what is wrong in an expression is found.
func TestCheckExpr(t *testing.T) {
	_, page := distFile(t, "dashboard.json")
	for _, test := range []struct{ expr, legend, want string }{
		{`sum by (state) (stated_tcp_connections{role="client"})`, "{{state}}", ""},
		{`stated_sink_upp`, "", "no metric stated_sink_upp"},
		{`stated_event_latency_seconds`, "", "no metric stated_event_latency_seconds"},
		{`rate(stated_sink_up_total[5m])`, "", "no metric stated_sink_up_total"},
		{`up`, "", "no metric in"},
		{`sum(stated_sink_up`, "", "not closed"},
		{`sum(stated_sink_up])`, "", "a ] too many"},
		{`stated_sink_up{sink="a}`, "", "not closed"},
		{`rate(stated_events_total[$__intervall])`, "", "$__intervall is unknown"},
		{`stated_sink_up{snik="a"}`, "", "no label snik"},
		{`sum by (sink, stage) (stated_sink_up)`, "", "no label stage"},
		{`sum by (instance) (stated_sink_up)`, "{{sink}}", "legend's label sink"},
		{`stated_sink_up`, "{{stage}}", "legend's label stage"},
	} {
		err := errors.Join(checkExpr(page, test.expr, test.legend, make(map[string]bool))...)
		if got := fmt.Sprint(err); (test.want == "") != (err == nil) || !strings.Contains(got, test.want) && err != nil {
			t.Errorf("%s %s: %s, want %q", test.expr, test.legend, got, test.want)
		}
	}
}

// checkExpr checks the names in an expression, and that it closes what it
// opens. It notes the metrics in shown.
func checkExpr(page, expr, legend string, shown map[string]bool) (errs []error) {
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(format+" in %s", append(args, expr)...))
	}
	if v := variable.FindString(expr); v != "" {
		fail("the variable %s is unknown", v)
	}
	if why := unbalanced(expr); why != "" {
		fail("%s", why)
	}
	names := metricName.FindAllString(expr, -1)
	if len(names) == 0 {
		fail("no metric")
	}
	labels := map[string]bool{"instance": true} // Prometheus adds it
	for _, name := range names {
		metric := metricOf(page, name)
		if metric == "" {
			fail("there is no metric %s", name)
		}
		shown[metric] = true
		for _, m := range regexp.MustCompile(`(?m)^`+name+`\{(.*)\} \S+$`).FindAllStringSubmatch(page, -1) {
			for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[1], -1) {
				labels[l[1]] = true
			}
		}
	}
	kept := expr // where an aggregation keeps some labels, a legend has no others
	if by := labelUses[0].FindStringSubmatch(expr); by != nil {
		kept = by[1]
	} else if strings.Contains(expr, "sum(") {
		kept = ""
	}
	for _, use := range legendUse.FindAllStringSubmatch(legend, -1) {
		if !labels[use[1]] || kept != expr && !regexp.MustCompile(`\b`+use[1]+`\b`).MatchString(kept) {
			fail("the legend's label %s is not", use[1])
		}
	}
	for _, re := range labelUses {
		for _, use := range re.FindAllStringSubmatch(expr, -1) {
			for label := range strings.SplitSeq(use[1], ", ") {
				if !labels[label] {
					fail("there is no label %s", label)
				}
			}
		}
	}
	return errs
}

// unbalanced says what is not closed, or not opened, in an expression.
func unbalanced(expr string) string {
	var open []rune
	opens := map[rune]rune{')': '(', ']': '[', '}': '{'}
	for _, c := range expr {
		if strings.ContainsRune("([{", c) {
			open = append(open, c)
		} else if want := opens[c]; want != 0 {
			if len(open) == 0 || open[len(open)-1] != want {
				return "there is a " + string(c) + " too many"
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 || strings.Count(expr, `"`)%2 != 0 {
		return "something is not closed"
	}
	return ""
}
