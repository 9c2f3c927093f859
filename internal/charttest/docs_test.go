//go:build chart

package charttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const guide = "../../docs/deploy.md"

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestGuide runs the commands of docs/deploy.md in order, with Helm 3 and Helm 4.
func TestGuide(t *testing.T) {
	startCluster(t)
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	for _, block := range regexp.MustCompile("(?s)\n```sh\n(.*?)```").FindAllStringSubmatch(read(t, guide), -1) {
		script.WriteString(block[1])
	}
	if strings.Count(script.String(), "helm ") < 5 {
		t.Fatal("the guide has fewer than 5 helm commands")
	}
	// Record the state before the uninstall.
	commands := strings.Replace(script.String(), "helm uninstall", "helm list --all-namespaces >installed\nkubectl get statefulsets --namespace trial >>installed\nhelm uninstall", 1)
	charts, err := filepath.Abs("../../charts")
	if err != nil {
		t.Fatal(err)
	}
	for _, helm := range []string{"helm3", "helm4"} {
		dir := t.TempDir()
		for name, target := range map[string]string{"charts": charts, "bin": bin, "path/helm": filepath.Join(tools, helm), "path/kubectl": filepath.Join(tools, "kubectl")} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		own := filepath.Join(dir, "token-provider") // the guide's directory below $HOME
		if err := os.Mkdir(own, 0o700); err != nil {
			t.Fatal(err)
		}
		if output, err := exec.CommandContext(t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
			"-subj", "/CN=tokens.example.com", "-keyout", filepath.Join(own, "tokens.key"), "-out", filepath.Join(own, "tokens.crt")).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		for _, name := range []string{"redis-url", "zoom-client-secret", "recall-api-key", "recall-verification-secrets", "zoom-webhook-secret-token"} {
			if err := os.WriteFile(filepath.Join(own, name), []byte("hunter2"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := exec.CommandContext(t.Context(), "bash", "-c", commands)
		c.Dir, c.Env = dir, append(os.Environ(), "HOME="+dir, "PATH="+dir+"/path:"+os.Getenv("PATH"))
		output, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", helm, err, output)
		}
		if strings.Contains(string(output), "hunter2") {
			t.Error("the output contains a secret")
		}
		installed := read(t, filepath.Join(own, "installed"))
		if strings.Count(installed, "deployed") < 2 || !strings.Contains(installed, "token-provider-redis") {
			t.Errorf("%s: installed is only %s", helm, installed)
		}
		for _, ns := range []string{"token-provider", "trial"} {
			if left := installedSpecs(t, ns); len(left) != 0 {
				t.Errorf("%s: objects after uninstall: %v", helm, left)
			}
		}
		// The namespaces are never deleted, so empty them for the next round.
		must(t, "kubectl", "delete", "secrets", "--all", "--namespace", "token-provider")
		must(t, "kubectl", "delete", "secrets", "--all", "--namespace", "trial")
		commands = strings.ReplaceAll(commands, "kubectl create namespace", "kubectl get namespace")
	}
}

// TestGuideNames checks that each value, setting and make target in the guide and the
// runbooks exists.
func TestGuideNames(t *testing.T) {
	text := read(t, guide) + read(t, runbooks)
	paths, settings := values(t), known(t, "tokenserver")
	for _, more := range []map[string]string{known(t, "registrar"), known(t, "tokenctl", "doctor")} {
		for name := range more {
			settings[name] = ""
		}
	}
	for _, match := range regexp.MustCompile("`([a-z][A-Za-z]*(?:\\.[A-Za-z]+)+)`").FindAllStringSubmatch(text, -1) {
		name := match[1]
		if strings.HasSuffix(name, ".json") || strings.HasSuffix(name, ".yaml") {
			continue
		}
		found := false
		for path := range paths {
			found = found || path == name || strings.HasPrefix(path, name+".")
		}
		if !found {
			t.Errorf("the guide names %s, which is not a value", name)
		}
	}
	for _, match := range regexp.MustCompile("`([A-Z]+(?:_[A-Z]+)+)`").FindAllStringSubmatch(text, -1) {
		_, ok := settings[match[1]]
		if !ok && !strings.HasPrefix(match[1], "STATE_") {
			t.Errorf("the guide names %s, which is not a setting", match[1])
		}
	}
	makefile := read(t, "../../Makefile")
	for _, match := range regexp.MustCompile("(?:`|\\$ )make ([a-z-]+)").FindAllStringSubmatch(text, -1) {
		if !strings.Contains(makefile, "\n"+match[1]+":") {
			t.Errorf("the guide names make %s, which is not a target", match[1])
		}
	}
}

// TestGuideValues checks that the chart accepts the guide's values files.
func TestGuideValues(t *testing.T) {
	blocks := regexp.MustCompile("(?s)\n```yaml\n(.*?)```").FindAllStringSubmatch(read(t, guide), -1)
	if len(blocks) == 0 {
		t.Error("the guide has no values file")
	}
	for i, block := range blocks {
		path := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(path, []byte(block[1]), 0o600); err != nil {
			t.Fatal(err)
		}
		if len(render(t, "--values", scenario("minimal"), "--values", path)) == 0 {
			t.Errorf("values file %d renders no objects", i)
		}
	}
}

// operatorPods returns the pod of docs/tokenctl.md in its two variants: restore, as it
// is shown, and replay, with its comments applied.
func operatorPods(t *testing.T) map[string]string {
	t.Helper()
	block := regexp.MustCompile("(?s)\n```yaml\n(apiVersion: v1\nkind: Pod\n.*?)```").FindStringSubmatch(read(t, "../../docs/tokenctl.md"))
	if block == nil {
		t.Fatal("docs/tokenctl.md has no pod")
	}
	replay := regexp.MustCompile(`(?m)^ +command: .*restore.*\n`).ReplaceAllString(block[1], "")
	return map[string]string{"restore": block[1], "replay": regexp.MustCompile(`(?m)^( +)# ((?:command:|- \{?name:|  ).*)$`).ReplaceAllString(replay, "$1$2")}
}

// TestOperatorsPod checks that the pods of docs/tokenctl.md are admitted under the
// restricted standard, and use the names and files of the chart's pods.
func TestOperatorsPod(t *testing.T) {
	ns := newNamespace(t)
	values := []string{"--values", scenario("minimal"), "--set", "fullnameOverride=token-provider", "--set", "journal.persistence.enabled=true"}
	registrar := find(t, render(t, values...), "StatefulSet", "registrar")
	theirs := registrar.pod()
	files := func(p podSpec) map[string]string {
		all := map[string]string{}
		for _, v := range p.Volumes {
			if v.Projected == nil {
				continue
			}
			for _, source := range v.Projected.Sources {
				for _, item := range source.Secret.Items {
					all[item.Path] = source.Secret.Name + "/" + item.Key
				}
			}
		}
		return all
	}
	for kind, text := range operatorPods(t) {
		text = strings.Replace(text, "namespace: token-provider\n", "namespace: "+ns+"\n", 1)
		if _, stderr, err := command(t, strings.NewReader(text), filepath.Join(tools, "kubectl"),
			"create", "--dry-run=server", "--validate=strict", "--filename", "-"); err != nil || stderr != "" {
			t.Errorf("%s: %v\n%s", kind, err, stderr)
		}
		pod := parse(t, text)[0]
		spec := pod.pod()
		c := spec.Containers[0]
		if n := map[string]int{"restore": 1, "replay": 2}[kind]; len(spec.Volumes) != n || len(c.VolumeMounts) != n {
			t.Errorf("%s: %d volumes, of which %d are mounted", kind, len(spec.Volumes), len(c.VolumeMounts))
		}
		if want := strings.Join(c.Command, " "); !strings.Contains(want, map[string]string{"restore": "restore -", "replay": "journal replay " + registrar.env()["JOURNAL_DIR"]}[kind]) {
			t.Errorf("%s: command is %s", kind, want)
		}
		for _, setting := range c.Env {
			if got := registrar.env()[setting.Name]; got != setting.Value {
				t.Errorf("%s: %s is %q, and the registrar's is %q", kind, setting.Name, setting.Value, got)
			}
		}
		for path, key := range files(spec) {
			if files(theirs)[path] != key {
				t.Errorf("%s: the file %s is from %s; the registrar's is from %q", kind, path, key, files(theirs)[path])
			}
		}
		if len(files(spec)) != 2 || !strings.HasPrefix(c.Image, "registry.example.com/token-provider:") {
			t.Errorf("%s: the files are %v, the image is %s", kind, files(spec), c.Image)
		}
		for _, m := range c.VolumeMounts {
			if !slices.ContainsFunc(theirs.Containers[0].VolumeMounts, func(other struct {
				Name, MountPath, SubPath string
				ReadOnly                 bool
			},
			) bool {
				return other == m
			}) {
				t.Errorf("%s: the registrar does not mount %+v", kind, m)
			}
		}
		if claim := registrar.Spec.VolumeClaimTemplates[0].Metadata.Name + "-" + registrar.Metadata.Name + "-0"; kind == "replay" && !strings.Contains(text, "claimName: "+claim+"}") {
			t.Errorf("the registrar's claim is named %s", claim)
		}
		hardened(t, pod)
	}
}

// TestReadme checks that the chart's README matches its values.yaml.
func TestReadme(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "token-provider"), os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	must(t, "helm-docs", "--chart-search-root", dir, "--sort-values-order", "file", "--log-level", "warning")
	if read(t, filepath.Join(dir, "token-provider/README.md")) != read(t, filepath.Join(chart, "README.md")) {
		t.Error("the chart's README is stale; run make chart-docs")
	}
	for _, match := range regexp.MustCompile(`(?m)^\| (\S+) \|.*\|  \|$`).FindAllStringSubmatch(read(t, filepath.Join(chart, "README.md")), -1) {
		t.Errorf("%s has no description", match[1])
	}
}
