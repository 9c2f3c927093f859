//go:build chart

package charttest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const chart = "../../charts/token-provider"

var (
	update = flag.Bool("update", false, "update the golden summaries")
	bin    string // directory of the product's programs
	tools  = os.Getenv("CHART_TOOLS")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		if tools == "" {
			fmt.Fprintln(os.Stderr, "CHART_TOOLS is not set; run make chart-test")
			return 1
		}
		dir, err := os.MkdirTemp("", "charttest-")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		bin = dir
		for _, variable := range []string{"HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"} {
			_ = os.Setenv(variable, filepath.Join(dir, variable))
		}
		build := exec.Command("go", "build", "-o", dir+"/", "tokenprovider/cmd/...")
		if output, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the programs: %v\n%s", err, output)
			return 1
		}
		defer stopCluster()
		return m.Run()
	}())
}

// tool runs one of the tools and returns its output.
func tool(t *testing.T, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return command(t, nil, filepath.Join(tools, name), args...)
}

func command(t *testing.T, stdin io.Reader, path string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, fault bytes.Buffer
	c := exec.CommandContext(t.Context(), path, args...)
	c.Stdin, c.Stdout, c.Stderr = stdin, &out, &fault
	err = c.Run()
	return out.String(), fault.String(), err
}

// must fails the test if the tool fails, and returns its output.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	stdout, stderr, err := tool(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// scenarios returns the paths of the values files in ci/, by name.
func scenarios(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(chart + "/ci/*-values.yaml")
	if err != nil || len(paths) < 6 {
		t.Fatalf("%d scenarios, %v", len(paths), err)
	}
	all := map[string]string{}
	for _, path := range paths {
		all[strings.TrimSuffix(filepath.Base(path), "-values.yaml")] = path
	}
	return all
}

func scenario(name string) string { return chart + "/ci/" + name + "-values.yaml" }

const (
	release   = "rel"
	namespace = "tokens"
)

// render returns the rendered objects.
func render(t *testing.T, args ...string) []object {
	t.Helper()
	return parse(t, must(t, "helm4", append([]string{"template", release, chart, "--namespace", namespace}, args...)...))
}

// object is the tested part of a Kubernetes object.
type object struct {
	Kind       string
	APIVersion string
	Metadata   struct {
		Name, Namespace     string
		Labels, Annotations map[string]string
	}
	Spec struct {
		Replicas *int
		Selector json.RawMessage
		Template struct {
			Metadata struct{ Labels, Annotations map[string]string }
			Spec     podSpec
		}
		ServiceName    string
		PodSelector    selector
		PolicyTypes    []string
		Ingress        []rule
		Egress         []rule
		ScaleTargetRef struct{ Kind, Name string }
		Ports          []struct {
			Name       string
			Port       int
			TargetPort any
		}
		ClusterIP                            string
		VolumeClaimTemplates                 []struct{ Metadata struct{ Name string } }
		PersistentVolumeClaimRetentionPolicy map[string]string
		Rules                                []json.RawMessage
		Hostnames                            []string
	}
	Data                         map[string]string
	AutomountServiceAccountToken *bool

	whole map[string]any
}

type rule struct {
	From, To []struct {
		PodSelector, NamespaceSelector *selector
		IPBlock                        *struct {
			CIDR   string
			Except []string
		}
	}
	Ports []struct {
		Port     any
		Protocol string
	}
}

type selector struct{ MatchLabels map[string]string }

type podSpec struct {
	ServiceAccountName            string
	AutomountServiceAccountToken  *bool
	EnableServiceLinks            *bool
	HostNetwork, HostPID, HostIPC bool
	TerminationGracePeriodSeconds int
	SecurityContext               securityContext
	Containers, InitContainers    []container
	Volumes                       []volume
	TopologySpreadConstraints     []struct{ LabelSelector selector }
}

type securityContext struct {
	RunAsNonRoot             *bool
	RunAsUser, FSGroup       *int
	AllowPrivilegeEscalation *bool
	Privileged               *bool
	ReadOnlyRootFilesystem   *bool
	Capabilities             struct{ Add, Drop []string }
	SeccompProfile           struct{ Type string }
}

type container struct {
	Name, Image     string
	Command, Args   []string
	Env             []envVar
	EnvFrom         []any
	Ports           []struct{ Name string }
	Resources       struct{ Requests, Limits map[string]string }
	SecurityContext securityContext
	VolumeMounts    []struct {
		Name, MountPath, SubPath string
		ReadOnly                 bool
	}
	StartupProbe, LivenessProbe, ReadinessProbe *probe
	Lifecycle                                   struct {
		PreStop struct{ Sleep struct{ Seconds int } }
	}
}

type envVar struct {
	Name, Value string
	ValueFrom   any
}

type probe struct {
	HTTPGet                         *struct{ Path, Port string }
	GRPC                            *struct{ Port int }
	Exec                            *struct{ Command []string }
	PeriodSeconds, FailureThreshold int
}

type volume struct {
	Name      string
	EmptyDir  *struct{ Medium, SizeLimit string }
	ConfigMap *struct{ Name string }
	Secret    *secretSource
	Projected *struct {
		DefaultMode int
		Sources     []struct{ Secret *secretSource }
	}
	CSI *struct{ Driver string }
}

type secretSource struct {
	Name, SecretName string
	DefaultMode      int
	Items            []struct{ Key, Path string }
}

// parse reads a stream of YAML documents.
func parse(t *testing.T, text string) []object {
	t.Helper()
	var all []object
	for documents := yaml.NewDecoder(strings.NewReader(text)); ; {
		var whole map[string]any
		err := documents.Decode(&whole)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("reading YAML: %v", err)
		}
		if len(whole) == 0 {
			continue
		}
		asJSON, err := json.Marshal(whole)
		if err != nil {
			t.Fatal(err)
		}
		o := object{whole: whole}
		_ = json.Unmarshal(asJSON, &o) // kinds differ in some fields; read those that match
		if o.Kind == "Pod" {
			var pod struct{ Spec podSpec }
			if err := json.Unmarshal(asJSON, &pod); err != nil {
				t.Fatal(err)
			}
			o.Spec.Template.Spec, o.Spec.Template.Metadata.Labels = pod.Spec, o.Metadata.Labels
		}
		all = append(all, o)
	}
}

// isWorkload reports whether an object creates pods.
func (o object) isWorkload() bool {
	return slices.Contains([]string{"Deployment", "StatefulSet", "Pod"}, o.Kind)
}

func (o object) pod() podSpec { return o.Spec.Template.Spec }

func (o object) String() string { return o.Kind + " " + o.Metadata.Name }

// find returns the object of a kind whose name has the suffix.
func find(t *testing.T, objects []object, kind, suffix string) object {
	t.Helper()
	for _, o := range objects {
		if o.Kind == kind && strings.HasSuffix(o.Metadata.Name, suffix) {
			return o
		}
	}
	t.Fatalf("no %s …%s", kind, suffix)
	return object{}
}

// env returns the environment of a workload's only container.
func (o object) env() map[string]string {
	all := map[string]string{}
	for _, v := range o.pod().Containers[0].Env {
		all[v.Name] = v.Value
	}
	return all
}

func (s selector) matches(labels map[string]string) bool {
	for key, value := range s.MatchLabels {
		if labels[key] != value {
			return false
		}
	}
	return len(s.MatchLabels) > 0
}
