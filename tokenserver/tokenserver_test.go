package tokenserver_test

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/tokenserver"
)

const token = "an-access-token"

// records is a store with one grant.
type records struct {
	mu      sync.Mutex
	id      grant.ID
	serving grant.ServingRecord
	err     error
	reads   []grant.ID
}

func (r *records) ReadServingRecord(_ context.Context, id grant.ID) (grant.ServingRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads = append(r.reads, id)
	if r.err != nil {
		return grant.ServingRecord{}, r.err
	}
	if id != r.id {
		return grant.ServingRecord{}, grant.ErrNotFound
	}
	return r.serving, nil
}

// renewFunc renews every token: CanServe reports false.
type renewFunc func(ctx context.Context, id grant.ID, serving grant.ServingRecord, ttl time.Duration) (grant.ServingRecord, error)

func (renewFunc) CanServe(*grant.ServingRecord, time.Duration, time.Time) bool { return false }

func (f renewFunc) EnsureFresh(ctx context.Context, id grant.ID, serving grant.ServingRecord, ttl time.Duration) (grant.ServingRecord, error) {
	return f(ctx, id, serving, ttl)
}

// keepToken returns the record that was read.
func keepToken(_ context.Context, _ grant.ID, serving grant.ServingRecord, _ time.Duration) (grant.ServingRecord, error) {
	return serving, serving.CheckAlive()
}

type fixture struct {
	*records
	address callback.Address
	cache   *tokenserver.Cache
	server  *httptest.Server
	logs    *observer.ObservedLogs
	metrics *prometheus.Registry
}

func start(t *testing.T, tokens renewFunc, verifier *tokenserver.Verifier) *fixture {
	t.Helper()
	if tokens == nil {
		tokens = keepToken
	}
	return startWith(t, tokenserver.Config{Tokens: tokens, Verifier: verifier})
}

func startWith(t *testing.T, config tokenserver.Config) *fixture {
	t.Helper()
	address := callback.NewAddress(grant.NewID("default", "ann"))
	core, logs := observer.New(zap.DebugLevel)
	f := &fixture{
		records: &records{id: address.ID, serving: grant.ServingRecord{
			State: grant.StateActive, Access: secret.New(token), Expires: time.Now().Add(time.Hour),
			Secrets: []grant.CallbackSecret{address.CallbackSecret()},
		}},
		address: address, logs: logs, metrics: prometheus.NewRegistry(),
	}
	cache, err := tokenserver.NewCache(f.records, 10, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	cache.Synced()
	logs.TakeAll()
	f.cache = cache
	config.Cache, config.Log, config.Metrics = cache, zap.New(core), f.metrics
	f.server = httptest.NewServer(tokenserver.New(config))
	t.Cleanup(func() {
		f.server.Close()
		for _, entry := range logs.All() {
			for _, value := range entry.ContextMap() {
				if text, ok := value.(string); ok && (strings.Contains(text, token) || strings.Contains(text, address.Secret.Reveal())) {
					t.Errorf("%q logs a secret", entry.Message)
				}
			}
		}
	})
	return f
}

func (f *fixture) url(t *testing.T) string {
	t.Helper()
	base, err := url.Parse(f.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return f.address.URL(base).Reveal()
}

func (f *fixture) change(change func(*records)) {
	f.mu.Lock()
	change(f.records)
	f.mu.Unlock()
	f.cache.Invalidate(f.id)
}

type result struct {
	status int
	header http.Header
	body   string
}

func do(t *testing.T, method, url string, header http.Header) result {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		request.Header = header
	}
	response, err := http.DefaultTransport.RoundTrip(request) // follows no redirects
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return result{response.StatusCode, response.Header, string(body)}
}

func (f *fixture) wantCount(t *testing.T, outcome string, want float64) {
	t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == "tokenprovider_callbacks_total" && metric.GetLabel()[0].GetValue() == outcome && metric.GetLabel()[1].GetValue() == "recall" {
				if got := metric.GetCounter().GetValue(); got != want {
					t.Errorf("%s callbacks counted: %v, want %v", outcome, got, want)
				}
				return
			}
		}
	}
	t.Errorf("no %s callback was counted, want %v", outcome, want)
}

func TestServesTheTokenAndNothingElse(t *testing.T) {
	f := start(t, nil, nil)
	got := do(t, http.MethodGet, f.url(t), nil)
	if got.status != http.StatusOK || got.body != token {
		t.Errorf("responded %d and %d bytes, want the token", got.status, len(got.body))
	}
	for name, want := range map[string]string{
		"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store",
		"Content-Length": strconv.Itoa(len(token)),
	} {
		if got := got.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	head := do(t, http.MethodHead, f.url(t), nil)
	if head.status != http.StatusOK || head.body != "" || head.header.Get("Content-Length") != strconv.Itoa(len(token)) {
		t.Errorf("HEAD responded %d, %d bytes, Content-Length %s", head.status, len(head.body), head.header.Get("Content-Length"))
	}
	f.wantCount(t, "served", 2)
}

func TestUnknownMalformedAndWrongURLsGetOneResponse(t *testing.T) {
	f := start(t, nil, nil)
	good := f.url(t)
	stranger := callback.NewAddress(grant.NewID("default", "bob"))
	forged := callback.NewAddress(f.address.ID)
	base, _ := url.Parse(f.server.URL)
	urls := map[string]string{
		"unknown":         stranger.URL(base).Reveal(),
		"wrong secret":    forged.URL(base).Reveal(),
		"malformed":       good + "x",
		"longer":          good + "/",
		"another's":       strings.Replace(good, string(f.address.ID), string(stranger.ID), 1),
		"no secret":       f.server.URL + callback.Prefix + string(f.address.ID),
		"the root":        f.server.URL,
		"elsewhere":       f.server.URL + "/metrics",
		"doubled slashes": strings.Replace(good, "/callback/", "//callback//", 1),
		"dots":            f.server.URL + "/callback/../callback/x/y",
		"escaped":         strings.Replace(good, "/callback/", "/%63allback/", 1),
	}
	var first *result
	for name, u := range urls {
		got := do(t, http.MethodGet, u, nil)
		got.header.Del("Date")
		if got.status != http.StatusNotFound {
			t.Errorf("%s: responded %d, want 404", name, got.status)
		}
		if first == nil {
			first = &got
		} else if got.body != first.body || len(got.header) != len(first.header) || got.header.Get("Content-Length") != first.header.Get("Content-Length") {
			t.Errorf("%s: responded differently: %+v and %+v", name, got, *first)
		}
	}
	if len(f.reads) != len(urls) {
		t.Errorf("%d reads for %d requests, want one for each", len(f.reads), len(urls))
	}
	f.wantCount(t, "unknown", float64(len(urls)))
}

func TestSecretsEnd(t *testing.T) {
	f := start(t, nil, nil)
	f.change(func(r *records) { r.serving.Secrets[0].NotAfter = time.Now().Add(-time.Second) })
	if got := do(t, http.MethodGet, f.url(t), nil); got.status != http.StatusNotFound {
		t.Errorf("an ended secret: responded %d, want 404", got.status)
	}
}

func TestMethods(t *testing.T) {
	f := start(t, nil, nil)
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch} {
		got := do(t, method, f.url(t), nil)
		if got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: responded %d, Allow %q", method, got.status, got.header.Get("Allow"))
		}
	}
	if len(f.reads) != 0 {
		t.Error("a method that is not allowed read the grant")
	}
}

func TestStates(t *testing.T) {
	f := start(t, nil, nil)
	for state, want := range map[grant.State]int{
		grant.StatePending: 200, grant.StateActive: 200, grant.StateDegraded: 200, // Recall calls while it creates the credential
		grant.StateReauthorizationRequired: 410, grant.StateDeleting: 404,
	} {
		f.change(func(r *records) { r.serving.State = state })
		if got := do(t, http.MethodGet, f.url(t), nil); got.status != want {
			t.Errorf("%s: responded %d, want %d", state, got.status, want)
		}
	}
}

func TestSignatures(t *testing.T) {
	const right, other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_b3RoZXJvdGhlcm90aGVyb3RoZXI="
	verifier, err := tokenserver.NewVerifier([]secret.Text{secret.New(other), secret.New(right)})
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, nil, verifier)
	signed := func(key string, at time.Time, url string) int {
		webhook, err := standardwebhooks.NewWebhook(key)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := webhook.Sign("msg_1", at, nil)
		if err != nil {
			t.Fatal(err)
		}
		return do(t, http.MethodGet, url, http.Header{
			"Webhook-Id": {"msg_1"}, "Webhook-Timestamp": {strconv.FormatInt(at.Unix(), 10)},
			"Webhook-Signature": {"v1,AAAA " + signature},
		}).status
	}
	now := time.Now()
	for name, c := range map[string]struct {
		got, want int
	}{
		"signed":                    {signed(right, now, f.url(t)), 200},
		"by the other secret":       {signed(other, now, f.url(t)), 200},
		"by a stranger":             {signed("whsec_c3RyYW5nZXJzdHJhbmdlcg==", now, f.url(t)), 401},
		"six minutes old":           {signed(right, now.Add(-6*time.Minute), f.url(t)), 401},
		"six minutes early":         {signed(right, now.Add(6*time.Minute), f.url(t)), 401},
		"unsigned":                  {do(t, http.MethodGet, f.url(t), nil).status, 401},
		"signed, with a wrong URL":  {signed(right, now, f.url(t)+"x"), 404},
		"unsigned, and a wrong URL": {do(t, http.MethodGet, f.url(t)+"x", nil).status, 404},
	} {
		if c.got != c.want {
			t.Errorf("%s: responded %d, want %d", name, c.got, c.want)
		}
	}
}

// TestSignatureTimestamps: a signature is valid for exactly five minutes before and
// after its timestamp.
func TestSignatureTimestamps(t *testing.T) {
	const key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	verifier, err := tokenserver.NewVerifier([]secret.Text{secret.New(key)})
	if err != nil {
		t.Fatal(err)
	}
	webhook, err := standardwebhooks.NewWebhook(key)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1614265330, 0)
	signature, err := webhook.Sign("msg_1", at, nil)
	if err != nil {
		t.Fatal(err)
	}
	header := http.Header{"Webhook-Id": {"msg_1"}, "Webhook-Timestamp": {"1614265330"}, "Webhook-Signature": {signature}}
	for age, want := range map[time.Duration]bool{
		5 * time.Minute: true, 5*time.Minute + 1: false, -5 * time.Minute: true, -5*time.Minute - 1: false,
	} {
		if got := verifier.Verify(header, at.Add(age)); got != want {
			t.Errorf("%v after its timestamp: %v, want %v", age, got, want)
		}
	}
}

// The vector is Recall's scheme over an empty body, computed independently.
func TestSignatureVector(t *testing.T) {
	webhook, err := standardwebhooks.NewWebhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got, err := webhook.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), nil)
	if want := "v1,v48jdbgvh29KJz2Qc+ghw8G6vG3nAKnujWBg8oM/62A="; err != nil || got != want {
		t.Errorf("signature %q, %v, want %q", got, err, want)
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	for name, secrets := range map[string][]secret.Text{
		"none": nil, "an empty one": {{}}, "an empty key": {secret.New("whsec_")}, "a short key": {secret.New("whsec_c2hvcnQ=")},
		"not base64": {secret.New("whsec_!hunter2")}, "one of two": {secret.New("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), secret.New("")},
	} {
		if _, err := tokenserver.NewVerifier(secrets); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewVerifierAcceptsTheShortestKey(t *testing.T) {
	for size, accepted := range map[int]bool{15: false, 16: true} {
		key := "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, size))
		if _, err := tokenserver.NewVerifier([]secret.Text{secret.New(key)}); (err == nil) != accepted {
			t.Errorf("a key of %d bytes: %v, want accepted: %v", size, err, accepted)
		}
	}
}

// TestTokensOfAnyLength: the Content-Length is the token's, also where no shared
// header value has that length.
func TestTokensOfAnyLength(t *testing.T) {
	for _, length := range []int{1, 2047, 2048, 2049, 10_000} {
		w := httptest.NewRecorder()
		tokenserver.WriteToken(w, strings.Repeat("t", length))
		if got := w.Header().Get("Content-Length"); got != strconv.Itoa(length) || w.Body.Len() != length {
			t.Errorf("a token of %d bytes: Content-Length %s, %d bytes", length, got, w.Body.Len())
		}
	}
}

// TestRenewalDeadline: a request waits for a renewal until the timeout after its
// arrival.
func TestRenewalDeadline(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{0: 4500 * time.Millisecond, time.Second: time.Second} {
		inBubble(t, 10, func(m *memory) {
			_, path := m.add("ann")
			var left time.Duration
			m.handler = tokenserver.New(tokenserver.Config{Cache: m.cache, Log: zap.NewNop(), Timeout: timeout, Tokens: renewFunc(
				func(ctx context.Context, _ grant.ID, serving grant.ServingRecord, _ time.Duration) (grant.ServingRecord, error) {
					deadline, _ := ctx.Deadline()
					left = time.Until(deadline)
					return serving, nil
				})})
			if m.get(path); left != want {
				m.t.Errorf("with a timeout of %v, the renewal has %v, want %v", timeout, left, want)
			}
		})
	}
}

func TestServesTheRenewedToken(t *testing.T) {
	var f *fixture
	f = start(t, func(_ context.Context, id grant.ID, serving grant.ServingRecord, ttl time.Duration) (grant.ServingRecord, error) {
		if id != f.address.ID || ttl != 120*time.Second || serving.Access.Reveal() != token {
			t.Errorf("renewal of %s for %v", id, ttl)
		}
		serving.Access = secret.New("renewed")
		return serving, nil
	}, nil)
	if got := do(t, http.MethodGet, f.url(t), nil); got.status != 200 || got.body != "renewed" {
		t.Errorf("responded %d %q, want the new token", got.status, got.body)
	}
	forged := strings.Replace(f.url(t), string(f.address.ID)+"/", string(f.address.ID)+"/x", 1)
	if got := do(t, http.MethodGet, forged[:len(forged)-1], nil); got.status != 404 {
		t.Errorf("a wrong secret: responded %d", got.status)
	}
}

func TestNoTokenAvailable(t *testing.T) {
	var outcome error
	f := start(t, func(_ context.Context, _ grant.ID, serving grant.ServingRecord, _ time.Duration) (grant.ServingRecord, error) {
		return serving, outcome
	}, nil)
	for _, c := range []struct {
		name   string
		err    error
		status int
		after  string
	}{
		{"backing off", errors.Join(errors.New("Zoom is down"), &grant.BackoffError{For: 6500 * time.Millisecond}), 503, "7"},
		{"no time left", context.DeadlineExceeded, 503, "1"},
		{"anything else", errors.New("oops"), 503, "1"},
		{"gone", grant.ErrReauthorize, 410, ""},
		{"removed meanwhile", grant.ErrDeleting, 404, ""},
	} {
		outcome = c.err
		got := do(t, http.MethodGet, f.url(t), nil)
		if got.status != c.status || got.header.Get("Retry-After") != c.after {
			t.Errorf("%s: responded %d, Retry-After %q, want %d, %q", c.name, got.status, got.header.Get("Retry-After"), c.status, c.after)
		}
		if strings.Contains(got.body, token) {
			t.Errorf("%s: the response has the token", c.name)
		}
	}
}

func TestStoreDown(t *testing.T) {
	f := start(t, nil, nil)
	f.change(func(r *records) { r.err = errors.New("connection refused") })
	for _, u := range []string{f.url(t), f.url(t) + "x"} {
		if got := do(t, http.MethodGet, u, nil); got.status != 503 || got.header.Get("Retry-After") == "" || strings.Contains(got.body, "refused") {
			t.Errorf("responded %d %q", got.status, got.body)
		}
	}
	if f.logs.FilterMessage("no token available; responded 503").Len() != 2 {
		t.Error("the cause was not logged")
	}
}

func TestAbandonedCallback(t *testing.T) {
	arrived, left := make(chan struct{}), make(chan error, 1)
	f := start(t, func(ctx context.Context, _ grant.ID, serving grant.ServingRecord, _ time.Duration) (grant.ServingRecord, error) {
		close(arrived)
		<-ctx.Done()
		left <- ctx.Err()
		return serving, ctx.Err()
	}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-arrived
		cancel()
	}()
	if response, err := http.DefaultTransport.RoundTrip(request); err == nil {
		_ = response.Body.Close()
		t.Fatal("the callback got a response")
	}
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("waited until %v, want until the caller left", err)
	}
	f.server.Close() // waits for the handler
	f.wantCount(t, "abandoned", 1)
	if f.logs.Len() != 0 {
		t.Errorf("an abandoned callback was logged: %v", f.logs.All())
	}
}
