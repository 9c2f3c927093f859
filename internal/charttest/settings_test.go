//go:build chart

package charttest

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// fixed lists settings that the chart sets to constants.
var fixed = []string{"HTTP_ADDR", "OPS_ADDR", "GRPC_ADDR", "JOURNAL_DIR"}

// otherwise maps settings to values with a different name: one Secret has both files.
var otherwise = map[string]string{
	"GRPC_TLS_CERT_FILE": "grpc.tls.secretName",
	"GRPC_TLS_KEY_FILE":  "grpc.tls.secretName",
}

// foreign lists variables that Go reads, not the programs.
var foreign = []string{"SSL_CERT_DIR", "HTTPS_PROXY"}

// known returns the settings of a program or command and their defaults, from its
// --help.
func known(t *testing.T, program string, command ...string) map[string]string {
	t.Helper()
	help, err := exec.Command(filepath.Join(bin, program), append(command, "--help")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	flag := regexp.MustCompile(`(?m)^ +--([a-z-]+)(?:="?([^\s"]*)"?)?`)
	starts := flag.FindAllStringSubmatchIndex(string(help), -1)
	for i, start := range starts {
		end := len(help)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		variable := regexp.MustCompile(`\(\$([A-Z_0-9]+)\)`).FindSubmatch(help[start[0]:end])
		if variable == nil {
			continue // --version
		}
		all[string(variable[1])] = ""
		if start[4] >= 0 {
			all[string(variable[1])] = string(help[start[4]:start[5]])
		}
	}
	if len(all) < 15 {
		t.Fatalf("%s lists only %d settings", program, len(all))
	}
	return all
}

// values returns the paths of values.yaml and their defaults.
func values(t *testing.T) map[string]any {
	t.Helper()
	text, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	all := map[string]any{}
	var walk func(prefix string, node any)
	walk = func(prefix string, node any) {
		branch, ok := node.(map[string]any)
		if !ok || len(branch) == 0 {
			all[prefix] = node
			return
		}
		for key, child := range branch {
			walk(strings.TrimPrefix(prefix+"."+key, "."), child)
		}
	}
	walk("", tree)
	return all
}

// settingOf returns the setting that a value's path refers to: redis.startTimeout is
// REDIS_START_TIMEOUT, and zoom.clientSecretRef.name is ZOOM_CLIENT_SECRET_FILE.
func settingOf(path string) string {
	if before, after, found := strings.Cut(path, "Ref."); found && !strings.Contains(after, ".") {
		return settingOf(before) + "_FILE"
	}
	return strings.ToUpper(regexp.MustCompile(`\.|([A-Z])`).ReplaceAllString(path, "_$1"))
}

// TestEverySetting compares the chart's values with the programs' --help.
func TestEverySetting(t *testing.T) {
	named := map[string]string{}
	defaults := values(t)
	for path := range defaults {
		named[settingOf(path)] = path
	}
	named["GRPC_POLICY_FILE"] = "grpc.policy" // a file's content
	maps.Copy(named, otherwise)

	// All settings that the chart can set, in any scenario.
	set := map[string]map[string]bool{"token-server": {}, "registrar": {}}
	collect := func(args ...string) {
		for _, o := range render(t, args...) {
			if settings := set[o.Metadata.Labels["app.kubernetes.io/component"]]; settings != nil && o.isWorkload() {
				for name := range o.env() {
					settings[name] = true
				}
			}
		}
	}
	for _, path := range scenarios(t) {
		collect("--values", path)
	}
	collect("--values", scenario("minimal"), "--set", "redis.urlRef.name=,redis.url=redis://redis:6379/0,redis.allowDataLoss=true")

	for component, program := range map[string]string{"token-server": "tokenserver", "registrar": "registrar"} {
		settings := known(t, program)
		for name, preset := range settings {
			_, hasFile := settings[name+"_FILE"]
			if hasFile && name != "REDIS_URL" {
				continue // a secret is set only by its file
			}
			if !set[component][name] {
				t.Errorf("%s has the setting %s, which no value sets", program, name)
			}
			if slices.Contains(fixed, name) {
				continue
			}
			path, ok := named[name]
			if !ok {
				t.Errorf("no value is named after %s", name)
				continue
			}
			// A default that the chart repeats must equal the program's.
			if value := defaults[path]; preset != "" && value != nil && value != "" && !strings.HasSuffix(name, "_FILE") && name != "RECALL_VERIFICATION_REQUIRED" {
				if text, _ := yaml.Marshal(value); strings.TrimSpace(string(text)) != preset {
					t.Errorf("%s is %s in the chart and %s in %s", path, strings.TrimSpace(string(text)), preset, program)
				}
			}
		}
		for name := range set[component] {
			if _, isKnown := settings[name]; !isKnown && !slices.Contains(foreign, name) && !strings.HasPrefix(name, "OTEL_") {
				t.Errorf("the chart sets %s, which %s does not have", name, program)
			}
		}
	}
}

// TestNumbers checks that large numbers are not rendered as floats (1e+06).
func TestNumbers(t *testing.T) {
	env := find(t, render(t, "--values", scenario("full")), "Deployment", "token-server").env()
	if env["CACHE_SIZE"] != "1000000" {
		t.Errorf("CACHE_SIZE is %s", env["CACHE_SIZE"])
	}
}

// TestSchemaIsComplete checks that the schema has exactly the values of values.yaml.
func TestSchemaIsComplete(t *testing.T) {
	var schema map[string]any
	text, err := os.ReadFile(chart + "/values.schema.json")
	if err != nil || yaml.Unmarshal(text, &schema) != nil { // JSON is YAML
		t.Fatalf("reading the schema: %v", err)
	}
	definitions := schema["definitions"].(map[string]any)
	inSchema := map[string]bool{}
	var walk func(prefix string, node map[string]any)
	walk = func(prefix string, node map[string]any) {
		if ref, ok := node["$ref"].(string); ok {
			node = definitions[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any)
		}
		properties, ok := node["properties"].(map[string]any)
		if !ok {
			inSchema[prefix] = true
			return
		}
		if node["additionalProperties"] != false {
			t.Errorf("%s accepts unknown values", prefix)
		}
		for key, child := range properties {
			walk(strings.TrimPrefix(prefix+"."+key, "."), child.(map[string]any))
		}
	}
	walk("", schema)
	paths := slices.Sorted(maps.Keys(values(t)))
	for _, path := range paths {
		covered := false
		for p := range inSchema {
			covered = covered || p == path || strings.HasPrefix(path, p+".") || strings.HasPrefix(p, path+".")
		}
		if !covered {
			t.Errorf("%s is not in the schema", path)
		}
	}
	for path := range inSchema {
		if path == "global" {
			continue // reserved by Helm for parent charts
		}
		if !slices.ContainsFunc(paths, func(p string) bool {
			return p == path || strings.HasPrefix(p, path+".") || strings.HasPrefix(path, p+".")
		}) {
			t.Errorf("%s is in the schema, but not in values.yaml", path)
		}
	}
}
