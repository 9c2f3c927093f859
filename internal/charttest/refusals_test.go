//go:build chart

package charttest

import (
	"strings"
	"testing"
)

// TestRefusals: what cannot be right is refused before anything is installed, in
// a line that says what to do, by both Helms alike.
func TestRefusals(t *testing.T) {
	const minimal, full = "minimal", "full"
	for name, c := range map[string]struct {
		scenario string
		set      []string
		want     []string
	}{
		"nothing set": {"", nil, []string{
			"image.repository: not set. Build the image with `make image`", "keysetRef.name: not set. Make a keyset", "redis.urlRef.name: not set",
			"zoom.clientId: not set", "zoom.clientSecretRef.name: not set", "recall.oauthAppId: not set", "recall.apiKeyRef.name: not set",
			"recall.verificationSecretsRef.name: not set", "callback.baseUrl: not set", "grpc.tls.secretName: not set",
		}},
		"a typo":                   {minimal, []string{"tokenServer.replica=3"}, []string{"tokenServer", "replica"}},
		"a typo at the top":        {minimal, []string{"redsi.url=x"}, []string{"redsi"}},
		"a typo in a Ref":          {minimal, []string{"keysetRef.secret=x"}, []string{"keysetRef", "secret"}},
		"a secret as a value":      {minimal, []string{"zoom.clientSecret=hunter2"}, []string{"zoom", "clientSecret"}},
		"a number for a name":      {minimal, []string{"redis.waitReplicas=many"}, []string{"waitReplicas"}},
		"no such log level":        {minimal, []string{"log.level=loud"}, []string{"level"}},
		"not a duration":           {minimal, []string{"refresh.before=5"}, []string{"before"}},
		"a port out of range":      {minimal, []string{"tokenServer.service.port=80800"}, []string{"port"}},
		"not a uuid":               {minimal, []string{"recall.oauthAppId=mine"}, []string{"oauthAppId"}},
		"a URL without scheme":     {minimal, []string{"callback.baseUrl=tokens.example.com"}, []string{"baseUrl"}},
		"no secret":                {minimal, []string{"zoom.clientSecretRef.name="}, []string{"zoom.clientSecretRef.name: not set. Put the Zoom app's client secret into a Secret"}},
		"two Redises":              {minimal, []string{"redis.url=redis://redis:6379/0"}, []string{"redis.url and redis.urlRef: both set. Keep one"}},
		"a password in clear":      {minimal, []string{"redis.urlRef.name=", "redis.url=redis://u:hunter2@redis:6379/0"}, []string{"redis.url: has a user or password in it"}},
		"Secret and file":          {minimal, []string{"keysetRef.file=/vault/keyset"}, []string{"keysetRef: set name or file, not both"}},
		"one app and several":      {minimal, []string{"zoom.appsRef.name=apps"}, []string{"zoom.appsRef: set, and settings of a single app too. Remove zoom.clientId"}},
		"plaintext and TLS":        {minimal, []string{"grpc.insecure=true"}, []string{"grpc.insecure: true, and grpc.tls is set too. Keep one"}},
		"a policy in plaintext":    {minimal, []string{"grpc.insecure=true", "grpc.tls.secretName=", "grpc.policy=x"}, []string{"grpc.policy: set, but with grpc.insecure nobody knows who calls"}},
		"no TLS":                   {minimal, []string{"grpc.tls.secretName="}, []string{"grpc.tls.secretName: not set"}},
		"no issuer":                {minimal, []string{"grpc.tls.certificate.enabled=true"}, []string{"issuerRef.name: not set"}},
		"two ways in":              {full, []string{"tokenServer.httpRoute.enabled=true", "tokenServer.httpRoute.parentRefs[0].name=g"}, []string{"tokenServer.ingress and tokenServer.httpRoute: both enabled. Keep one"}},
		"no gateway":               {minimal, []string{"tokenServer.httpRoute.enabled=true", "networkPolicy.enabled=false"}, []string{"parentRefs: empty. Name the Gateway"}},
		"an ingress shut out":      {minimal, []string{"tokenServer.ingress.enabled=true"}, []string{"networkPolicy.callback.from: empty"}},
		"scraped twice":            {full, []string{"monitoring.serviceMonitor.enabled=true"}, []string{"monitoring.podMonitor and monitoring.serviceMonitor: both enabled"}},
		"more than most":           {full, []string{"tokenServer.autoscaling.maxReplicas=1"}, []string{"minReplicas is more than maxReplicas"}},
		"nothing to scale by":      {full, []string{"tokenServer.autoscaling.targetCPUUtilizationPercentage=0"}, []string{"nothing to scale by"}},
		"a cache too large":        {minimal, []string{"cache.size=1000000"}, []string{"cache.size: 1000000 credentials take about 2049 MiB, and tokenServer.resources.limits.memory is less"}},
		"headless and balanced":    {full, []string{"registrar.service.type=LoadBalancer"}, []string{"registrar.service.headless: true"}},
		"Redis without a password": {"embedded-redis", []string{"redis.embedded.passwordRef.name="}, []string{"redis.embedded.passwordRef.name: not set"}},
		"Redis twice":              {"embedded-redis", []string{"redis.url=redis://redis:6379/0"}, []string{"redis.url: set, but the embedded Redis has a password"}},
		"replicas that are not":    {"embedded-redis", []string{"redis.waitReplicas=1"}, []string{"redis.waitReplicas: the embedded Redis has no replicas"}},
		"set twice":                {minimal, []string{"tokenServer.extraEnv[0].name=LOG_LEVEL", "tokenServer.extraEnv[0].value=debug"}, []string{"tokenServer.extraEnv: LOG_LEVEL is set by the chart"}},
		"a secret in extraEnv":     {minimal, []string{"registrar.extraEnv[0].name=RECALL_API_KEY", "registrar.extraEnv[0].value=hunter2"}, []string{"registrar.extraEnv: RECALL_API_KEY is a secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, helm := range []string{"helm3", "helm4"} {
				args := []string{"template", release, chart}
				if c.scenario != "" {
					args = append(args, "--values", scenario(c.scenario))
				}
				for _, value := range c.set {
					args = append(args, "--set", value)
				}
				_, stderr, err := tool(t, helm, args...)
				if err == nil {
					t.Fatalf("%s: not refused", helm)
				}
				for _, want := range c.want {
					if !strings.Contains(stderr, want) {
						t.Errorf("%s does not say %q:\n%s", helm, want, stderr)
					}
				}
				if strings.Contains(stderr, "hunter2") {
					t.Errorf("%s shows a secret:\n%s", helm, stderr)
				}
			}
		})
	}
}
