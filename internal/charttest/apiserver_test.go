//go:build chart

package charttest

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestInstall installs, upgrades, rolls back and uninstalls each scenario in a real
// API server, in a namespace that enforces the restricted Pod Security Standard,
// with Helm 3 and Helm 4.
func TestInstall(t *testing.T) {
	for name, values := range scenarios(t) {
		for _, helm := range []string{"helm3", "helm4"} {
			t.Run(name+"/"+helm, func(t *testing.T) {
				t.Parallel()
				ns := newNamespace(t)
				run := func(args ...string) string {
					t.Helper()
					stdout, stderr, err := tool(t, helm, append(args, "--namespace", ns)...)
					if err != nil {
						t.Fatalf("%s %s: %v\n%s", helm, strings.Join(args, " "), err, stderr)
					}
					// For a Deployment whose pods are not admitted, the API server only warns.
					if strings.Contains(stderr, "would violate") || strings.Contains(stderr, "unknown field") || strings.Contains(stderr, "Warning") {
						t.Errorf("%s %s warns:\n%s", helm, strings.Join(args, " "), stderr)
					}
					return stdout
				}
				run("install", release, chart, "--values", values)
				first := installedSpecs(t, ns)
				if len(first) < 10 {
					t.Fatalf("%d objects installed", len(first))
				}
				run("upgrade", release, chart, "--values", values, "--set", "log.level=debug", "--set", "registrar.replicas=5")
				if installedSpecs(t, ns)["registrar"] == first["registrar"] {
					t.Error("the upgrade changed nothing")
				}
				run("rollback", release, "1")
				if got := installedSpecs(t, ns); got["registrar"] != first["registrar"] {
					t.Errorf("after rollback\n%s\nwant\n%s", got["registrar"], first["registrar"])
				}
				run("uninstall", release)
				if left := installedSpecs(t, ns); len(left) != 0 {
					t.Errorf("objects after uninstall: %v", left)
				}
			})
		}
	}
}

// installedSpecs returns the specs of the chart's objects in a namespace, by name.
func installedSpecs(t *testing.T, ns string) map[string]string {
	t.Helper()
	text := must(t, "kubectl", "get", "--namespace", ns, "--selector", "app.kubernetes.io/managed-by=Helm", "--output", "json",
		"deployments,statefulsets,services,serviceaccounts,configmaps,poddisruptionbudgets,networkpolicies,ingresses,horizontalpodautoscalers,"+
			"httproutes,certificates,podmonitors,servicemonitors,prometheusrules,pods,secrets")
	var list struct {
		Items []struct {
			Kind     string
			Metadata struct {
				Name   string
				Labels map[string]string
			}
			Spec json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, item := range list.Items {
		key := item.Kind + " " + item.Metadata.Name
		if item.Kind == "Deployment" || item.Kind == "StatefulSet" {
			key = item.Metadata.Labels["app.kubernetes.io/component"]
		}
		all[key] = string(item.Spec)
	}
	return all
}

// TestPodsAreAdmitted submits each pod as the controllers would, because the API
// server checks a Deployment's pods only with warnings.
func TestPodsAreAdmitted(t *testing.T) {
	ns := newNamespace(t)
	must(t, "kubectl", "create", "priorityclass", "high", "--value=1000") // the full scenario's
	submit := func(o object) error {
		pod, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "pod", "namespace": ns}, "spec": podOf(o),
		})
		if err != nil {
			t.Fatal(err)
		}
		_, stderr, err := command(t, strings.NewReader(string(pod)), filepath.Join(tools, "kubectl"),
			"create", "--dry-run=server", "--validate=strict", "--filename", "-")
		if err != nil {
			t.Log(stderr)
		}
		return err
	}
	for name, values := range scenarios(t) {
		for _, o := range render(t, "--values", values) {
			if o.isWorkload() && submit(o) != nil {
				t.Errorf("%s: the pod of %v is not admitted", name, o)
			}
		}
	}
	root := find(t, render(t, "--values", scenario("minimal"), "--set", "securityContext.allowPrivilegeEscalation=true"), "Deployment", "token-server")
	if submit(root) == nil {
		t.Error("a pod that may escalate privileges is admitted: this test cannot fail")
	}
}

// TestDoctorInACopy checks the runbooks' command for pods that exit at startup: the
// copy is admitted, and has the settings of the original pod.
func TestDoctorInACopy(t *testing.T) {
	ns := newNamespace(t)
	documented := regexp.MustCompile(`(?m)^kubectl (debug POD .*)$`).FindStringSubmatch(read(t, runbooks))
	if documented == nil {
		t.Fatal("the runbooks have no command to debug a pod")
	}
	for kind, values := range map[string]string{"Deployment": "minimal", "StatefulSet": "cluster-redis"} {
		for _, component := range []string{"registrar", "token-server"} {
			workload := find(t, render(t, "--values", scenario(values)), kind, component)
			labels := workload.Spec.Template.Metadata.Labels
			name := strings.ToLower(kind) + "-" + component
			pod, err := json.Marshal(map[string]any{
				"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name, "namespace": ns, "labels": labels}, "spec": podOf(workload),
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, stderr, err := command(t, strings.NewReader(string(pod)), filepath.Join(tools, "kubectl"), "create", "--filename", "-"); err != nil {
				t.Fatal(stderr)
			}
			line := strings.NewReplacer("POD", name, "=registrar", "="+component, "=doctor", "=doctor-of-"+name).Replace(documented[1])
			must(t, "kubectl", append([]string{"--namespace", ns}, strings.Fields(line)...)...)
			var copied struct {
				Metadata struct{ Labels map[string]string }
				Spec     podSpec
			}
			if err := json.Unmarshal([]byte(must(t, "kubectl", "get", "pod", "doctor-of-"+name, "--namespace", ns, "--output", "json")), &copied); err != nil {
				t.Fatal(err)
			}
			c := copied.Spec.Containers[0]
			if len(copied.Metadata.Labels) != 0 || c.Name != component || !slices.Equal(c.Command, []string{"/tokenctl", "doctor"}) ||
				len(c.Env) != len(workload.pod().Containers[0].Env) || len(c.VolumeMounts) != len(workload.pod().Containers[0].VolumeMounts) ||
				c.LivenessProbe != nil {
				t.Errorf("the copy of %s is %+v, labels %v", name, c, copied.Metadata.Labels)
			}
		}
	}
}

// podOf returns a workload's rendered pod spec, with volumes in place of a
// StatefulSet's claims.
func podOf(o object) map[string]any {
	spec := o.whole["spec"].(map[string]any)
	if o.Kind == "Pod" {
		return spec
	}
	pod := spec["template"].(map[string]any)["spec"].(map[string]any)
	for _, claim := range o.Spec.VolumeClaimTemplates {
		volumes, _ := pod["volumes"].([]any)
		pod["volumes"] = append(volumes, map[string]any{"name": claim.Metadata.Name, "emptyDir": map[string]any{}})
	}
	return pod
}

// TestApply submits all rendered objects with kubectl and server-side validation,
// as a GitOps tool does.
func TestApply(t *testing.T) {
	ns := newNamespace(t)
	apply := func(text string) (string, error) {
		_, stderr, err := command(t, strings.NewReader(text), filepath.Join(tools, "kubectl"),
			"apply", "--server-side", "--dry-run=server", "--validate=strict", "--namespace", ns, "--filename", "-")
		return stderr, err
	}
	for name, values := range scenarios(t) {
		text := must(t, "helm4", "template", release, chart, "--namespace", ns, "--values", values)
		if stderr, err := apply(text); err != nil || strings.Contains(stderr, "Warning") {
			t.Errorf("%s: %v\n%s", name, err, stderr)
		}
		if name == "minimal" {
			if _, err := apply(strings.Replace(text, "containerPort: 8080", "containerPort: 80800", 1)); err == nil {
				t.Error("a port of 80800 passes: this test cannot fail")
			}
		}
	}
}

// TestNotes checks the notes after an install: the next steps, and the configuration
// that is missing.
func TestNotes(t *testing.T) {
	ns := newNamespace(t)
	notes := func(values string) string {
		return must(t, "helm4", "upgrade", "--install", release, chart, "--namespace", ns, "--values", scenario(values))
	}
	output := notes("minimal")
	for _, want := range []string{
		"rollout status deployment/rel-token-provider-token-server", "helm --namespace " + ns + " test rel",
		"exec deployment/rel-token-provider-registrar -- tokenctl doctor", "exec deployment/rel-token-provider-token-server -- tokenctl doctor",
		"token-provider, key zoom-client-secret   <-- missing", "rel-token-provider-registrar." + ns + ".svc:8443 (gRPC, mutual TLS)",
		"Recall cannot reach the token server yet", "networkPolicy.callback.from is empty", "networkPolicy.grpc.namespaces is empty",
		"zoom.webhookSecretTokenRef is empty", "Metrics are not scraped",
	} {
		if !strings.Contains(output, want) {
			t.Errorf("the notes lack %q:\n%s", want, output)
		}
	}
	if strings.Contains(output, "embedded") || strings.Contains(output, "EMBEDDED") {
		t.Errorf("the notes warn of the embedded Redis, which is disabled:\n%s", output)
	}
	must(t, "kubectl", "create", "secret", "generic", "token-provider", "--namespace", ns, "--from-literal=zoom-client-secret=hunter2")
	if output = notes("minimal"); !strings.Contains(output, "key zoom-client-secret\n") || !strings.Contains(output, "key redis-url   <-- missing") || strings.Contains(output, "hunter2") {
		t.Errorf("the notes do not reflect the Secret:\n%s", output)
	}
	output = notes("embedded-redis")
	for _, want := range []string{"THE EMBEDDED REDIS IS FOR TRIALS", "grpc.insecure is true", "recall.verificationRequired is false", "(gRPC, plaintext)", "tokenServer.replicas is less than 2"} {
		if !strings.Contains(output, want) {
			t.Errorf("the notes lack %q:\n%s", want, output)
		}
	}
	output = must(t, "helm4", "install", "full", chart, "--namespace", ns, "--values", scenario("full"))
	if strings.Contains(output, "Still missing") {
		t.Errorf("the notes report missing configuration in a complete one:\n%s", output)
	}
	if !strings.Contains(output, "tokens-tls, keys tls.crt and tls.key   <-- missing") || !strings.Contains(output, "Recall calls https://tokens.example.com: point its DNS name") {
		t.Errorf("the notes lack the callback's certificate:\n%s", output)
	}
	must(t, "kubectl", "create", "secret", "generic", "tokens-tls", "--namespace", ns, "--from-literal=tls.crt=hunter2")
	output = must(t, "helm4", "upgrade", "full", chart, "--namespace", ns, "--values", scenario("full"))
	if !strings.Contains(output, "tokens-tls, keys tls.crt and tls.key\n") {
		t.Errorf("the notes do not reflect the callback's certificate:\n%s", output)
	}
	output = must(t, "helm4", "install", "journals", chart, "--namespace", ns, "--values", scenario("cluster-redis"))
	if !strings.Contains(output, "exec statefulset/journals-token-provider-registrar -- tokenctl doctor") || strings.Contains(output, "deployment/") {
		t.Errorf("the notes name Deployments instead of StatefulSets:\n%s", output)
	}
	for _, which := range []string{"values", "manifest", "notes", "hooks"} {
		if text := must(t, "helm4", "get", which, release, "--namespace", ns); strings.Contains(text, "hunter2") {
			t.Errorf("helm get %s prints a secret", which)
		}
	}
}

// TestNeedsNoCRDs checks that the default values need no CRDs.
func TestNeedsNoCRDs(t *testing.T) {
	for _, name := range []string{"minimal", "embedded-redis", "several-apps", "air-gapped"} {
		for _, o := range render(t, "--values", scenario(name)) {
			group, _, found := strings.Cut(o.APIVersion, "/")
			if found && group != "apps" && group != "policy" && group != "autoscaling" && group != "networking.k8s.io" {
				t.Errorf("%s: %v has API version %s", name, o, o.APIVersion)
			}
		}
	}
}
