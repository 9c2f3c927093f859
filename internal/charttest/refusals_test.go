//go:build chart

package charttest

import (
	"strings"
	"testing"
)

// TestValidation checks that invalid values are rejected before an install, with the
// remedy, by Helm 3 and Helm 4.
func TestValidation(t *testing.T) {
	const minimal, full = "minimal", "full"
	for name, c := range map[string]struct {
		scenario string
		set      []string
		want     []string
	}{
		"nothing set": {"", nil, []string{
			"image.repository is required. Build the image with `make image`", "keysetRef.name is required. Create a keyset", "redis.urlRef.name is required",
			"zoom.clientId is required", "zoom.clientSecretRef.name is required", "recall.oauthAppId is required", "recall.apiKeyRef.name is required",
			"recall.verificationSecretsRef.name is required", "callback.baseUrl is required", "grpc.tls.secretName is required",
		}},
		"a typo":                         {minimal, []string{"tokenServer.replica=3"}, []string{"tokenServer", "replica"}},
		"a typo at the top":              {minimal, []string{"redsi.url=x"}, []string{"redsi"}},
		"a typo in a Ref":                {minimal, []string{"keysetRef.secret=x"}, []string{"keysetRef", "secret"}},
		"a secret as a value":            {minimal, []string{"zoom.clientSecret=hunter2"}, []string{"zoom", "clientSecret"}},
		"a text for a number":            {minimal, []string{"redis.waitReplicas=many"}, []string{"waitReplicas"}},
		"unknown log level":              {minimal, []string{"log.level=loud"}, []string{"level"}},
		"not a duration":                 {minimal, []string{"refresh.before=5"}, []string{"before"}},
		"a port out of range":            {minimal, []string{"tokenServer.service.port=80800"}, []string{"port"}},
		"not a uuid":                     {minimal, []string{"recall.oauthAppId=mine"}, []string{"oauthAppId"}},
		"a URL without scheme":           {minimal, []string{"callback.baseUrl=tokens.example.com"}, []string{"baseUrl"}},
		"no secret":                      {minimal, []string{"zoom.clientSecretRef.name="}, []string{"zoom.clientSecretRef.name is required. Store the Zoom app's client secret in a Secret"}},
		"two Redis servers":              {minimal, []string{"redis.url=redis://redis:6379/0"}, []string{"redis.url is mutually exclusive with redis.urlRef"}},
		"a password in clear":            {minimal, []string{"redis.urlRef.name=", "redis.url=redis://u:hunter2@redis:6379/0"}, []string{"redis.url must not contain a user or password"}},
		"Secret and file":                {minimal, []string{"keysetRef.file=/vault/keyset"}, []string{"keysetRef.name is mutually exclusive with keysetRef.file"}},
		"one app and several":            {minimal, []string{"zoom.appsRef.name=apps"}, []string{"zoom.appsRef is mutually exclusive with the settings of a single app. Remove zoom.clientId"}},
		"plaintext and TLS":              {minimal, []string{"grpc.insecure=true"}, []string{"grpc.insecure is mutually exclusive with grpc.tls and grpc.clientCaRef"}},
		"a policy in plaintext":          {minimal, []string{"grpc.insecure=true", "grpc.tls.secretName=", "grpc.policy=x"}, []string{"grpc.policy is mutually exclusive with grpc.insecure"}},
		"no TLS":                         {minimal, []string{"grpc.tls.secretName="}, []string{"grpc.tls.secretName is required"}},
		"no issuer":                      {minimal, []string{"grpc.tls.certificate.enabled=true"}, []string{"issuerRef.name is required"}},
		"two routes":                     {full, []string{"tokenServer.httpRoute.enabled=true", "tokenServer.httpRoute.parentRefs[0].name=g"}, []string{"tokenServer.ingress is mutually exclusive with tokenServer.httpRoute"}},
		"no gateway":                     {minimal, []string{"tokenServer.httpRoute.enabled=true", "networkPolicy.enabled=false"}, []string{"parentRefs is required. Set the Gateway"}},
		"an unreachable ingress":         {minimal, []string{"tokenServer.ingress.enabled=true"}, []string{"networkPolicy.callback.from is required"}},
		"scraped twice":                  {full, []string{"monitoring.serviceMonitor.enabled=true"}, []string{"monitoring.podMonitor is mutually exclusive with monitoring.serviceMonitor"}},
		"minimum above maximum":          {full, []string{"tokenServer.autoscaling.maxReplicas=1"}, []string{"minReplicas must not exceed maxReplicas"}},
		"autoscaling without a metric":   {full, []string{"tokenServer.autoscaling.targetCPUUtilizationPercentage=0"}, []string{"tokenServer.autoscaling.metrics is required"}},
		"a cache too large":              {minimal, []string{"cache.size=1000000"}, []string{"cache.size: 1000000 credentials take about 2049 MiB, and tokenServer.resources.limits.memory is less"}},
		"headless and balanced":          {full, []string{"registrar.service.type=LoadBalancer"}, []string{"registrar.service.headless must be false"}},
		"Redis without a password":       {"embedded-redis", []string{"redis.embedded.passwordRef.name="}, []string{"redis.embedded.passwordRef.name is required"}},
		"Redis twice":                    {"embedded-redis", []string{"redis.url=redis://redis:6379/0"}, []string{"redis.url must be empty with redis.embedded.enabled"}},
		"replicas of the embedded Redis": {"embedded-redis", []string{"redis.waitReplicas=1"}, []string{"redis.waitReplicas must be 0 with redis.embedded.enabled"}},
		"set twice":                      {minimal, []string{"tokenServer.extraEnv[0].name=LOG_LEVEL", "tokenServer.extraEnv[0].value=debug"}, []string{"tokenServer.extraEnv must not contain LOG_LEVEL, which the chart sets"}},
		"a secret in extraEnv":           {minimal, []string{"registrar.extraEnv[0].name=RECALL_API_KEY", "registrar.extraEnv[0].value=hunter2"}, []string{"registrar.extraEnv must not contain RECALL_API_KEY, because a secret"}},
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
					t.Fatalf("%s: accepted", helm)
				}
				for _, want := range c.want {
					if !strings.Contains(stderr, want) {
						t.Errorf("%s does not report %q:\n%s", helm, want, stderr)
					}
				}
				if strings.Contains(stderr, "hunter2") {
					t.Errorf("%s prints a secret:\n%s", helm, stderr)
				}
			}
		})
	}
}
