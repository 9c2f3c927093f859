package e2e_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

var outage = flag.Duration("outage", 6*time.Second, "how long Redis is away in the outage tests")

// vault is a Redis with grants whose tokens are good for an hour, and what a
// token server needs to serve them.
type vault struct {
	t      testing.TB
	redis  *testkit.Redis
	keyset *seal.Keyset
	store  *store.Store
	file   string // of the keyset
	env    []string
	paths  []string
	client *http.Client
}

func newVault(t testing.TB, grants int, redisArgs ...string) *vault {
	t.Helper()
	json, keyset := testkit.KeysetJSON(t)
	file := filepath.Join(t.TempDir(), "keyset.json")
	if err := os.WriteFile(file, json, 0o600); err != nil {
		t.Fatal(err)
	}
	v := &vault{t: t, redis: testkit.StartRedis(t, redisArgs...), keyset: keyset, file: file, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}}
	t.Cleanup(v.client.CloseIdleConnections)
	v.store = v.other()
	v.paths = fill(t, v.store, grants, time.Hour)
	v.env = []string{
		"REDIS_URL=" + v.redis.URL(), "KEYSET_FILE=" + file, "ZOOM_CLIENT_ID=x", "ZOOM_CLIENT_SECRET=x",
		"ZOOM_OAUTH_URL=http://127.0.0.1:1", "OPS_ADDR=127.0.0.1:0", "HTTP_ADDR=127.0.0.1:0", "DRAIN_DELAY=0s",
	}
	return v
}

// other is a store on connections of its own, as another process has it.
func (v *vault) other() *store.Store { return store.New(v.redis.Client(), v.keyset) }

func (v *vault) tokenServer(env ...string) (p *process, base, ops string) {
	v.t.Helper()
	p = launch(v.t, "tokenserver", append(slices.Clone(v.env), env...))
	base = "http://" + p.await(`"http":"([^"]+)"`)
	ops = "http://" + p.await(`"ops":"([^"]+)"`)
	p.await("change feed synced")
	return p, base, ops
}

// served is what came of one callback.
type served struct {
	at     time.Time
	took   time.Duration
	status int // 0: no answer
	token  string
}

func (v *vault) call(base, path string) served {
	s := served{at: time.Now()}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		v.t.Error("not a request")
		return s
	}
	if response, err := v.client.Do(request); err == nil {
		body := make([]byte, 2000)
		n, _ := response.Body.Read(body)
		_ = response.Body.Close()
		s.status, s.token = response.StatusCode, string(body[:n])
	}
	s.took = time.Since(s.at)
	return s
}

// load calls back all the time, by a number of callers, until the returned
// function is called, which returns what came of it.
func (v *vault) load(base string, callers int) (stop func() []served) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var all []served
	var running sync.WaitGroup
	for n := range callers {
		running.Go(func() {
			for i := n; ctx.Err() == nil; i += callers {
				s := v.call(base, v.paths[i%len(v.paths)])
				mu.Lock()
				all = append(all, s)
				mu.Unlock()
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return func() []served {
		cancel()
		running.Wait()
		return all
	}
}

func (v *vault) wantAllServed(all []served, what string) {
	v.t.Helper()
	failed := map[int]int{}
	for _, s := range all {
		if s.status != http.StatusOK {
			failed[s.status]++
		}
	}
	if len(failed) > 0 || len(all) < 100 {
		v.t.Errorf("%s: of %d callbacks these failed, by status: %v", what, len(all), failed)
	}
	v.t.Logf("%s: %d callbacks", what, len(all))
}

func ready(t *testing.T, ops, path string) bool {
	t.Helper()
	status, _ := get(t, ops+path)
	return status == http.StatusOK
}

// renew gives a grant a new token, as a rotation would.
func (v *vault) renew(path, token string) {
	v.t.Helper()
	address, _ := callback.ParsePath(path)
	until(v.t, "a grant is changed", 10*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		g, err := v.store.Get(ctx, address.ID)
		if err != nil {
			return false
		}
		now := time.Now()
		_, err = v.store.AcceptConsent(ctx, address.ID, grant.Consent{
			App: g.App, User: g.User, Fingerprint: token,
			Tokens: grant.Tokens{Access: secret.New(token), Refresh: secret.New(token), Issued: now, Expires: now.Add(2 * time.Hour)},
		}, now.Add(time.Hour))
		return err == nil
	})
}

// outlive is a token server under load while Redis is away.
func outlive(t *testing.T, away, back func(*testkit.Redis)) []served {
	v := newVault(t, 50)
	p, base, ops := v.tokenServer()
	for _, path := range v.paths { // all but the last are in memory
		if path != v.paths[len(v.paths)-1] {
			v.call(base, path)
		}
	}
	cold := v.paths[len(v.paths)-1]
	v.paths = v.paths[:len(v.paths)-1]
	stop := v.load(base, 8)
	time.Sleep(500 * time.Millisecond)
	away(v.redis)
	gone := time.Now()
	for time.Since(gone) < *outage {
		if !ready(t, ops, "/readyz") || !ready(t, ops, "/healthz") {
			t.Error("not ready, or not alive, though it can serve what it has in memory")
		}
		time.Sleep(200 * time.Millisecond)
	}
	if s := v.call(base, cold); s.status != http.StatusServiceUnavailable {
		t.Errorf("what is not in memory is answered %d, want 503", s.status)
	}
	back(v.redis)
	v.renew(v.paths[0], "renewed-after-the-outage")
	until(t, "the new token is served", 10*time.Second, func() bool {
		return v.call(base, v.paths[0]).token == "renewed-after-the-outage"
	})
	until(t, "what was not in memory is served", 10*time.Second, func() bool { return v.call(base, cold).status == http.StatusOK })
	all := stop()
	v.wantAllServed(all, fmt.Sprint("Redis away for ", *outage))
	if strings.Contains(p.said(), "DATA RACE") {
		t.Error("a data race")
	}
	for i, s := range all {
		all[i].at = time.Unix(0, int64(s.at.Sub(gone))) // since Redis went away
	}
	return all
}

func TestRedisStopped(t *testing.T) {
	t.Parallel()
	outlive(t, (*testkit.Redis).Kill, (*testkit.Redis).Run)
}

func TestRedisFrozen(t *testing.T) {
	t.Parallel()
	var took []time.Duration
	for _, s := range outlive(t, (*testkit.Redis).Freeze, (*testkit.Redis).Thaw) {
		if since := time.Duration(s.at.UnixNano()); since > time.Second && since < *outage {
			took = append(took, s.took)
		}
	}
	slices.Sort(took)
	if len(took) < 100 {
		t.Fatalf("%d callbacks are too few to tell", len(took))
	}
	if p99 := took[len(took)*99/100]; p99 > 250*time.Millisecond {
		t.Errorf("p99 with a frozen Redis: %v, want less than 250 ms", p99)
	} else {
		t.Logf("p99 %v, worst %v", p99, took[len(took)-1])
	}
}

// TestRollingRestart restarts three replicas, one after the other, behind a
// proxy that honours readiness and nothing else.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	v := newVault(t, 50)
	v.env = append(v.env, "DRAIN_DELAY=1s")
	proxy := &proxy{t: t}
	server := httptest.NewServer(proxy)
	defer server.Close()
	var replicas [3]*process
	start := func(i int) {
		p, base, ops := v.tokenServer()
		replicas[i] = p
		proxy.add(base, ops)
	}
	for i := range replicas {
		start(i)
	}
	until(t, "all replicas are ready", 10*time.Second, func() bool { return proxy.ready() == 3 })
	stop := v.load(server.URL, 16)
	for i, p := range replicas {
		if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := p.wait(); status != 0 {
			t.Errorf("exit status %d", status)
		}
		start(i)
		until(t, "the replica is back", 10*time.Second, func() bool { return proxy.ready() == 3 })
	}
	v.wantAllServed(stop(), "rolling restart")
}

// proxy sends requests to backends whose /readyz says so, in turn. It asks ten
// times a second.
type proxy struct {
	t        *testing.T
	mu       sync.Mutex
	backends []*backend
	next     int
}

type backend struct {
	*httputil.ReverseProxy
	ready bool
}

// add adds a backend, and returns what takes it away again.
func (p *proxy) add(base, ops string) (drop func()) {
	target, err := url.Parse(base)
	if err != nil {
		p.t.Fatal(err)
	}
	b := &backend{ReverseProxy: httputil.NewSingleHostReverseProxy(target)}
	b.Transport = &http.Transport{MaxIdleConnsPerHost: 32}
	p.mu.Lock()
	p.backends = append(p.backends, b)
	p.mu.Unlock()
	go func() {
		for p.t.Context().Err() == nil && !p.dropped(b) {
			ready := p.ask(ops)
			p.mu.Lock()
			b.ready = ready
			p.mu.Unlock()
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.backends = slices.DeleteFunc(p.backends, func(other *backend) bool { return other == b })
	}
}

func (p *proxy) dropped(b *backend) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.Contains(p.backends, b)
}

// ask asks a backend whether it is ready, as patiently as Kubernetes does.
func (p *proxy) ask(ops string) bool {
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, ops+"/readyz", nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func (p *proxy) ready() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.backends {
		if b.ready {
			n++
		}
	}
	return n
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	var chosen *backend
	for range p.backends {
		p.next++
		if b := p.backends[p.next%len(p.backends)]; b.ready {
			chosen = b
			break
		}
	}
	p.mu.Unlock()
	if chosen == nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	chosen.ServeHTTP(w, r)
}
