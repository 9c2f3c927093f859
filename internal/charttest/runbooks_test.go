//go:build chart

package charttest

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const runbooks = "../../docs/runbooks.md"

// TestRunbooks checks that each alert links to its section, each section belongs to an
// alert, and each has the five headings.
func TestRunbooks(t *testing.T) {
	text := read(t, runbooks)
	sections, anchors, names := map[string]string{}, []string{}, []string{}
	parts := regexp.MustCompile(`(?m)^## `).Split(text, -1)
	for _, part := range parts[1:] {
		heading, body, _ := strings.Cut(part, "\n")
		anchors = append(anchors, strings.ReplaceAll(strings.ToLower(heading), " ", "-"))
		if strings.HasPrefix(heading, "TokenProvider") {
			sections[heading] = body
			names = append(names, heading)
		}
	}
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			t.Errorf("%s has two sections", name)
		}
	}
	rules, err := filepath.Glob(chart + "/rules/*.yaml")
	if err != nil || len(rules) == 0 {
		t.Fatalf("%d files of rules, %v", len(rules), err)
	}
	alerts := 0
	for _, path := range rules {
		var file struct {
			Groups []struct {
				Rules []struct {
					Alert       string
					Annotations map[string]string
				}
			}
		}
		if err := yaml.Unmarshal([]byte(read(t, path)), &file); err != nil {
			t.Fatal(err)
		}
		for _, group := range file.Groups {
			for _, r := range group.Rules {
				if r.Alert == "" {
					continue
				}
				alerts++
				body, ok := sections[r.Alert]
				delete(sections, r.Alert)
				if !ok {
					t.Errorf("docs/runbooks.md has no section %s", r.Alert)
				}
				for _, part := range []string{"**Impact:**", "**Diagnose:**", "**Mitigate:**", "**Do not**", "**Resolved when**"} {
					if ok && strings.Count(body, part) != 1 {
						t.Errorf("%s must have %s exactly once", r.Alert, part)
					}
				}
				if anchor, ours := strings.CutPrefix(r.Annotations["runbook_url"], "docs/runbooks.md#"); !ours || anchor != strings.ToLower(r.Alert) {
					t.Errorf("%s links to %q", r.Alert, r.Annotations["runbook_url"])
				}
			}
		}
	}
	if alerts < 20 {
		t.Errorf("only %d alerts", alerts)
	}
	for name := range sections {
		t.Errorf("docs/runbooks.md has a section %s without an alert", name)
	}
	for _, link := range regexp.MustCompile(`\]\(#([^)]*)\)`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(anchors, link[1]) {
			t.Errorf("docs/runbooks.md has a broken link #%s", link[1])
		}
	}
}
