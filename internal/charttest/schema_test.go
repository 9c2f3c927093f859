//go:build chart

package charttest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestSchemas validates each scenario against Kubernetes's OpenAPI schema, without
// unknown fields.
func TestSchemas(t *testing.T) {
	schemas := t.TempDir()
	writeSchemas(t, schemas)
	validate := func(text string) (string, error) {
		stdout, stderr, err := command(t, strings.NewReader(text), filepath.Join(tools, "kubeconform"), "-strict", "-summary",
			"-schema-location", schemas+"/{{ .ResourceKind }}{{ .KindSuffix }}.json", "-")
		return stdout + stderr, err
	}
	for name, values := range scenarios(t) {
		text := must(t, "helm4", "template", release, chart, "--namespace", namespace, "--values", values)
		if output, err := validate(text); err != nil || !strings.Contains(output, "Skipped: 0") {
			t.Errorf("%s: %v\n%s", name, err, output)
		}
		if name != "full" {
			continue
		}
		for _, wrong := range [][2]string{{"automountServiceAccountToken:", "automountServiceAcountToken:"}, {"parentRefs", "x"}, {"podMetricsEndpoints:", "podMetricEndpoints:"}, {"issuerRef:", "issuer:"}} {
			if spoiled := strings.ReplaceAll(text, wrong[0], wrong[1]); spoiled != text {
				if output, err := validate(spoiled); err == nil {
					t.Errorf("%s passes:\n%s", wrong[1], output)
				}
			}
		}
	}
}

// writeSchemas writes a JSON schema for each kind of the API and of the CRDs.
func writeSchemas(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(tools, "swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	var api struct {
		Definitions map[string]map[string]any
	}
	if err := json.Unmarshal(text, &api); err != nil {
		t.Fatal(err)
	}
	for name, definition := range api.Definitions {
		switch {
		case strings.HasSuffix(name, ".IntOrString"):
			definition["type"] = []string{"integer", "string"}
		case strings.HasSuffix(name, ".Quantity"):
			definition["type"] = []string{"number", "string"}
		default:
			strict(definition)
		}
	}
	write := func(name string, schema any) {
		asJSON, err := json.Marshal(schema)
		if err != nil {
			t.Fatal(err)
		}
		asJSON = []byte(strings.ReplaceAll(string(asJSON), `"#/definitions/`, `"definitions.json#/definitions/`))
		if err := os.WriteFile(filepath.Join(dir, strings.ToLower(name)+".json"), asJSON, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	suffix := func(group, version string) string {
		if group == "" {
			return "-" + version
		}
		return "-" + strings.Split(group, ".")[0] + "-" + version
	}
	write("definitions", map[string]any{"definitions": api.Definitions})
	for name, definition := range api.Definitions {
		kinds, _ := definition["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 {
			continue
		}
		kind := kinds[0].(map[string]any)
		write(kind["kind"].(string)+suffix(kind["group"].(string), kind["version"].(string)), map[string]any{"$ref": "#/definitions/" + name})
	}
	paths, err := filepath.Glob(filepath.Join(tools, "crds/*.yaml"))
	if err != nil || len(paths) != 5 {
		t.Fatalf("%d definitions, %v", len(paths), err)
	}
	for _, path := range paths {
		var definition struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPIV3Schema map[string]any `yaml:"openAPIV3Schema"`
					}
				}
			}
		}
		text, err := os.ReadFile(path)
		if err != nil || yaml.Unmarshal(text, &definition) != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, version := range definition.Spec.Versions {
			schema := version.Schema.OpenAPIV3Schema
			schema["properties"].(map[string]any)["metadata"] = map[string]any{"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
			strict(schema)
			write(definition.Spec.Names.Kind+suffix(definition.Spec.Group, version.Name), schema)
		}
	}
}

// strict makes a schema reject unknown fields.
func strict(node any) {
	switch node := node.(type) {
	case map[string]any:
		if node["x-kubernetes-int-or-string"] == true {
			node["type"] = []string{"integer", "string"}
			delete(node, "anyOf")
			return
		}
		if _, ok := node["properties"].(map[string]any); ok && node["additionalProperties"] == nil && node["x-kubernetes-preserve-unknown-fields"] != true {
			node["additionalProperties"] = false
		}
		delete(node, "format") // int32 and quantity are not JSON schema formats
		for _, child := range node {
			strict(child)
		}
	case []any:
		for _, child := range node {
			strict(child)
		}
	}
}
