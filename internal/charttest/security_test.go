//go:build chart

package charttest

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestHardened checks the security context of every pod in every scenario.
func TestHardened(t *testing.T) {
	for name, values := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pods := 0
			for _, o := range render(t, "--values", values) {
				if o.Kind == "ServiceAccount" && (o.AutomountServiceAccountToken == nil || *o.AutomountServiceAccountToken) {
					t.Errorf("%v mounts its token into pods", o)
				}
				if !o.isWorkload() {
					continue
				}
				pods++
				hardened(t, o)
			}
			if pods < 3 {
				t.Errorf("%d workloads, want both programs and the test", pods)
			}
		})
	}
}

func hardened(t *testing.T, o object) {
	t.Helper()
	fault := func(text string) { t.Errorf("%v: %s", o, text) }
	isTrue := func(b *bool) bool { return b != nil && *b }
	isFalse := func(b *bool) bool { return b != nil && !*b }
	pod := o.pod()
	if !isFalse(pod.AutomountServiceAccountToken) {
		fault("mounts a ServiceAccount token")
	}
	if !isFalse(pod.EnableServiceLinks) {
		fault("has variables generated for Services")
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		fault("shares the host's namespaces")
	}
	if !isTrue(pod.SecurityContext.RunAsNonRoot) || pod.SecurityContext.RunAsUser == nil || *pod.SecurityContext.RunAsUser == 0 {
		fault("may run as root")
	}
	if pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
		fault("has no seccomp profile")
	}
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 {
		fault("must have exactly one container")
	}
	for _, c := range pod.Containers {
		s := c.SecurityContext
		if !isFalse(s.AllowPrivilegeEscalation) || isTrue(s.Privileged) {
			fault("may escalate privileges")
		}
		if !isTrue(s.ReadOnlyRootFilesystem) {
			fault("can write to its root file system")
		}
		if !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) || len(s.Capabilities.Add) != 0 {
			fault("has capabilities")
		}
		for _, resource := range []string{"cpu", "memory"} {
			if c.Resources.Requests[resource] == "" || c.Resources.Limits[resource] == "" {
				fault("has no request or no limit of " + resource)
			}
		}
		if len(c.EnvFrom) != 0 {
			fault("uses envFrom")
		}
		seen := map[string]bool{}
		for _, v := range c.Env {
			if v.ValueFrom != nil {
				fault(v.Name + " uses valueFrom: secrets must not be in the environment")
			}
			if seen[v.Name] {
				fault(v.Name + " is set twice")
			}
			seen[v.Name] = true
		}
		if o.Kind != "Pod" && (c.LivenessProbe == nil || c.ReadinessProbe == nil || c.StartupProbe == nil) {
			fault("lacks a probe")
		}
		for _, m := range c.VolumeMounts {
			if m.SubPath != "" {
				fault("mounts " + m.MountPath + " by subPath, which does not follow changes")
			}
		}
	}
	for _, v := range pod.Volumes {
		if v.Projected != nil && v.Projected.DefaultMode != 0o440 || v.Secret != nil && v.Secret.DefaultMode != 0o440 {
			fault("secret files are readable by others")
		}
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit == "" {
			fault(v.Name + " has no size limit")
		}
	}
	if regexp.MustCompile(`:latest$|[^0-9a-z]$`).MatchString(pod.Containers[0].Image) {
		fault("image " + pod.Containers[0].Image + " is not pinned")
	}
}

// TestSelectors checks that selectors match. The API server accepts one that matches
// nothing, and then it has no effect.
func TestSelectors(t *testing.T) {
	for name, values := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects := render(t, "--values", values)
			matching := func(s selector) (names []string) {
				for _, o := range objects {
					if o.isWorkload() && s.matches(o.Spec.Template.Metadata.Labels) {
						names = append(names, o.Metadata.Labels["app.kubernetes.io/component"])
					}
				}
				return names
			}
			for _, o := range objects {
				component := o.Metadata.Labels["app.kubernetes.io/component"]
				if o.Metadata.Namespace != namespace {
					t.Errorf("%v is in namespace %q", o, o.Metadata.Namespace)
				}
				var s selector
				switch o.Kind {
				case "Service":
					if err := json.Unmarshal(o.Spec.Selector, &s.MatchLabels); err != nil {
						t.Fatal(err)
					}
					target := find(t, objects, kindOf(objects, component), component).pod().Containers[0]
					for _, port := range o.Spec.Ports {
						if !slices.ContainsFunc(target.Ports, func(p struct{ Name string }) bool { return p.Name == port.TargetPort }) {
							t.Errorf("%v: %v has no port %v", o, component, port.TargetPort)
						}
					}
				case "PodDisruptionBudget", "Deployment", "StatefulSet":
					if err := json.Unmarshal(o.Spec.Selector, &s); err != nil {
						t.Fatal(err)
					}
				case "NetworkPolicy":
					s = o.Spec.PodSelector
				default:
					continue
				}
				if got := matching(s); !slices.Equal(got, []string{component}) {
					t.Errorf("%v selects the pods of %v, want %v", o, got, component)
				}
				for _, c := range o.pod().TopologySpreadConstraints {
					if got := matching(c.LabelSelector); !slices.Equal(got, []string{component}) {
						t.Errorf("%v spreads the pods of %v", o, got)
					}
				}
				if o.Kind == "StatefulSet" {
					find(t, objects, "Service", o.Spec.ServiceName)
				}
			}
		})
	}
}

func kindOf(objects []object, component string) string {
	for _, o := range objects {
		if (o.Kind == "Deployment" || o.Kind == "StatefulSet") && o.Metadata.Labels["app.kubernetes.io/component"] == component {
			return o.Kind
		}
	}
	return "workload of " + component
}

// TestNetworkPolicies compares the rules with the connections that the pods need.
func TestNetworkPolicies(t *testing.T) {
	objects := render(t, "--values", scenario("full"))
	from := func(policy, port string) (peers []string) {
		for _, r := range find(t, objects, "NetworkPolicy", policy).Spec.Ingress {
			for _, p := range r.Ports {
				if p.Port != port {
					continue
				}
				if len(r.From) == 0 {
					peers = append(peers, "ANY")
				}
				for _, peer := range r.From {
					switch {
					case peer.NamespaceSelector != nil:
						peers = append(peers, peer.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"])
					case peer.PodSelector != nil:
						peers = append(peers, "pods of "+peer.PodSelector.MatchLabels["app.kubernetes.io/component"])
					}
				}
			}
		}
		slices.Sort(peers)
		return peers
	}
	for _, c := range []struct {
		policy, port string
		want         []string
	}{
		{"token-server", "http", []string{"ingress-nginx", "pods of test"}},
		{"token-server", "ops", []string{"monitoring", "pods of test"}},
		{"registrar", "grpc", []string{"onboarding", "pods of test", "scheduler"}},
		{"registrar", "ops", []string{"monitoring", "pods of test"}},
	} {
		if got := from(c.policy, c.port); !slices.Equal(got, c.want) {
			t.Errorf("%s of %s is open to %v, want %v", c.port, c.policy, got, c.want)
		}
	}
	objects = append(objects, render(t, "--values", scenario("embedded-redis"))...)
	for _, o := range objects {
		if o.Kind != "NetworkPolicy" {
			continue
		}
		if !slices.Equal(o.Spec.PolicyTypes, []string{"Ingress", "Egress"}) {
			t.Errorf("%v leaves a direction open", o)
		}
		for _, r := range o.Spec.Egress {
			for _, p := range r.Ports {
				port, _ := json.Marshal(p.Port)
				anywhere := len(r.To) == 0
				if anywhere && !slices.Contains([]string{"53", "6379"}, string(port)) {
					t.Errorf("%v: egress to port %s is allowed to any address", o, port)
				}
			}
			for _, peer := range r.To {
				if peer.IPBlock != nil && peer.IPBlock.CIDR == "0.0.0.0/0" && !slices.Contains(peer.IPBlock.Except, "169.254.0.0/16") {
					t.Errorf("%v: the cloud's metadata service is reachable", o)
				}
			}
		}
	}
	redis := find(t, objects, "NetworkPolicy", "-redis")
	if len(redis.Spec.Egress) != 0 || len(redis.Spec.Ingress) != 1 || len(redis.Spec.Ingress[0].From) != 2 {
		t.Error("the embedded Redis must accept only the two programs, and have no egress")
	}
	for _, o := range render(t, "--values", scenario("minimal"), "--set", "networkPolicy.enabled=false") {
		if o.Kind == "NetworkPolicy" {
			t.Errorf("%v with networkPolicy.enabled=false", o)
		}
	}
}

// TestOnlyThePublicPaths checks that only the two public paths are routed.
func TestOnlyThePublicPaths(t *testing.T) {
	ingress := find(t, render(t, "--values", scenario("full")), "Ingress", "token-server")
	route := find(t, render(t, "--values", scenario("cluster-redis")), "HTTPRoute", "token-server")
	paths := regexp.MustCompile(`"(?:path|value)":"([^"]+)"`)
	for _, o := range []object{ingress, route} {
		text, err := json.Marshal(o.whole["spec"])
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, match := range paths.FindAllStringSubmatch(string(text), -1) {
			got = append(got, match[1])
		}
		slices.Sort(got)
		if !slices.Equal(got, []string{"/callback/", "/zoom/events"}) || !strings.Contains(string(text), "tokens.example.com") {
			t.Errorf("%v routes %v", o, got)
		}
		if strings.Contains(string(text), "ops") || strings.Contains(string(text), "9090") {
			t.Errorf("%v routes to the ops port", o)
		}
	}
	for _, o := range render(t, "--values", scenario("full")) {
		for _, port := range o.Spec.Ports {
			if o.Kind == "Service" && port.Port == 9090 && o.Spec.ClusterIP != "None" {
				t.Errorf("%v gives the ops port a cluster IP", o)
			}
		}
	}
}

// TestNothingSensitive checks that no value and no object contains a secret.
func TestNothingSensitive(t *testing.T) {
	for name, values := range scenarios(t) {
		objects := render(t, "--values", values)
		for _, o := range objects {
			if o.Kind == "Secret" {
				t.Errorf("%s: %v", name, o)
			}
			for key, content := range o.Data {
				if o.Kind == "ConfigMap" && regexp.MustCompile(`(?i)whsec_|client_secret:|requirepass|-----BEGIN`).MatchString(content) {
					t.Errorf("%s: %v has sensitive content in %s", name, o, key)
				}
			}
			if !o.isWorkload() || o.Kind == "Pod" {
				continue
			}
			for _, setting := range []string{"REDIS_URL", "ZOOM_CLIENT_SECRET", "ZOOM_WEBHOOK_SECRET_TOKEN", "RECALL_API_KEY", "RECALL_VERIFICATION_SECRETS"} {
				if _, set := o.env()[setting]; set {
					t.Errorf("%s: %v has %s in its environment", name, o, setting)
				}
			}
		}
	}
	// Values refer to secrets, and never contain one.
	text := must(t, "helm4", "show", "values", chart)
	for _, line := range strings.Split(text, "\n") {
		if regexp.MustCompile(`(?i)^\s*(password|clientSecret|apiKey|secretToken|verificationSecrets|keyset): *[^ ]`).MatchString(line) {
			t.Errorf("a value that contains a secret: %s", line)
		}
	}
}

// TestDrain checks that the grace period covers the drain and the shutdown.
func TestDrain(t *testing.T) {
	objects := render(t, "--values", scenario("full")) // drains for 15 s
	for component, want := range map[string]int{"token-server": 45, "registrar": 90} {
		o := find(t, objects, "Deployment", component)
		if got := o.pod().TerminationGracePeriodSeconds; got < want+15 {
			t.Errorf("%v has %d s to stop, but needs %d s after a drain of 15 s", o, got, want)
		}
	}
	if got := find(t, objects, "Deployment", "token-server").env()["DRAIN_DELAY"]; got != "15s" {
		t.Errorf("DRAIN_DELAY is %q", got)
	}
	registrar := find(t, objects, "Deployment", "registrar").pod().Containers[0]
	if got := registrar.Lifecycle.PreStop.Sleep.Seconds; got != 15 {
		t.Errorf("the registrar drains for %d s", got)
	}
	for _, o := range objects {
		if o.Kind != "Deployment" {
			continue
		}
		strategy, err := json.Marshal(o.whole["spec"].(map[string]any)["strategy"])
		if err != nil || !strings.Contains(string(strategy), `"maxUnavailable":0`) {
			t.Errorf("%v removes pods before others are ready: %s", o, strategy)
		}
		c := o.pod().Containers[0]
		if c.LivenessProbe.HTTPGet.Path != "/healthz" {
			t.Errorf("%v has a liveness probe on something that a restart does not fix", o)
		}
		// redis.startTimeout is 2 minutes.
		if wait := c.StartupProbe.PeriodSeconds * c.StartupProbe.FailureThreshold; wait < 120 {
			t.Errorf("%v is killed after %d s of waiting for Redis", o, wait)
		}
	}
	if probe := registrar.ReadinessProbe; probe.GRPC != nil || probe.HTTPGet.Port != "ops" {
		t.Error("with TLS the readiness probe must not use gRPC")
	}
	plain := find(t, render(t, "--values", scenario("embedded-redis")), "Deployment", "registrar").pod().Containers[0]
	if plain.ReadinessProbe.GRPC == nil {
		t.Error("without TLS the readiness probe must use gRPC")
	}
}

// TestReplaced checks which changes of values replace pods.
func TestReplaced(t *testing.T) {
	template := func(args ...string) string {
		o := find(t, render(t, append([]string{"--values", scenario("full")}, args...)...), "Deployment", "registrar")
		text, err := json.Marshal(o.whole["spec"].(map[string]any)["template"])
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := template()
	if template("--set", "log.level=debug") == before {
		t.Error("a changed setting replaces no pod")
	}
	// The policy's file follows its ConfigMap, and the registrar reloads it.
	if template("--set", "grpc.policy=other", "--set", "registrar.replicas=7", "--set", "monitoring.podMonitor.interval=15s") != before {
		t.Error("a change outside the pods replaces them")
	}
}

// TestAutoscaling checks that an autoscaled workload has no replicas of its own.
func TestAutoscaling(t *testing.T) {
	for values, kind := range map[string]string{"full": "Deployment", "cluster-redis": "StatefulSet"} {
		objects := render(t, "--values", scenario(values), "--set", "tokenServer.autoscaling.enabled=true")
		o := find(t, objects, kind, "token-server")
		if o.Spec.Replicas != nil {
			t.Errorf("%v sets replicas in spite of its autoscaler", o)
		}
		target := find(t, objects, "HorizontalPodAutoscaler", "token-server").Spec.ScaleTargetRef
		if target.Kind != kind || target.Name != o.Metadata.Name {
			t.Errorf("scales %v, want %v", target, o)
		}
	}
	o := find(t, render(t, "--values", scenario("minimal"), "--set", "tokenServer.replicas=0"), "Deployment", "token-server")
	if o.Spec.Replicas == nil || *o.Spec.Replicas != 0 {
		t.Error("0 replicas are not 0")
	}
}

// TestPersistentJournals checks that each pod has its own volume, which is retained.
func TestPersistentJournals(t *testing.T) {
	objects := render(t, "--values", scenario("cluster-redis"))
	for _, component := range []string{"token-server", "registrar"} {
		o := find(t, objects, "StatefulSet", component)
		if claims := o.Spec.VolumeClaimTemplates; len(claims) != 1 || claims[0].Metadata.Name != "journal" {
			t.Errorf("%v claims %v", o, claims)
		}
		want := map[string]string{"whenDeleted": "Retain", "whenScaled": "Retain"}
		if !maps.Equal(o.Spec.PersistentVolumeClaimRetentionPolicy, want) {
			t.Errorf("%v deletes journals: %v", o, o.Spec.PersistentVolumeClaimRetentionPolicy)
		}
		for _, v := range o.pod().Volumes {
			if v.Name == "journal" {
				t.Errorf("%v has a second journal volume", o)
			}
		}
	}
}

// TestLongNames checks that names and labels fit into a DNS label.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("a", 53)
	text := must(t, "helm4", "template", long, chart, "--values", scenario("full"), "--set", "fullnameOverride=")
	text += must(t, "helm4", "template", long, chart, "--values", scenario("embedded-redis"))
	for _, o := range parse(t, text) {
		if len(o.Metadata.Name) > 63 {
			t.Errorf("%v has %d characters", o, len(o.Metadata.Name))
		}
		for key, value := range o.Metadata.Labels {
			if len(value) > 63 {
				t.Errorf("%v: label %s has %d characters", o, key, len(value))
			}
		}
	}
}
