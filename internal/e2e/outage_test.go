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

var outage = flag.Duration("outage", 6*time.Second, "time that Redis is unavailable in the outage tests")

// fixture has a Redis with grants whose tokens are valid for an hour, and the environment
// of token servers that serve them.
type fixture struct {
	t      testing.TB
	redis  *testkit.Redis
	keyset *seal.Keyset
	store  *store.Store
	file   string // of the keyset
	env    []string
	paths  []string
	client *http.Client
}

func newFixture(t testing.TB, grants int, redisArgs ...string) *fixture {
	t.Helper()
	json, keyset := testkit.KeysetJSON(t)
	file := filepath.Join(t.TempDir(), "keyset.json")
	if err := os.WriteFile(file, json, 0o600); err != nil {
		t.Fatal(err)
	}
	v := &fixture{t: t, redis: testkit.StartRedis(t, redisArgs...), keyset: keyset, file: file, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}}
	t.Cleanup(v.client.CloseIdleConnections)
	v.store = v.newStore()
	v.paths = fill(t, v.store, grants, time.Hour)
	v.env = []string{
		"REDIS_URL=" + v.redis.URL(), "KEYSET_FILE=" + file, "ZOOM_CLIENT_ID=x", "ZOOM_CLIENT_SECRET=x",
		"ZOOM_OAUTH_URL=http://127.0.0.1:1", "OPS_ADDR=127.0.0.1:0", "HTTP_ADDR=127.0.0.1:0", "DRAIN_DELAY=0s",
	}
	return v
}

// newStore returns a store with separate connections, like that of another process.
func (v *fixture) newStore() *store.Store { return store.New(v.redis.Client(), v.keyset) }

// tokenServer starts a token server, waits until its change feed is synced, and returns
// its base URLs.
func (v *fixture) tokenServer(env ...string) (p *process, base, ops string) {
	v.t.Helper()
	p = launch(v.t, "tokenserver", append(slices.Clone(v.env), env...))
	base = "http://" + p.await(`"http":"([^"]+)"`)
	ops = "http://" + p.await(`"ops":"([^"]+)"`)
	p.await("change feed synced")
	return p, base, ops
}

// result is the result of one callback.
type result struct {
	at     time.Time
	took   time.Duration
	status int // 0: no response
	token  string
}

// call makes one callback.
func (v *fixture) call(base, path string) result {
	s := result{at: time.Now()}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		v.t.Error("invalid request")
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

// load makes callbacks continuously with a number of callers. The returned function stops
// them and returns all results.
func (v *fixture) load(base string, callers int) (stop func() []result) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var all []result
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
	return func() []result {
		cancel()
		running.Wait()
		return all
	}
}

func (v *fixture) wantAllServed(all []result, what string) {
	v.t.Helper()
	failed := map[int]int{}
	for _, s := range all {
		if s.status != http.StatusOK {
			failed[s.status]++
		}
	}
	if len(failed) > 0 || len(all) < 100 {
		v.t.Errorf("%s: %d callbacks, want at least 100; failures by status: %v", what, len(all), failed)
	}
	v.t.Logf("%s: %d callbacks", what, len(all))
}

func isReady(t *testing.T, ops, path string) bool {
	t.Helper()
	status, _ := get(t, ops+path)
	return status == http.StatusOK
}

// renew gives a grant a new token, as a rotation does.
func (v *fixture) renew(path, token string) {
	v.t.Helper()
	address, _ := callback.ParsePath(path)
	waitUntil(v.t, "the grant is changed", 10*time.Second, func() bool {
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

// serveThroughOutage loads a token server while Redis is unavailable, between stop and
// resume. It returns the results; their times are relative to the start of the outage.
func serveThroughOutage(t *testing.T, stop, resume func(*testkit.Redis)) []result {
	v := newFixture(t, 50)
	p, base, ops := v.tokenServer()
	for _, path := range v.paths { // cache all records but the last
		if path != v.paths[len(v.paths)-1] {
			v.call(base, path)
		}
	}
	uncached := v.paths[len(v.paths)-1]
	v.paths = v.paths[:len(v.paths)-1]
	stopLoad := v.load(base, 8)
	time.Sleep(500 * time.Millisecond)
	stop(v.redis)
	began := time.Now()
	for time.Since(began) < *outage {
		if !isReady(t, ops, "/readyz") || !isReady(t, ops, "/healthz") {
			t.Error("not ready or not alive, although it can serve cached records")
		}
		time.Sleep(200 * time.Millisecond)
	}
	if s := v.call(base, uncached); s.status != http.StatusServiceUnavailable {
		t.Errorf("callback of an uncached record: status %d, want 503", s.status)
	}
	resume(v.redis)
	v.renew(v.paths[0], "renewed-after-the-outage")
	waitUntil(t, "the new token is served", 10*time.Second, func() bool {
		return v.call(base, v.paths[0]).token == "renewed-after-the-outage"
	})
	waitUntil(t, "the uncached record is served", 10*time.Second, func() bool { return v.call(base, uncached).status == http.StatusOK })
	all := stopLoad()
	v.wantAllServed(all, fmt.Sprint("Redis unavailable for ", *outage))
	if strings.Contains(p.log(), "DATA RACE") {
		t.Error("the token server has a data race")
	}
	for i, s := range all {
		all[i].at = time.Unix(0, int64(s.at.Sub(began)))
	}
	return all
}

func TestRedisStopped(t *testing.T) {
	t.Parallel()
	serveThroughOutage(t, (*testkit.Redis).Kill, (*testkit.Redis).Run)
}

func TestRedisFrozen(t *testing.T) {
	t.Parallel()
	var took []time.Duration
	for _, s := range serveThroughOutage(t, (*testkit.Redis).Freeze, (*testkit.Redis).Thaw) {
		if since := time.Duration(s.at.UnixNano()); since > time.Second && since < *outage {
			took = append(took, s.took)
		}
	}
	slices.Sort(took)
	if len(took) < 100 {
		t.Fatalf("%d callbacks during the outage, want at least 100", len(took))
	}
	if p99 := took[len(took)*99/100]; p99 > 250*time.Millisecond {
		t.Errorf("p99 with a frozen Redis: %v, want less than 250 ms", p99)
	} else {
		t.Logf("p99 %v, worst %v", p99, took[len(took)-1])
	}
}

// TestRollingRestart restarts three replicas in turn behind a proxy that uses only their
// readiness.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	v := newFixture(t, 50)
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
	waitUntil(t, "all replicas are ready", 10*time.Second, func() bool { return proxy.countReady() == 3 })
	stop := v.load(server.URL, 16)
	for i, p := range replicas {
		if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := p.wait(); status != 0 {
			t.Errorf("exit status %d", status)
		}
		start(i)
		waitUntil(t, "the replica is ready again", 10*time.Second, func() bool { return proxy.countReady() == 3 })
	}
	v.wantAllServed(stop(), "rolling restart")
}

// proxy forwards requests round-robin to the ready backends. It probes each /readyz ten
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

// add adds a backend and returns a function that removes it.
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
		for p.t.Context().Err() == nil && !p.isRemoved(b) {
			ready := p.probe(ops)
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

func (p *proxy) isRemoved(b *backend) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.Contains(p.backends, b)
}

// probe reports whether a backend is ready. Its timeout is the default of Kubernetes.
func (p *proxy) probe(ops string) bool {
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

// countReady returns the number of ready backends.
func (p *proxy) countReady() (n int) {
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
