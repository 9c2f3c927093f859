//go:build chart

package charttest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestScenarios lints each scenario with Helm 3 and Helm 4, and compares its objects
// with a summary of one line each, which shows the effect of a change. Update them
// with `go test -tags chart -run Scenarios ./internal/charttest -update`.
func TestScenarios(t *testing.T) {
	golden, err := filepath.Glob("testdata/summaries/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	all := scenarios(t)
	if len(golden) != len(all) && !*update {
		t.Errorf("%d summaries for %d scenarios", len(golden), len(all))
	}
	for name, values := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, helm := range []string{"helm3", "helm4"} {
				must(t, helm, "lint", "--strict", chart, "--values", values)
			}
			three := must(t, "helm3", "template", release, chart, "--namespace", namespace, "--values", values)
			if !slices.Equal(contents(t, parse(t, three)), contents(t, render(t, "--values", values))) {
				t.Error("Helm 3 and Helm 4 render different objects")
			}
			var lines []string
			for _, o := range parse(t, three) {
				lines = append(lines, summary(t, o))
			}
			slices.Sort(lines)
			got := strings.Join(lines, "\n") + "\n"
			path := "testdata/summaries/" + name + ".txt"
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil || string(want) != got {
				t.Errorf("%s differs from the rendered objects, %v:\n%s", path, err, got)
			}
		})
	}
}

// contents returns the objects as JSON, sorted.
func contents(t *testing.T, objects []object) (all []string) {
	t.Helper()
	for _, o := range objects {
		text, err := json.Marshal(o.whole)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(text))
	}
	slices.Sort(all)
	return all
}

// summary returns a one-line description of an object.
func summary(t *testing.T, o object) string {
	t.Helper()
	line := fmt.Sprintf("%-24s %s", o.Kind, o.Metadata.Name)
	short := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	switch {
	case o.isWorkload():
		c := o.pod().Containers[0]
		line += " image=" + c.Image + " command=" + short(append(c.Command, c.Args...))
		if o.Spec.Replicas != nil {
			line += fmt.Sprint(" replicas=", *o.Spec.Replicas)
		}
		if len(c.Args) > 0 { // a script
			line = line[:strings.Index(line, " command=")] + " command=" + short(c.Command)
		}
		var mounts []string
		for _, m := range c.VolumeMounts {
			mounts = append(mounts, m.MountPath)
		}
		line += " mounts=" + strings.Join(mounts, ",") + " env=" + strings.Join(slices.Sorted(maps.Keys(o.env())), ",")
	case o.Kind == "Service":
		for _, p := range o.Spec.Ports {
			line += fmt.Sprintf(" %s=%d→%v", p.Name, p.Port, p.TargetPort)
		}
		if o.Spec.ClusterIP == "None" {
			line += " headless"
		}
	case o.Kind == "ConfigMap":
		line += " " + strings.Join(slices.Sorted(maps.Keys(o.Data)), ",")
	}
	return line
}
