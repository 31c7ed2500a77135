// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

const dist = "../../cmd/stated/dist/"

// distFile returns a file that is shipped, and the golden page.
func distFile(t *testing.T, name string) (text []byte, page string) {
	t.Helper()
	text, err := os.ReadFile(dist + name)
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/page.golden")
	if err != nil {
		t.Fatal(err)
	}
	return text, string(golden)
}

var metricName = regexp.MustCompile(`stated_\w+`)

// series ends the name of what a histogram is scraped as.
var series = regexp.MustCompile(`_(bucket|sum|count)$`)

// metricOf returns the metric on the page that a name in an expression is of;
// it is empty where there is none.
func metricOf(page, name string) string {
	if base := series.ReplaceAllString(name, ""); strings.Contains(page, "\n# TYPE "+base+" histogram\n") {
		if base == name {
			return "" // classic histograms have no series of that name
		}
		return base
	}
	if strings.Contains(page, "# TYPE "+name+" ") {
		return name
	}
	return ""
}

// runPromtool tries files with promtool, where it is there.
func runPromtool(t *testing.T, dir string, commands ...[]string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("STATED_KERNEL_TEST") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip("promtool (Debian: prometheus) is not there to try the rules")
	}
	for _, args := range commands {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestAlerts: the rules ask for metrics that exist, and promtool, where it is
// there, finds that they fire when they should.
func TestAlerts(t *testing.T) {
	rules, page := distFile(t, "alerts.yaml")
	names := metricName.FindAllString(string(rules), -1)
	if len(names) < 7 {
		t.Errorf("only %v", names)
	}
	for _, name := range names {
		if metricOf(page, name) == "" {
			t.Errorf("there is no metric %s", name)
		}
	}
	runPromtool(t, dist, []string{"check", "rules", "alerts.yaml"}, []string{"test", "rules", "alerts_test.yaml"})
}
