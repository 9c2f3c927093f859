// Package e2e_test runs the programs as processes against a real redis-server,
// [zoomtest.Zoom] and [recalltest.Recall].
package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

var (
	bin       string // directory of the programs
	raceBuilt = flag.Bool("race-built", true, "build the programs with the race detector")
)

func TestMain(m *testing.M) {
	if kind, ok := os.LookupEnv(baselineEnv); ok {
		serveBaseline(kind)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "tokenprovider-bin-")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		bin = dir
		flag.Parse()
		build := exec.Command("go", "build", "-race="+strconv.FormatBool(*raceBuilt), "-o", dir+"/", "tokenprovider/cmd/...")
		if output, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the programs: %v\n%s", err, output)
			return 1
		}
		return m.Run()
	}())
}

// process is a running program.
type process struct {
	t       testing.TB
	name    string
	command *exec.Cmd
	ended   chan struct{}
	dir     string // of the journal; empty unless a test uses it
	ops     string // address of the ops server; empty unless a test uses it

	mu     sync.Mutex
	output bytes.Buffer
	seen   chan struct{} // closed and replaced with each new line
}

// launch starts a program. It is killed when the test ends, and its output is logged if
// the test has failed.
func launch(t testing.TB, name string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, ended: make(chan struct{}), seen: make(chan struct{})}
	p.command = exec.Command(filepath.Join(bin, name), args...)
	p.command.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	p.command.Dir = t.TempDir()
	reader, writer := io.Pipe()
	p.command.Stdout, p.command.Stderr = writer, writer
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			p.mu.Lock()
			p.output.WriteString(lines.Text() + "\n")
			close(p.seen)
			p.seen = make(chan struct{})
			p.mu.Unlock()
		}
	}()
	go func() {
		_ = p.command.Wait()
		_ = writer.Close()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.command.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("output of %s:\n%s", name, p.log())
		}
	})
	return p
}

// log returns the output so far.
func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// await waits until the output matches a pattern. It returns the last group of the match,
// or the match if there are no groups.
func (p *process) await(pattern string) string {
	p.t.Helper()
	want := regexp.MustCompile(pattern)
	deadline := time.After(30 * time.Second)
	for {
		p.mu.Lock()
		found, seen := want.FindStringSubmatch(p.output.String()), p.seen
		p.mu.Unlock()
		if found != nil {
			return found[len(found)-1]
		}
		select {
		case <-seen:
		case <-p.ended:
			p.t.Fatalf("%s ended before its output matched %q", p.name, pattern)
		case <-deadline:
			p.t.Fatalf("the output of %s does not match %q", p.name, pattern)
		}
	}
}

// wait waits until the process ends and returns its exit status.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("%s did not end", p.name)
	}
	return p.command.ProcessState.ExitCode()
}

// stack has the servers that the programs need, and the programs' environment.
type stack struct {
	t      *testing.T
	redis  *testkit.Redis
	zoom   *zoomtest.Zoom
	recall *recalltest.Recall
	env    []string
}

func newStack(t *testing.T, life time.Duration) *stack {
	t.Helper()
	s := &stack{t: t, redis: testkit.StartRedis(t), zoom: zoomtest.New(zoomtest.Options{AccessTokenLifetime: life})}
	s.recall = recalltest.New(recalltest.Options{
		VerificationSecrets: []string{verification},
		Identify: func(_ context.Context, token string) (string, string, time.Duration, error) {
			user, left, ok := s.zoom.LookUpAccessToken(token)
			if !ok {
				return "", "", 0, errors.New("invalid token")
			}
			return user.ID, user.AccountID, left, nil
		},
	})
	zoomServer, recallServer := httptest.NewServer(s.zoom), httptest.NewServer(s.recall)
	t.Cleanup(zoomServer.Close)
	t.Cleanup(recallServer.Close)
	keyset := filepath.Join(t.TempDir(), "keyset.json")
	if status := launch(t, "tokenctl", nil, "keyset", "create", keyset).wait(); status != 0 {
		t.Fatalf("tokenctl keyset create: exit status %d", status)
	}
	s.env = []string{
		"REDIS_URL=" + s.redis.URL(), "KEYSET_FILE=" + keyset, "OPS_ADDR=127.0.0.1:0",
		"ZOOM_CLIENT_ID=" + zoomtest.DefaultClientID, "ZOOM_CLIENT_SECRET=" + zoomtest.DefaultClientSecret,
		"ZOOM_OAUTH_URL=" + zoomServer.URL, "ZOOM_API_URL=" + zoomServer.URL,
		"RECALL_API_URL=" + recallServer.URL, "RECALL_API_KEY=recall-key", "RECALL_OAUTH_APP_ID=" + recalltest.DefaultOAuthApp,
		"REFRESH_BEFORE=" + (life - time.Second).String(), "DRAIN_DELAY=0s",
	}
	return s
}

const webhookToken = "webhook-secret-token"

const verification = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// tokenServer starts a token server and returns its base URLs.
func (s *stack) tokenServer() (p *process, base, ops string) {
	s.t.Helper()
	p = launch(s.t, "tokenserver", append(s.env, "HTTP_ADDR=127.0.0.1:0", "RECALL_VERIFICATION_SECRETS="+verification,
		"ZOOM_WEBHOOK_SECRET_TOKEN="+webhookToken))
	base = "http://" + p.await(`"http":"([^"]+)"`)
	ops = "http://" + p.await(`"ops":"([^"]+)"`)
	return p, base, ops
}

// registrar starts a registrar with plaintext gRPC and connects a client.
func (s *stack) registrar(base string) (*process, registrarv1.RegistrarServiceClient, *grpc.ClientConn) {
	s.t.Helper()
	p := launch(s.t, "registrar", append(s.env, "GRPC_ADDR=127.0.0.1:0", "GRPC_INSECURE=true", "CALLBACK_BASE_URL="+base))
	connection, err := grpc.NewClient(p.await(`"grpc":"([^"]+)"`), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = connection.Close() })
	return p, registrarv1.NewRegistrarServiceClient(connection), connection
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal("no response") // the error would print the URL
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// waitUntil waits until a condition is true, or fails the test after d. what states the
// condition.
func waitUntil(t testing.TB, what string, d time.Duration, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

// TestUserLifecycle covers users from consent to removal, with one registrar and two
// token servers.
func TestUserLifecycle(t *testing.T) {
	t.Parallel()
	const redirect, users = "https://app.example/oauth", 20
	s := newStack(t, 150*time.Second)
	one, base, opsOne := s.tokenServer()
	two, _, opsTwo := s.tokenServer()
	registrar, client, connection := s.registrar(base)

	health, err := healthpb.NewHealthClient(connection).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("gRPC health: %v, %v", health, err)
	}
	for _, ops := range []string{opsOne, opsTwo} {
		for _, path := range []string{"/healthz", "/readyz"} {
			if status, _ := get(t, ops+path); status != http.StatusOK {
				t.Errorf("%s: status %d, want 200", path, status)
			}
		}
	}

	var secrets []string
	for i := range users {
		user := fmt.Sprint("user-", i)
		code := s.zoom.Consent(zoomtest.DefaultClientID, "zoom-"+user, redirect, "")
		secrets = append(secrets, code)
		registered, err := client.RegisterUser(t.Context(), &registrarv1.RegisterUserRequest{
			UserId: user, Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{
				AuthorizationCode: &registrarv1.AuthorizationCode{Code: code, RedirectUri: redirect},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if state := registered.GetUser().GetState(); state != registrarv1.State_STATE_ACTIVE {
			t.Fatalf("state after registration: %v: %s", state, registered.GetUser().GetReason())
		}
	}
	credentials := s.recall.Credentials()
	tokens := map[string]string{} // credential -> token
	for _, c := range credentials {
		tokens[c.ID] = s.callBack(c.ID)
		secrets = append(secrets, tokens[c.ID], c.AccessTokenCallbackURL[strings.LastIndex(c.AccessTokenCallbackURL, "/")+1:])
		if status, _ := get(t, c.AccessTokenCallbackURL); status != http.StatusUnauthorized {
			t.Fatalf("unsigned callback: status %d, want 401", status)
		}
	}

	// Either replica renews each grant once, and Recall gets the new token.
	waitUntil(t, "every token is renewed", 60*time.Second, func() bool { return s.zoom.Counts().Refreshes >= users })
	waitUntil(t, "every new token is served", 10*time.Second, func() bool {
		for _, c := range credentials {
			if token := s.callBack(c.ID); token == tokens[c.ID] || !s.zoom.IsLive(token) {
				return false
			}
		}
		return true
	})
	if counts := s.zoom.Counts(); counts.SpentPresented+counts.UnknownPresented+counts.SpentCodes+counts.InvalidClient != 0 {
		t.Errorf("invalid requests at Zoom: %+v", counts)
	}
	for _, c := range credentials {
		secrets = append(secrets, s.callBack(c.ID))
	}
	if _, metrics := get(t, opsOne+"/metrics"); !strings.Contains(metrics, `tokenprovider_callbacks_total{outcome="served",protocol="recall"}`) || !strings.Contains(metrics, "tokenprovider_build_info") {
		t.Error("no metric for callbacks, or no build info")
	}

	if _, err := client.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "user-0"}); err != nil {
		t.Fatal(err)
	}
	if left := s.recall.Credentials(); len(left) != users-1 {
		t.Errorf("%d credentials at Recall, want %d", len(left), users-1)
	}
	if status, _ := get(t, credentials[0].AccessTokenCallbackURL); status != http.StatusNotFound {
		t.Errorf("URL of a removed user: status %d, want 404", status)
	}

	// A user who removes the app at Zoom is removed after the response to the webhook.
	removed := s.recall.Credentials()[0]
	if status := s.deauthorize(base, removed.UserID); status != http.StatusNoContent {
		t.Fatalf("Zoom's webhook: status %d, want 204", status)
	}
	if _, status, _ := s.recall.Callback(t.Context(), removed.ID); status != http.StatusNotFound && status != 0 { // 0: the credential is already deleted
		t.Errorf("URL of a user who removed the app: status %d, want 404", status)
	}
	waitUntil(t, "the user's credential is deleted", 60*time.Second, func() bool { return len(s.recall.Credentials()) == users-2 })

	for _, p := range []*process{registrar, one, two} {
		if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := p.wait(); status != 0 {
			t.Errorf("%s: exit status %d after SIGTERM", p.name, status)
		}
		if left, err := filepath.Glob(filepath.Join(p.command.Dir, "journal", "*.journal")); err != nil || len(left) != 0 {
			t.Errorf("%s: %d files in the journal after a clean stop, %v", p.name, len(left), err)
		}
		if strings.Contains(p.log(), "DATA RACE") {
			t.Errorf("%s has a data race", p.name)
		}
	}
	files := string(s.redis.Contents())
	if !strings.Contains(files, "zoom-user-1") {
		t.Fatal("no grants in Redis's files: the search for secrets proves nothing")
	}
	logs := one.log() + two.log() + registrar.log()
	for i, secret := range secrets {
		if strings.Contains(files, secret) || strings.Contains(logs, secret) {
			t.Errorf("secret %d is stored or logged in plaintext", i)
		}
	}
}

// callBack requests a credential's token as Recall does.
func (s *stack) callBack(credential string) string {
	s.t.Helper()
	token, status, err := s.recall.Callback(s.t.Context(), credential)
	if err != nil {
		s.t.Fatalf("callback: status %d", status)
	}
	return token
}

// deauthorize sends Zoom's event that a user removed the app.
func (s *stack) deauthorize(base, zoomUser string) (status int) {
	s.t.Helper()
	body := fmt.Sprintf(`{"event":"app_deauthorized","payload":{"user_id":%q,"account_id":"a","client_id":%q,"deauthorization_time":%q}}`,
		zoomUser, zoomtest.DefaultClientID, time.Now().UTC().Format(time.RFC3339Nano))
	stamp := strconv.FormatInt(time.Now().Unix(), 10)
	mac := hmac.New(sha256.New, []byte(webhookToken))
	mac.Write([]byte("v0:" + stamp + ":" + body))
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, base+"/zoom/events", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("X-Zm-Request-Timestamp", stamp)
	request.Header.Set("X-Zm-Signature", "v0="+hex.EncodeToString(mac.Sum(nil)))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

const invalidApps = `
apps:
  - {name: A, client_id: x}
  - {name: b, client_secret: hunter2}
`

func TestInvalidSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := newStack(t, time.Hour).env
	for name, c := range map[string]struct {
		program string
		env     []string
		args    []string
		want    []string // one for each line
	}{
		"nothing set, token server": {"tokenserver", nil, nil, []string{
			"KEYSET_FILE: is required", "REDIS_URL: is required", "ZOOM_CLIENT_ID: is required", "ZOOM_CLIENT_SECRET: is required",
		}},
		"nothing set, registrar": {"registrar", nil, nil, []string{
			"CALLBACK_BASE_URL: is required", "GRPC_CLIENT_CA_FILE: is required", "GRPC_TLS_CERT_FILE: is required", "GRPC_TLS_KEY_FILE: is required", "KEYSET_FILE: is required", "RECALL_API_KEY: is required",
			"RECALL_OAUTH_APP_ID: is required", "REDIS_URL: is required", "ZOOM_CLIENT_ID: is required", "ZOOM_CLIENT_SECRET: is required",
		}},
		"everything malformed": {"registrar", []string{
			"GRPC_INSECURE=hunter2", "GRPC_TLS_CERT_FILE=" + file("cert", "hunter2"), "GRPC_TLS_KEY_FILE=" + dir + "/missing",
			"GRPC_CLIENT_CA_FILE=" + file("ca", "hunter2"), "GRPC_POLICY_FILE=" + file("policy", "clients: hunter2"),
			"RECALL_RATE_LIMIT=2", "RECONCILE_INTERVAL=1ms", "CALLBACK_OLD_BASE_URLS=https://h,hunter2", "REDIS_URL=hunter2://hunter2", "KEYSET_FILE=" + file("bad", "hunter2"), "LOG_LEVEL=hunter2",
			"LOG_FORMAT=hunter2", "REFRESH_BEFORE=hunter2", "ZOOM_OAUTH_URL=hunter2", "CALLBACK_BASE_URL=https://u:hunter2@h",
			"ZOOM_CLIENT_ID=x", "ZOOM_CLIENT_SECRET=hunter2", "ZOOM_CLIENT_SECRET_FILE=" + file("secret", "hunter2"),
			"RECALL_API_KEY_FILE=" + dir + "/missing", "RECALL_OAUTH_APP_ID=x", "JOURNAL_DIR=", "REDIS_WAIT_REPLICAS=-1", "REFRESH_MAX_IN_FLIGHT=0", "REFRESH_MAX_PER_SECOND=hunter2",
		}, nil, []string{
			"CALLBACK_BASE_URL: must be an absolute URL", "CALLBACK_OLD_BASE_URLS: must be absolute URLs", "GRPC_INSECURE: must be true or false",
			"GRPC_POLICY_FILE: decoding YAML: line 1", "GRPC_TLS_CERT_FILE: ", "JOURNAL_DIR: is required",
			"KEYSET_FILE: not a Tink keyset", "LOG_FORMAT: must be json or console", "LOG_LEVEL: must be debug", "RECALL_API_KEY_FILE: the file cannot be read",
			"RECALL_RATE_LIMIT: must be at least 3", "RECONCILE_INTERVAL: must be at least 1s",
			"REDIS_URL: ", "REDIS_WAIT_REPLICAS: must be at least 0", "REFRESH_BEFORE: must be a duration", "REFRESH_MAX_IN_FLIGHT: must be at least 1", "REFRESH_MAX_PER_SECOND: must be a whole number", "ZOOM_CLIENT_SECRET: is mutually exclusive with ZOOM_CLIENT_SECRET_FILE", "ZOOM_OAUTH_URL: must be an absolute URL",
		}},
		"an unknown flag":                {"tokenserver", good, []string{"--nonsense"}, []string{"unknown flag --nonsense"}},
		"a flag without its value":       {"tokenserver", good, []string{"--redis-url"}, []string{"--redis-url"}},
		"required secrets":               {"tokenserver", append(good, "RECALL_VERIFICATION_REQUIRED=true"), nil, []string{"RECALL_VERIFICATION_SECRETS: is required with RECALL_VERIFICATION_REQUIRED"}},
		"bounds of the callback":         {"tokenserver", append(good, "CACHE_SIZE=0", "MAX_WAITING=0", "DRAIN_DELAY=-1s"), nil, []string{"CACHE_SIZE: must be at least 1", "DRAIN_DELAY: must be at least 0", "MAX_WAITING: must be at least 1"}},
		"malformed verification secrets": {"tokenserver", append(good, "RECALL_VERIFICATION_SECRETS=whsec_!hunter2"), nil, []string{"RECALL_VERIFICATION_SECRETS: each verification secret must be"}},
		"invalid flag":                   {"tokenserver", good, []string{"--refresh-before=hunter2"}, []string{"REFRESH_BEFORE: must be a duration"}},
		"no TLS files and no GRPC_INSECURE": {"registrar", append(good, "CALLBACK_BASE_URL=https://h"), nil, []string{
			"GRPC_CLIENT_CA_FILE: is required", "GRPC_TLS_CERT_FILE: is required", "GRPC_TLS_KEY_FILE: is required",
		}},
		"plaintext and certificates": {"registrar", append(good, "CALLBACK_BASE_URL=https://h", "GRPC_INSECURE=true", "GRPC_TLS_CERT_FILE=x", "GRPC_POLICY_FILE=x"), nil, []string{
			"GRPC_POLICY_FILE: is mutually exclusive with GRPC_INSECURE", "GRPC_TLS_CERT_FILE: is mutually exclusive with GRPC_INSECURE",
		}},
		"one app and several": {"tokenserver", append(good, "ZOOM_APPS_FILE=x"), nil, []string{"ZOOM_APPS_FILE: is mutually exclusive with ZOOM_CLIENT_ID"}},
		"several apps, invalid": {"tokenserver", []string{good[0], good[1], "ZOOM_APPS_FILE=" + file("apps", invalidApps)}, nil, []string{
			`ZOOM_APPS_FILE: app 1 ("A"): client_secret: is required; app 1 ("A"): name: must be 1 to 64 of a-z, 0-9 and -; app 2 ("b"): client_id: is required`,
		}},
		"several apps, not YAML": {"tokenserver", []string{good[0], good[1], "ZOOM_APPS_FILE=" + file("apps2", "apps: hunter2")}, nil, []string{"ZOOM_APPS_FILE: decoding YAML"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := launch(t, c.program, c.env, c.args...)
			if status := p.wait(); status != 2 {
				t.Errorf("exit status %d, want 2", status)
			}
			lines := strings.Split(strings.TrimSpace(p.log()), "\n")
			if len(lines) != len(c.want) {
				t.Errorf("%d lines, want %d", len(lines), len(c.want))
			}
			for i, want := range c.want {
				if i < len(lines) && (!strings.HasPrefix(lines[i], c.program+": ") || !strings.Contains(lines[i], want)) {
					t.Errorf("line %d is %q, want %q", i+1, lines[i], want)
				}
			}
			if strings.Contains(p.log(), "hunter2") {
				t.Error("a value is printed")
			}
		})
	}
}

func TestStartupFailures(t *testing.T) {
	t.Parallel()
	s := newStack(t, time.Hour)
	run := func(env ...string) (int, string) {
		p := launch(t, "tokenserver", append(s.env, env...))
		status := p.wait()
		if strings.Contains(p.log(), "goroutine ") || strings.Contains(p.log(), ".go:") {
			t.Error("a stack trace is printed")
		}
		lines := strings.Split(strings.TrimSpace(p.log()), "\n")
		return status, lines[len(lines)-1]
	}
	p, _, _ := s.tokenServer() // stores the record that identifies the keyset

	other := filepath.Join(t.TempDir(), "other.json")
	launch(t, "tokenctl", nil, "keyset", "create", other).wait()
	if status, line := run("KEYSET_FILE=" + other); status != 2 || !strings.Contains(line, "KEYSET_FILE: the keyset does not decrypt what is stored in this Redis") {
		t.Errorf("wrong keyset: exit status %d, %q", status, line)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	if status, line := run("HTTP_ADDR=" + taken.Addr().String()); status != 1 || !strings.Contains(line, "HTTP_ADDR: ") {
		t.Errorf("port in use: exit status %d, %q", status, line)
	}
	admin := s.redis.Client()
	if err := admin.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lru").Err(); err != nil {
		t.Fatal(err)
	}
	if status, line := run(); status != 2 || !strings.Contains(line, "REDIS_URL: Redis evicts grants") || !strings.Contains(line, "REDIS_ALLOW_DATA_LOSS=true") {
		t.Errorf("Redis with eviction: exit status %d, %q", status, line)
	}
	risky := launch(t, "tokenserver", append(s.env, "HTTP_ADDR=127.0.0.1:0", "REDIS_ALLOW_DATA_LOSS=true"))
	risky.await("Redis evicts grants")
	risky.await("token server started")
	_ = risky.command.Process.Kill()
	if err := admin.ConfigSet(t.Context(), "maxmemory-policy", "noeviction").Err(); err != nil {
		t.Fatal(err)
	}
	s.redis.Kill()
	if status, line := run("REDIS_START_TIMEOUT=300ms"); status != 1 || !strings.Contains(line, "no response from Redis within REDIS_START_TIMEOUT (300ms)") {
		t.Errorf("Redis down: exit status %d, %q", status, line)
	}

	// A token server that waits for Redis starts once Redis is up, and stops on SIGTERM.
	late := launch(t, "tokenserver", append(s.env, "HTTP_ADDR=127.0.0.1:0"))
	late.await("redis unavailable; waiting")
	s.redis.Run()
	late.await("token server started")
	for _, running := range []*process{p, late} {
		_ = running.command.Process.Signal(syscall.SIGTERM)
		if status := running.wait(); status != 0 {
			t.Errorf("exit status %d after SIGTERM", status)
		}
	}
}

func TestKeysetCreateKeepsFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keyset.json")
	if status := launch(t, "tokenctl", nil, "keyset", "create", path).wait(); status != 0 {
		t.Fatalf("exit status %d", status)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if p := launch(t, "tokenctl", nil, "keyset", "create", path); p.wait() != 1 || !strings.Contains(p.log(), "file exists: choose another name") {
		t.Errorf("keyset create with an existing file: %q", p.log())
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Error("the keyset was overwritten")
	}
}

func TestTokenctlCheck(t *testing.T) {
	t.Parallel()
	s := newStack(t, time.Hour)
	_, base, ops := s.tokenServer()
	if p := launch(t, "tokenctl", nil, "check", ops+"/readyz=200", base+"/callback/x=404"); p.wait() != 0 || strings.Count(p.log(), "as expected") != 2 {
		t.Errorf("check of a ready token server: %q", p.log())
	}
	p := launch(t, "tokenctl", nil, "check", "--timeout=1ms", ops+"/readyz=404", "nonsense", "http://127.0.0.1:1/=200", ops+"/healthz=200")
	if status := p.wait(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	for _, want := range []string{"/readyz returned 200, want 404", `"nonsense" is not URL=STATUS`, "connection refused", "/healthz returned 200, as expected"} {
		if !strings.Contains(p.log(), want) {
			t.Errorf("no %q in the output: %q", want, p.log())
		}
	}
}

func TestSandboxOnce(t *testing.T) {
	t.Parallel()
	p := launch(t, "sandbox", nil, "--once")
	if status := p.wait(); status != 0 || !strings.Contains(p.log(), "one full round") {
		t.Errorf("exit status %d", status)
	}
}

// TestSandboxSettings: the sandbox prints settings that work with its Zoom and Recall.
func TestSandboxSettings(t *testing.T) {
	t.Parallel()
	p := launch(t, "sandbox", nil)
	env := []string{"REDIS_URL=" + testkit.StartRedis(t).URL(), "KEYSET_FILE=/missing"}
	for _, name := range []string{"ZOOM_OAUTH_URL", "ZOOM_API_URL", "ZOOM_CLIENT_ID", "ZOOM_CLIENT_SECRET", "RECALL_API_URL", "RECALL_OAUTH_APP_ID", "RECALL_API_KEY"} {
		env = append(env, name+"="+p.await(name+`=(\S+)`))
	}
	doctor := launch(t, "tokenctl", env, "doctor")
	doctor.wait()
	for _, check := range []string{"zoom app default", "recall key", "recall app default"} {
		if !regexp.MustCompile(`(?m)^ok +` + check).MatchString(doctor.log()) {
			t.Errorf("%s is not ok:\n%s", check, doctor.log())
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"tokenserver", "registrar", "tokenctl", "sandbox"} {
		for _, flag := range []string{"--help", "--version"} {
			p := launch(t, program, nil, flag)
			if status := p.wait(); status != 0 || !strings.Contains(p.log(), program) {
				t.Errorf("%s %s: exit status %d", program, flag, status)
			}
		}
	}
}
