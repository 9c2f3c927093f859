package registrar_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/reload"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
	"tokenprovider/registrar"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue makes a certificate with these names, and its key, in PEM.
func (a *authority) issue(names ...string) (cert, key []byte) {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if uri, err := url.Parse(name); err == nil && uri.Scheme != "" {
			template.URIs = append(template.URIs, uri)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	private := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// secured is a registrar behind mutual TLS.
type secured struct {
	*world
	authority    *authority
	folder       string
	certificates *reload.Value[*registrar.Certificates]
	policy       *reload.Value[*registrar.Policy]
	options      replicaOptions
	audits       *observer.ObservedLogs
}

func (s *secured) write(name string, content []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.folder, name), content, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func secure(t *testing.T, policy string) *secured {
	t.Helper()
	s := &secured{world: surroundings(t), authority: newAuthority(t), folder: t.TempDir()}
	cert, key := s.authority.issue("registrar.internal")
	s.write("cert", cert)
	s.write("key", key)
	s.write("ca", s.authority.pem())
	path := func(name string) string { return filepath.Join(s.folder, name) }
	var err error
	s.certificates, err = reload.New(func(read reload.Read) (*registrar.Certificates, error) {
		return registrar.ReadCertificates(path("cert"), path("key"), path("ca"), read)
	})
	if err != nil {
		t.Fatal(err)
	}
	access := &registrar.Access{}
	if policy != "" {
		s.write("policy", []byte(policy))
		s.policy, err = reload.New(func(read reload.Read) (*registrar.Policy, error) {
			content, err := read(path("policy"))
			if err != nil {
				return nil, err
			}
			return registrar.ReadPolicy(content)
		})
		if err != nil {
			t.Fatal(err)
		}
		access.Policy = s.policy
	}
	core, audits := observer.New(zap.InfoLevel)
	s.audits = audits
	s.options = replicaOptions{
		access: access, server: []grpc.ServerOption{grpc.Creds(registrar.MutualTLS(s.certificates))}, audit: zap.New(core).Named("audit"),
	}
	s.replica = s.join(s.options)
	return s
}

// as returns a client with a certificate of these names; of none if there are none
// and bare is set.
func (s *secured) as(from *authority, names ...string) registrarv1.RegistrarServiceClient {
	s.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(s.authority.cert)
	config := &tls.Config{RootCAs: roots, ServerName: "registrar.internal", MinVersion: tls.VersionTLS12}
	if from != nil {
		cert, key := from.issue(names...)
		own, err := tls.X509KeyPair(cert, key)
		if err != nil {
			s.t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{own}
	}
	return s.dial(credentials.NewTLS(config))
}

func get(t *testing.T, c registrarv1.RegistrarServiceClient) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := c.GetUser(ctx, &registrarv1.GetUserRequest{UserId: "ann"})
	return err
}

func TestNobodyCallsWithoutACertificate(t *testing.T) {
	s := secure(t, "")
	for name, client := range map[string]registrarv1.RegistrarServiceClient{
		"plaintext":              s.dial(insecure.NewCredentials()),
		"no certificate":         s.as(nil),
		"another authority's":    s.as(newAuthority(t), "spiffe://example.org/bots"),
		"no certificate, at all": s.RegistrarServiceClient,
	} {
		if err := get(t, client); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v, want no connection", name, err)
		}
	}
	err := get(t, s.as(s.authority))
	wantFailure(t, err, codes.Unauthenticated)
	if err := get(t, s.as(s.authority, "bots.internal")); status.Code(err) != codes.NotFound {
		t.Errorf("with a certificate: %v", err)
	}
}

// allCalls makes every call of the service.
func allCalls(ctx context.Context, c registrarv1.RegistrarServiceClient) map[string]error {
	errs := map[string]error{}
	_, errs["RegisterUser"] = c.RegisterUser(ctx, byCode("ann", "nonsense"))
	_, errs["GetUser"] = c.GetUser(ctx, &registrarv1.GetUserRequest{UserId: "ann"})
	_, errs["ListUsers"] = c.ListUsers(ctx, &registrarv1.ListUsersRequest{})
	_, errs["DeregisterUser"] = c.DeregisterUser(ctx, &registrarv1.DeregisterUserRequest{UserId: "ann"})
	_, errs["GetAccessToken"] = c.GetAccessToken(ctx, &registrarv1.GetAccessTokenRequest{UserId: "ann"})
	_, errs["RotateCallbackSecret"] = c.RotateCallbackSecret(ctx, &registrarv1.RotateCallbackSecretRequest{UserId: "ann"})
	stream, err := c.WatchUsers(ctx, &registrarv1.WatchUsersRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	errs["WatchUsers"] = err
	return errs
}

func wantAllowed(t *testing.T, c registrarv1.RegistrarServiceClient, allowed ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	may := map[string]bool{}
	for _, method := range allowed {
		may[method] = true
	}
	for method, err := range allCalls(ctx, c) {
		if denied := status.Code(err) == codes.PermissionDenied; denied == may[method] {
			t.Errorf("%s: %v, want it allowed: %v", method, err, may[method])
		}
	}
}

func TestWithoutAPolicyTokensAreNotForAnybody(t *testing.T) {
	s := secure(t, "")
	wantAllowed(t, s.as(s.authority, "spiffe://example.org/ns/bots/sa/api"),
		"RegisterUser", "GetUser", "ListUsers", "DeregisterUser", "RotateCallbackSecret", "WatchUsers")
}

const policy = `
clients:
  - name: bots
    identities: ["spiffe://example.org/ns/bots/sa/*"]
    may: [register, GetUser]
  - name: meetings
    identities: ["dns:meetings.internal", "spiffe://example.org/meetings"]
    may: [tokens]
    rate: 1
    burst: 2
`

func TestPolicy(t *testing.T) {
	s := secure(t, policy)
	wantAllowed(t, s.as(s.authority, "spiffe://example.org/ns/bots/sa/api"), "RegisterUser", "DeregisterUser", "RotateCallbackSecret", "GetUser")
	wantAllowed(t, s.as(s.authority, "meetings.internal"), "GetAccessToken")
	for _, stranger := range []string{"spiffe://example.org/ns/bots/sa/api/x", "spiffe://example.com/ns/bots/sa/api", "api.meetings.internal"} {
		wantAllowed(t, s.as(s.authority, stranger))
	}
	denied := s.audits.FilterField(zap.String("action", "denied"))
	if denied.Len() < 10 || denied.FilterField(zap.String("client", "bots")).Len() == 0 || denied.FilterField(zap.String("user_id", "ann")).Len() == 0 {
		t.Errorf("%d denied calls are in the audit log", denied.Len())
	}

	// The policy changes; the connection stays.
	client := s.as(s.authority, "spiffe://example.org/ns/bots/sa/api")
	wantFailure(t, func() error { _, err := client.ListUsers(t.Context(), &registrarv1.ListUsersRequest{}); return err }(), codes.PermissionDenied)
	s.write("policy", []byte(strings.Replace(policy, "GetUser", "read", 1)))
	if changed, err := s.policy.Check(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if _, err := client.ListUsers(t.Context(), &registrarv1.ListUsersRequest{}); err != nil {
		t.Errorf("after the policy was changed: %v", err)
	}
}

func TestClientOverItsLimit(t *testing.T) {
	s := secure(t, policy)
	client := s.as(s.authority, "meetings.internal")
	ask := func() error {
		_, err := client.GetAccessToken(t.Context(), &registrarv1.GetAccessTokenRequest{UserId: "unknown"})
		return err
	}
	for range 2 {
		wantFailure(t, ask(), codes.NotFound)
	}
	f := wantFailure(t, ask(), codes.ResourceExhausted)
	if f.retryIn <= 0 || f.retryIn > time.Second {
		t.Errorf("retry in %v, want less than a second", f.retryIn)
	}
	wantFailure(t, get(t, s.as(s.authority, "spiffe://example.org/ns/bots/sa/api")), codes.NotFound) // the others are not
	time.Sleep(f.retryIn)
	wantFailure(t, ask(), codes.NotFound)
}

func TestPolicyFaultsAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"clients: [{identities: [dns:a], may: [read]}]":                               "name: is required",
		"clients: [{name: a, may: [read]}]":                                           "identities: is required",
		"clients: [{name: a, identities: [bots], may: [read]}]":                       `"bots" must be a URI`,
		"clients: [{name: a, identities: ['spiffe://x/[']}]":                          "must be a URI",
		"clients: [{name: a, identities: [dns:a], may: [everything]}]":                `"everything" must be a group`,
		"clients: [{name: a, identities: [dns:a], rate: -1}]":                         "must not be less than 0",
		"clients: [{name: a, identities: [dns:a]}, {name: a, identities: ['dns:b']}]": "must be unique",
		"clients: [{nam: a}]": "field nam not found",
	} {
		if _, err := registrar.ReadPolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestCertificatesAreReadAgain(t *testing.T) {
	s := secure(t, "")
	old := s.authority
	client := s.as(old, "bots.internal")
	wantFailure(t, get(t, client), codes.NotFound)

	next := newAuthority(t)
	cert, key := next.issue("registrar.internal")
	s.write("cert", cert)
	if changed, err := s.certificates.Check(); changed || err == nil {
		t.Errorf("a certificate without its key: %v, %v", changed, err)
	}
	wantFailure(t, get(t, s.as(old, "bots.internal")), codes.NotFound) // the old ones stay in force
	s.write("key", key)
	s.write("ca", next.pem())
	if changed, err := s.certificates.Check(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	wantFailure(t, get(t, client), codes.NotFound) // open connections stay
	s.authority = next
	wantFailure(t, get(t, s.as(next, "bots.internal")), codes.NotFound)
	if err := get(t, s.as(old, "bots.internal")); status.Code(err) != codes.Unavailable {
		t.Errorf("the old authority's client: %v", err)
	}
}

func TestAudit(t *testing.T) {
	s := secure(t, `clients: [{name: meetings, identities: ["dns:meetings.internal"], may: [register, tokens]}]`)
	client := s.as(s.authority, "meetings.internal")
	code := s.code("zoom-ann")
	calls := []struct {
		action, outcome string
		call            func() error
	}{
		{"register", "OK", func() error { _, err := client.RegisterUser(t.Context(), byCode("ann", code)); return err }},
		{"register", "InvalidArgument", func() error { _, err := client.RegisterUser(t.Context(), byCode("bob", "nonsense")); return err }},
		{"rotate_callback_secret", "OK", func() error {
			_, err := client.RotateCallbackSecret(t.Context(), &registrarv1.RotateCallbackSecretRequest{UserId: "ann"})
			return err
		}},
		{"get_access_token", "OK", func() error {
			_, err := client.GetAccessToken(t.Context(), &registrarv1.GetAccessTokenRequest{UserId: "ann"})
			return err
		}},
		{"get_access_token", "NotFound", func() error {
			_, err := client.GetAccessToken(t.Context(), &registrarv1.GetAccessTokenRequest{UserId: "bob"})
			return err
		}},
		{"deregister", "OK", func() error {
			_, err := client.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann"})
			return err
		}},
		{"denied", "PermissionDenied", func() error { return get(t, client) }},
	}
	for _, c := range calls {
		if err := c.call(); status.Code(err).String() != c.outcome {
			t.Errorf("%s: %v, want %s", c.action, err, c.outcome)
		}
	}
	lines := s.audits.All()
	if len(lines) != len(calls) {
		t.Fatalf("%d audit lines, want %d", len(lines), len(calls))
	}
	for i, line := range lines {
		fields := line.ContextMap()
		if line.LoggerName != "audit" || fields["action"] != calls[i].action || fields["outcome"] != calls[i].outcome || fields["client"] != "meetings" || fields["user_id"] == "" {
			t.Errorf("line %d: %s %v, want %s, %s", i, line.LoggerName, fields, calls[i].action, calls[i].outcome)
		}
		for _, value := range fields {
			if text, ok := value.(string); ok && (strings.Contains(text, "eyJ") || strings.Contains(text, code) || strings.Contains(text, "/callback/")) {
				t.Errorf("line %d holds a secret", i)
			}
		}
	}
	if fields := lines[0].ContextMap(); fields["zoom_user_id"] != "zoom-ann" || fields["recall_credential_id"] == "" || fields["state"] != "active" {
		t.Errorf("the registration's line: %v", fields)
	}
}
