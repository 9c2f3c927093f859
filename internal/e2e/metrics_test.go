package e2e_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"

	"tokenprovider/internal/zoomtest"
)

// metric is a metric in docs/metrics.md or in a scrape.
type metric struct {
	kind   string
	labels []string
}

// readDocumented returns the metrics in docs/metrics.md, by program and name.
func readDocumented(t *testing.T) map[string]map[string]metric {
	t.Helper()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]metric{"token server": {}, "registrar": {}}
	row := regexp.MustCompile("(?m)^\\| `(tokenprovider_[a-z_]+)` \\| ([a-z]+)\\*? \\|([^|]*)\\| ([a-z ]+) \\| (.+) \\|$")
	label := regexp.MustCompile("`([a-z_]+)`")
	for _, match := range row.FindAllStringSubmatch(string(text), -1) {
		m := metric{kind: match[2]}
		for _, l := range label.FindAllStringSubmatch(match[3], -1) {
			m.labels = append(m.labels, l[1])
		}
		slices.Sort(m.labels)
		programs := []string{match[4]}
		if match[4] == "both" {
			programs = []string{"token server", "registrar"}
		}
		for _, program := range programs {
			if all[program] == nil {
				t.Fatalf("%s is exported by %q", match[1], program)
			}
			if _, twice := all[program][match[1]]; twice {
				t.Errorf("%s is documented twice", match[1])
			}
			all[program][match[1]] = m
		}
	}
	if lines := strings.Count(string(text), "\n| `tokenprovider_"); lines < 40 || lines != len(row.FindAllString(string(text), -1)) {
		t.Fatalf("docs/metrics.md has %d rows of metrics; must be at least 40, all in the expected format", lines)
	}
	return all
}

// parseScrape returns the metrics in a scrape, by name.
func parseScrape(text string) map[string]metric {
	all := map[string]metric{}
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (tokenprovider_[a-z_]+) ([a-z]+)$`).FindAllStringSubmatch(text, -1) {
		all[match[1]] = metric{kind: match[2]}
	}
	label := regexp.MustCompile(`([a-z_]+)="`)
	for _, match := range regexp.MustCompile(`(?m)^(tokenprovider_[a-z_]+)(?:\{(.*)\})? \S+$`).FindAllStringSubmatch(text, -1) {
		name := match[1]
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, part); all[base].kind == "histogram" {
				name = base
			}
		}
		m := all[name]
		for _, l := range label.FindAllStringSubmatch(match[2], -1) {
			if l[1] != "le" && !slices.Contains(m.labels, l[1]) {
				m.labels = append(m.labels, l[1])
			}
		}
		slices.Sort(m.labels)
		all[name] = m
	}
	return all
}

// TestMetricsAreDocumented compares docs/metrics.md with the metrics of both programs,
// after a user was registered, renewed and served. Each must have those of the other.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	const redirect = "https://app.example/oauth"
	s := newStack(t, 150*time.Second)
	s.env = append(s.env, "RECONCILE_INTERVAL=1s")
	_, base, tokenOps := s.tokenServer()
	plain, client, _ := s.registrar(base)
	f := files{t, t.TempDir()}
	f.writeCertificates(time.Now().Add(time.Hour))
	secure := launch(t, "registrar", append(slices.Clone(s.env), "GRPC_ADDR=127.0.0.1:0", "CALLBACK_BASE_URL="+base,
		"GRPC_TLS_CERT_FILE="+f.path("tls.crt"), "GRPC_TLS_KEY_FILE="+f.path("tls.key"), "GRPC_CLIENT_CA_FILE="+f.path("ca.crt")))
	if _, err := client.RegisterUser(t.Context(), &registrarv1.RegisterUserRequest{
		UserId: "ann", Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{AuthorizationCode: &registrarv1.AuthorizationCode{
			Code: s.zoom.Consent(zoomtest.DefaultClientID, "zoom-ann", redirect, ""), RedirectUri: redirect,
		}},
	}); err != nil {
		t.Fatal(err)
	}
	s.callBack(s.recall.Credentials()[0].ID)
	waitUntil(t, "the token is renewed", 60*time.Second, func() bool { return s.zoom.Counts().Refreshes >= 1 })
	plainOps, secureOps := "http://"+plain.await(`"ops":"([^"]+)"`), "http://"+secure.await(`"ops":"([^"]+)"`)
	texts := func() map[string]string {
		_, token := get(t, tokenOps+"/metrics")
		_, one := get(t, plainOps+"/metrics")
		_, two := get(t, secureOps+"/metrics")
		return map[string]string{"token server": token, "registrar": one + two}
	}
	waitUntil(t, "a reconciliation is complete", 30*time.Second, func() bool {
		return strings.Contains(texts()["registrar"], "\ntokenprovider_reconciliation_last_success_timestamp_seconds ")
	})
	exported := texts()
	for program, want := range readDocumented(t) {
		found := parseScrape(exported[program])
		for name, m := range want {
			got, ok := found[name]
			switch {
			case !ok:
				t.Errorf("docs/metrics.md documents %s, which the %s does not export", name, program)
			case got.kind != m.kind:
				t.Errorf("%s is a %s, want a %s", name, got.kind, m.kind)
			case !slices.Equal(got.labels, m.labels):
				t.Errorf("%s of the %s has the labels %v, want %v", name, program, got.labels, m.labels)
			}
		}
		for name := range found {
			if _, ok := want[name]; !ok {
				t.Errorf("the %s exports %s, which docs/metrics.md does not document", program, name)
			}
		}
		for _, secret := range []string{"zoom-ann", "/callback/", "eyJ", verification, "recall-key"} {
			if strings.Contains(exported[program], secret) {
				t.Errorf("the %s exports %q", program, secret)
			}
		}
	}
}
