package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tokenprovider/internal/seal"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// files is a directory of secrets, as mounted by Kubernetes.
type files struct {
	t   testing.TB
	dir string
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

// write replaces a file atomically.
func (f files) write(name, content string) {
	f.t.Helper()
	if err := os.WriteFile(f.path(name)+".new", []byte(content), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path(name)+".new", f.path(name)); err != nil {
		f.t.Fatal(err)
	}
}

func (f files) read(name string) []byte {
	f.t.Helper()
	content, err := os.ReadFile(f.path(name))
	if err != nil {
		f.t.Fatal(err)
	}
	return content
}

// TestSecretsChangeUnderLoad replaces each secret during callbacks, renewals and
// registrations. None of them may fail.
func TestSecretsChangeUnderLoad(t *testing.T) {
	t.Parallel()
	const users = 20
	s := newStack(t, 150*time.Second)
	f := files{t, t.TempDir()}
	f.write("zoom", zoomtest.DefaultClientSecret+"\n")
	f.write("recall", "recall-key")
	f.write("verification", verification)
	f.write("webhook", webhookToken)
	f.write("redis", s.redis.URL())
	for i, setting := range s.env {
		name, value, _ := strings.Cut(setting, "=")
		switch name {
		case "ZOOM_CLIENT_SECRET":
			s.env[i] = "ZOOM_CLIENT_SECRET_FILE=" + f.path("zoom")
		case "RECALL_API_KEY":
			s.env[i] = "RECALL_API_KEY_FILE=" + f.path("recall")
		case "REDIS_URL":
			s.env[i] = "REDIS_URL_FILE=" + f.path("redis")
		case "KEYSET_FILE":
			content, err := os.ReadFile(value)
			if err != nil {
				t.Fatal(err)
			}
			f.write("keyset", string(content))
			s.env[i] = "KEYSET_FILE=" + f.path("keyset")
		}
	}
	s.env = append(s.env, "RELOAD_INTERVAL=100ms")
	server := launch(t, "tokenserver", append(slices.Clone(s.env), "HTTP_ADDR=127.0.0.1:0",
		"RECALL_VERIFICATION_SECRETS_FILE="+f.path("verification"), "ZOOM_WEBHOOK_SECRET_TOKEN_FILE="+f.path("webhook")))
	base := "http://" + server.await(`"http":"([^"]+)"`)
	registrar, client, _ := s.registrar(base)
	register := func(user string) {
		t.Helper()
		_, refresh := s.zoom.Grant(zoomtest.DefaultClientID, "zoom-"+user)
		got, err := client.RegisterUser(t.Context(), &registrarv1.RegisterUserRequest{
			UserId: user, Grant: &registrarv1.RegisterUserRequest_RefreshToken{RefreshToken: refresh},
		})
		if err != nil || got.GetUser().GetState() != registrarv1.State_STATE_ACTIVE {
			t.Fatalf("registering: %v, %v", got.GetUser().GetReason(), err)
		}
	}
	for i := range users {
		register(fmt.Sprint("user-", i))
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var callers sync.WaitGroup
	var mu sync.Mutex
	calls, failed := 0, map[int]int{}
	for range 4 {
		callers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				credentials := s.recall.Credentials()
				_, status, err := s.recall.Callback(ctx, credentials[n%len(credentials)].ID)
				mu.Lock()
				calls++
				// Status 200 with an error is no failure: a renewal may end the served token
				// before Recall uses it.
				if err != nil && status != http.StatusOK && ctx.Err() == nil {
					failed[status]++
				}
				mu.Unlock()
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	awaitLog := func(p *process, pattern string, times int) {
		t.Helper()
		waitUntil(t, fmt.Sprintf("%s logs %q", p.name, pattern), 30*time.Second, func() bool { return strings.Count(p.log(), pattern) >= times })
	}
	reloaded := func(setting string) string { return `"secret reloaded","setting":"` + setting + `"` }

	// Redis's password: change it in the programs first. Redis accepts any until it is set.
	admin := s.redis.Client()
	f.write("redis", strings.Replace(s.redis.URL(), "redis://", "redis://:hunter2@", 1))
	awaitLog(server, reloaded("REDIS_URL"), 1)
	awaitLog(registrar, reloaded("REDIS_URL"), 1)
	if err := admin.ConfigSet(ctx, "requirepass", "hunter2").Err(); err != nil {
		t.Fatal(err)
	}
	for range 3 { // close the connections, so that new ones authenticate
		if err := admin.Do(ctx, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}

	// Zoom's client secret: set both, change it at Zoom, then remove the old one.
	f.write("zoom", zoomtest.DefaultClientSecret+",new-secret")
	awaitLog(server, reloaded("ZOOM_CLIENT_SECRET"), 1)
	awaitLog(registrar, reloaded("ZOOM_CLIENT_SECRET"), 1)
	s.zoom.SetClientSecret(zoomtest.DefaultClientID, "new-secret")
	register("after-the-client-secret")
	f.write("zoom", "new-secret")
	awaitLog(server, reloaded("ZOOM_CLIENT_SECRET"), 2)

	// Recall's verification secret: set both, change it at Recall, then remove the old one.
	const next = "whsec_bmV4dG5leHRuZXh0bmV4dG5leHRuZXh0"
	f.write("verification", verification+","+next)
	awaitLog(server, reloaded("RECALL_VERIFICATION_SECRETS"), 1)
	s.recall.SetVerificationSecrets(next)
	f.write("verification", next)
	awaitLog(server, reloaded("RECALL_VERIFICATION_SECRETS"), 2)

	// Recall's API key.
	s.recall.SetAPIKey("new-key")
	f.write("recall", "new-key")
	awaitLog(registrar, reloaded("RECALL_API_KEY"), 1)
	register("after-the-api-key")

	// The keyset: add a key in all programs, make it the primary key, re-encrypt, disable
	// the old key.
	clear := seal.Wrapping{}
	stored := s.openStore(f)
	json, id, err := clear.AddKey(f.read("keyset"))
	if err != nil {
		t.Fatal(err)
	}
	f.write("keyset", string(json))
	awaitLog(server, "keyset reloaded", 1)
	awaitLog(registrar, "keyset reloaded", 1)
	if json, err = clear.Promote(json, id); err != nil {
		t.Fatal(err)
	}
	f.write("keyset", string(json))
	awaitLog(registrar, "re-encryption complete", 2) // once for the first key, at the start
	counts, err := stored.CountByKey(ctx)
	if err != nil || len(counts) != 1 || counts[id] != users+2 {
		t.Errorf("records by key: %v, %v, want all with key %d", counts, err, id)
	}
	keyset, err := clear.Parse(json)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keyset.Keys() {
		if key.ID != id {
			if json, err = clear.Disable(json, key.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.write("keyset", string(json))
	awaitLog(server, "keyset reloaded", 3)
	register("after-the-keyset")
	waitUntil(t, "tokens are renewed", 60*time.Second, func() bool { return s.zoom.Counts().Refreshes > 2*users })

	cancel()
	callers.Wait()
	if len(failed) > 0 || calls < 500 {
		t.Errorf("%d callbacks, want at least 500; failures by status: %v", calls, failed)
	}
	if counts := s.zoom.Counts(); counts.SpentPresented+counts.UnknownPresented != 0 {
		t.Errorf("invalid requests at Zoom: %+v", counts)
	}
	for _, p := range []*process{server, registrar} {
		for _, secret := range []string{"hunter2", "new-secret", "new-key", next} {
			if strings.Contains(p.log(), secret) {
				t.Errorf("%s prints a secret", p.name)
			}
		}
		if strings.Contains(p.log(), "DATA RACE") {
			t.Errorf("%s has a data race", p.name)
		}
	}
	t.Logf("%d callbacks, none failed", calls)
}

// openStore returns a store with the current keyset and Redis URL of the files.
func (s *stack) openStore(f files) *store.Store {
	s.t.Helper()
	keyset, err := seal.Parse(f.read("keyset"))
	if err != nil {
		s.t.Fatal(err)
	}
	return store.New(testkit.RedisClient(s.t, string(f.read("redis"))), keyset)
}
