//go:build chart

package charttest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// queries returns the PromQL expressions of the chart's rules and dashboards and of
// the runbooks, by their place.
func queries(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	rules, err := filepath.Glob(chart + "/rules/*.yaml")
	if err != nil || len(rules) == 0 {
		t.Fatalf("%d files of rules, %v", len(rules), err)
	}
	for _, path := range rules {
		var file struct {
			Groups []struct {
				Rules []struct{ Alert, Record, Expr string }
			}
		}
		text, err := os.ReadFile(path)
		if err != nil || yaml.Unmarshal(text, &file) != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, group := range file.Groups {
			for _, r := range group.Rules {
				if r.Alert != "" {
					all["alert "+r.Alert] = r.Expr
				} else {
					all["record "+r.Record] = r.Expr
				}
			}
		}
	}
	dashboards, err := filepath.Glob(chart + "/dashboards/*.json")
	if err != nil || len(dashboards) == 0 {
		t.Fatalf("%d dashboards, %v", len(dashboards), err)
	}
	for _, path := range dashboards {
		var board struct {
			Annotations struct{ List []struct{ Name, Expr string } }
			Panels      []panel
		}
		text, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(text, &board) != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, a := range board.Annotations.List {
			all[fmt.Sprintf("annotation %q", a.Name)] = a.Expr
		}
		for _, p := range flat(board.Panels) {
			for i, target := range p.Targets {
				all[fmt.Sprintf("panel %q %d", p.Title, i)] = target.Expr
			}
		}
	}
	for i, span := range regexp.MustCompile("`([^`\n]*tokenprovider[_:][^`\n]*)`").FindAllStringSubmatch(read(t, runbooks), -1) {
		all[fmt.Sprintf("runbook %d", i)] = span[1]
	}
	return all
}

// panel is the tested part of a dashboard's panel; a row contains panels.
type panel struct {
	Title, Description, Type string
	Targets                  []struct{ Expr string }
	FieldConfig              struct {
		Defaults struct {
			Thresholds struct {
				Steps []struct {
					Color string
					Value *float64
				}
			}
		}
	}
	Panels []panel
}

// flat returns all panels, including those in collapsed rows.
func flat(panels []panel) (all []panel) {
	for _, p := range panels {
		all = append(append(all, p), flat(p.Panels)...)
	}
	return all
}

// TestDashboard checks that every panel has a description and a query, and that the
// four panels on the component at fault are green at 0 and red at 1.
func TestDashboard(t *testing.T) {
	var board struct{ Panels []panel }
	if err := json.Unmarshal([]byte(read(t, chart+"/dashboards/token-provider.json")), &board); err != nil {
		t.Fatal(err)
	}
	who, under := []string{}, ""
	for _, p := range flat(board.Panels) {
		switch {
		case p.Type == "row":
			under = p.Title
			continue
		case p.Description == "" || len(p.Targets) == 0:
			t.Errorf("%s has no description or no query", p.Title)
		case under != "Which component?":
			continue
		}
		who = append(who, p.Title)
		steps := p.FieldConfig.Defaults.Thresholds.Steps
		if p.Type != "stat" || len(p.Targets) != 1 || !strings.HasSuffix(p.Targets[0].Expr, " or vector(0)") ||
			len(steps) != 2 || steps[0].Color != "green" || steps[1].Color != "red" || steps[1].Value == nil || *steps[1].Value != 1 {
			t.Errorf("%s is not green at 0 and red at 1 for every result", p.Title)
		}
	}
	if !slices.Equal(who, []string{"Zoom", "Recall", "Redis", "Us"}) {
		t.Errorf("components: %v", who)
	}
}

// TestRules runs promtool's checks and the tests of the alerts.
func TestRules(t *testing.T) {
	rules, _ := filepath.Glob(chart + "/rules/*.yaml")
	must(t, "promtool", append([]string{"check", "rules", "--lint=all", "--lint-fatal"}, rules...)...)
	tests, err := filepath.Glob("testdata/rules/*_test.yaml")
	if err != nil || len(tests) == 0 {
		t.Fatalf("%d tests of rules, %v", len(tests), err)
	}
	must(t, "promtool", append([]string{"test", "rules"}, tests...)...)
	// Each alert must have a test.
	var all strings.Builder
	for _, path := range tests {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	for where := range queries(t) {
		if alert, ok := strings.CutPrefix(where, "alert "); ok && !strings.Contains(all.String(), "alertname: "+alert+"\n") {
			t.Errorf("%s has no test", alert)
		}
	}
	// The PrometheusRule must contain all rules.
	rule := find(t, render(t, "--values", scenario("full")), "PrometheusRule", "tokens")
	text, err := json.Marshal(rule.whole["spec"])
	if err != nil {
		t.Fatal(err)
	}
	for where := range queries(t) {
		if kind, name, _ := strings.Cut(where, " "); (kind == "alert" || kind == "record") && !strings.Contains(string(text), `"`+name+`"`) {
			t.Errorf("%s is not in the PrometheusRule", name)
		}
	}
	if !strings.Contains(string(text), "{{ $value | humanizePercentage }}") {
		t.Error("Helm evaluated the templates in the annotations")
	}
	if !strings.Contains(string(text), `"https://wiki.example/runbooks#tokenproviderabsent"`) || strings.Contains(string(text), "docs/runbooks.md") {
		t.Error("monitoring.prometheusRule.runbooksUrl is not applied")
	}
}

// TestQueriesParse checks that the queries of dashboards and runbooks are valid PromQL.
func TestQueriesParse(t *testing.T) {
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	for _, expr := range queries(t) {
		expr = strings.NewReplacer("$__rate_interval", "5m", "$__interval", "1m", "$__range", "1h", "$namespace", "x").Replace(expr)
		if strings.Contains(expr, "$") {
			t.Errorf("an unknown variable in %s", expr)
		}
		rules = append(rules, rule{Record: fmt.Sprintf("check:query_%d", len(rules)), Expr: expr})
	}
	text, err := yaml.Marshal(map[string]any{"groups": []map[string]any{{"name": "check", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "promtool", "check", "rules", path)
}

// checkQueries checks that each metric and label in the queries exists in a scrape.
// TestRun calls it with both programs' metrics.
func checkQueries(t *testing.T, scraped string) {
	t.Helper()
	labels := map[string][]string{} // metric -> its labels
	line := regexp.MustCompile(`(?m)^([a-z_0-9]+)(?:\{([^}]*)\})? `)
	label := regexp.MustCompile(`([a-z_]+)="`)
	for _, match := range line.FindAllStringSubmatch(scraped, -1) {
		for _, l := range label.FindAllStringSubmatch(match[2], -1) {
			labels[match[1]] = append(labels[match[1]], l[1])
		}
		labels[match[1]] = append(labels[match[1]], "namespace", "pod") // a scrape adds these
	}
	labels["ALERTS_FOR_STATE"] = []string{"alertname", "severity", "namespace", "pod"} // Prometheus's own
	labels["ALERTS"] = append([]string{"alertstate"}, labels["ALERTS_FOR_STATE"]...)
	metric := regexp.MustCompile(`\b(ALERTS(?:_FOR_STATE)?|tokenprovider[_:][a-z_0-9:]+|process_[a-z_]+|go_[a-z_]+)(?:\{([^}]*)\})?`)
	matcher := regexp.MustCompile(`([a-z_]+)(?:=|!=|=~|!~)"`)
	grouping := regexp.MustCompile(`by \(([a-z_, ]+)\)`)
	all := queries(t)
	for where, expr := range all {
		found := metric.FindAllStringSubmatch(expr, -1)
		if len(found) == 0 {
			t.Errorf("%s queries no metric of the programs: %s", where, expr)
		}
		var theirs []string // labels of any of them
		for _, match := range found {
			if strings.Contains(match[1], ":") { // a recording rule
				if _, ok := all["record "+match[1]]; !ok {
					t.Errorf("%s queries %s, which no rule records", where, match[1])
				}
				theirs = append(theirs, "namespace")
				continue
			}
			has, ok := labels[match[1]]
			if !ok {
				t.Errorf("%s queries %s, which neither program exports", where, match[1])
				continue
			}
			theirs = append(theirs, has...)
			for _, l := range matcher.FindAllStringSubmatch(match[2], -1) {
				if !slices.Contains(has, l[1]) {
					t.Errorf("%s queries label %s of %s, which has %v", where, l[1], match[1], has)
				}
			}
		}
		for _, by := range grouping.FindAllStringSubmatch(expr, -1) {
			for _, name := range strings.Split(by[1], ", ") {
				if !slices.Contains(theirs, name) {
					t.Errorf("%s is grouped by %s, which none of its metrics has", where, name)
				}
			}
		}
	}
}
