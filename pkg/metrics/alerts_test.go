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

// TestAlerts: the rules ask for metrics that exist, and promtool, where it is
// there, finds that they fire when they should.
func TestAlerts(t *testing.T) {
	rules, err := os.ReadFile(dist + "alerts.yaml")
	if err != nil {
		t.Skip(err) // a test binary on a machine without the source
	}
	page, err := os.ReadFile("testdata/page.golden")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`stated_\w+`).FindAllString(string(rules), -1)
	if len(names) < 7 {
		t.Errorf("only %v", names)
	}
	for _, name := range names {
		if !strings.Contains(string(page), "\n# TYPE "+name+" ") {
			t.Errorf("there is no metric %s", name)
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool (Debian: prometheus) is not there to try the rules")
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = dist
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
