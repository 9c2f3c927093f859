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

// fixed are settings that are the chart's own affair.
var fixed = []string{"HTTP_ADDR", "OPS_ADDR", "GRPC_ADDR", "JOURNAL_DIR"}

// otherwise are settings whose value has another name, as one Secret holds both.
var otherwise = map[string]string{
	"GRPC_TLS_CERT_FILE": "grpc.tls.secretName",
	"GRPC_TLS_KEY_FILE":  "grpc.tls.secretName",
}

// foreign are variables that are not the programs' own, but Go's.
var foreign = []string{"SSL_CERT_DIR", "HTTPS_PROXY"}

// known reads the settings of a program, or of a command of it, and their defaults,
// from its --help.
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
		t.Fatalf("%s tells of %d settings only", program, len(all))
	}
	return all
}

// values are the paths of values.yaml, and their defaults.
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

// settingOf is the setting that a value's path names: redis.startTimeout is
// REDIS_START_TIMEOUT, and zoom.clientSecretRef.name is ZOOM_CLIENT_SECRET_FILE.
func settingOf(path string) string {
	if before, after, found := strings.Cut(path, "Ref."); found && !strings.Contains(after, ".") {
		return settingOf(before) + "_FILE"
	}
	return strings.ToUpper(regexp.MustCompile(`\.|([A-Z])`).ReplaceAllString(path, "_$1"))
}

// TestEverySetting compares the chart with the programs' own --help.
func TestEverySetting(t *testing.T) {
	named := map[string]string{}
	defaults := values(t)
	for path := range defaults {
		named[settingOf(path)] = path
	}
	named["GRPC_POLICY_FILE"] = "grpc.policy" // a file's content
	maps.Copy(named, otherwise)

	// All that the chart can set, over all scenarios and what they leave out.
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
				continue // a secret: by its file only
			}
			if !set[component][name] {
				t.Errorf("%s knows %s, and no value of the chart reaches it", program, name)
			}
			if slices.Contains(fixed, name) {
				continue
			}
			path, ok := named[name]
			if !ok {
				t.Errorf("%s: no value has its name", name)
				continue
			}
			// A default that the chart repeats is the program's.
			if value := defaults[path]; preset != "" && value != nil && value != "" && !strings.HasSuffix(name, "_FILE") && name != "RECALL_VERIFICATION_REQUIRED" {
				if text, _ := yaml.Marshal(value); strings.TrimSpace(string(text)) != preset {
					t.Errorf("%s is %s in the chart and %s in %s", path, strings.TrimSpace(string(text)), preset, program)
				}
			}
		}
		for name := range set[component] {
			if _, isKnown := settings[name]; !isKnown && !slices.Contains(foreign, name) && !strings.HasPrefix(name, "OTEL_") {
				t.Errorf("the chart sets %s, and %s does not know it", name, program)
			}
		}
	}
}

// TestNumbers: Helm reads numbers as floats, and would write a million as 1e+06.
func TestNumbers(t *testing.T) {
	env := find(t, render(t, "--values", scenario("full")), "Deployment", "token-server").env()
	if env["CACHE_SIZE"] != "1000000" {
		t.Errorf("CACHE_SIZE is %s", env["CACHE_SIZE"])
	}
}

// TestSchemaIsWhole: the schema knows each value, and no other.
func TestSchemaIsWhole(t *testing.T) {
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
			t.Errorf("%s: a typo would pass", prefix)
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
			continue // Helm's own, for charts that have this one as a part
		}
		if !slices.ContainsFunc(paths, func(p string) bool {
			return p == path || strings.HasPrefix(p, path+".") || strings.HasPrefix(path, p+".")
		}) {
			t.Errorf("%s is in the schema, and values.yaml does not tell of it", path)
		}
	}
}
