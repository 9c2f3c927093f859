package zoomtest_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tokenprovider/internal/zoomtest"
)

const (
	app      = zoomtest.DefaultClientID
	secret   = zoomtest.DefaultClientSecret
	callback = "https://app.example/callback?x=1"
)

// clock is a clock that tests advance.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) add(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

// fixture is a served [zoomtest.Zoom], with a client that follows no redirects.
type fixture struct {
	*zoomtest.Zoom
	t      *testing.T
	clock  *clock
	url    string
	client *http.Client
}

func start(t *testing.T, o zoomtest.Options) *fixture {
	c := &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	if o.Now == nil {
		o.Now = c.Now
	}
	z := zoomtest.New(o)
	server := httptest.NewServer(z)
	t.Cleanup(server.Close)
	client := server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &fixture{Zoom: z, t: t, clock: c, url: server.URL, client: client}
}

type response struct {
	status int
	header http.Header
	text   string
	json   map[string]any
}

func (a response) str(name string) string { s, _ := a.json[name].(string); return s }

func (g *fixture) do(r *http.Request) (response, error) {
	g.t.Helper()
	res, err := g.client.Do(r)
	if err != nil {
		return response{}, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return response{}, err
	}
	a := response{status: res.StatusCode, header: res.Header, text: string(text)}
	_ = json.Unmarshal(text, &a.json)
	return a, nil
}

func (g *fixture) must(r *http.Request) response {
	g.t.Helper()
	a, err := g.do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	return a
}

func (g *fixture) request(method, path, body string) *http.Request {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// form returns a POST request of the default app. pairs alternates names and values.
func (g *fixture) form(path string, pairs ...string) *http.Request {
	g.t.Helper()
	form := url.Values{}
	for pair := range slices.Chunk(pairs, 2) {
		form.Add(pair[0], pair[1])
	}
	r := g.request(http.MethodPost, path, form.Encode())
	r.SetBasicAuth(app, secret)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

func (g *fixture) refresh(token string) *http.Request {
	g.t.Helper()
	return g.form("/oauth/token", "grant_type", "refresh_token", "refresh_token", token)
}

func (g *fixture) exchange(code string, more ...string) *http.Request {
	g.t.Helper()
	return g.form("/oauth/token", append([]string{
		"grant_type", "authorization_code", "code", code, "redirect_uri", callback,
	}, more...)...)
}

func (g *fixture) me(access string) response {
	g.t.Helper()
	r := g.request(http.MethodGet, "/v2/users/me", "")
	r.Header.Set("Authorization", "Bearer "+access)
	return g.must(r)
}

func (g *fixture) wantError(a response, status int, code, reason string) {
	g.t.Helper()
	if a.status != status || a.str("error") != code || reason != "" && a.str("reason") != reason {
		g.t.Errorf("response %d %s, want %d %s %s", a.status, a.text, status, code, reason)
	}
}

func (g *fixture) wantInvalidGrant(r *http.Request) {
	g.t.Helper()
	g.wantError(g.must(r), 400, "invalid_grant", "Invalid Token!")
}

func (g *fixture) wantInvalidAccess(access string) {
	g.t.Helper()
	a := g.me(access)
	if a.status != 401 || a.json["code"] != 124.0 || a.str("message") != "Invalid access token." || g.IsLive(access) {
		g.t.Errorf("response %d %s (live: %v), want that of an invalid token", a.status, a.text, g.IsLive(access))
	}
}

func challenge(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestTokenResponse(t *testing.T) {
	g := start(t, zoomtest.Options{AccessTokenLifetime: 8 * time.Second})
	g.AddUser(zoomtest.User{ID: "ann", AccountID: "acme", Email: "ann@acme.example"})
	a := g.must(g.exchange(g.Consent(app, "ann", callback, "")))
	if a.status != 200 || a.str("token_type") != "bearer" || a.json["expires_in"] != 8.0 ||
		a.str("scope") == "" || a.str("api_url") == "" {
		t.Fatalf("response %d %s", a.status, a.text)
	}
	access, refresh := a.str("access_token"), a.str("refresh_token")
	for _, token := range []string{access, refresh} {
		head, _, _ := strings.Cut(token, ".")
		header, err := base64.RawURLEncoding.DecodeString(head)
		if err != nil || !json.Valid(header) || strings.Count(token, ".") != 2 || len(token) < 700 || len(token) > 900 {
			t.Errorf("%d bytes with header %q: not the format of Zoom's tokens", len(token), header)
		}
	}
	if access == refresh {
		t.Error("access and refresh token are equal")
	}
	me := g.me(access)
	if me.status != 200 || me.str("id") != "ann" || me.str("account_id") != "acme" || me.str("email") != "ann@acme.example" {
		t.Errorf("users/me: %d %s", me.status, me.text)
	}
	if u, left, ok := g.LookUpAccessToken(access); !ok || u.ID != "ann" || left != 8*time.Second {
		t.Errorf("user of the access token: %v %v %v", u, left, ok)
	}
	g.clock.add(8*time.Second - 1)
	if !g.IsLive(access) {
		t.Error("token is invalid before its expiry")
	}
	g.clock.add(1)
	g.wantInvalidAccess(access)
	g.SetAccessTokenLifetime(30 * time.Second)
	if a := g.must(g.refresh(refresh)); a.json["expires_in"] != 30.0 {
		t.Errorf("expires_in %v, want 30", a.json["expires_in"])
	}
}

func TestRefreshTokenWorksOnce(t *testing.T) {
	g := start(t, zoomtest.Options{})
	access1, refresh1 := g.Grant(app, "ann")
	a := g.must(g.refresh(refresh1))
	access2, refresh2 := a.str("access_token"), a.str("refresh_token")
	g.wantInvalidAccess(access1)
	if !g.IsLive(access2) || g.AcceptsRefreshToken(refresh1) || !g.AcceptsRefreshToken(refresh2) {
		t.Error("wrong tokens are valid")
	}
	g.wantInvalidGrant(g.refresh(refresh1))
	if !g.IsLive(access2) || !g.AcceptsRefreshToken(refresh2) {
		t.Error("a spent token ended the valid ones")
	}
	g.wantInvalidGrant(g.refresh("never issued"))
	g.clock.add(90 * 24 * time.Hour)
	g.wantInvalidGrant(g.refresh(refresh2))
	c := g.Counts()
	if c.Requests != 5 || c.Refreshes != 1 || c.SpentPresented != 1 || c.UnknownPresented != 2 ||
		c.ByStatus[200] != 1 || c.ByStatus[400] != 3 || c.ByStatus[401] != 1 {
		t.Errorf("counts %+v", c)
	}
	c.ByStatus[200] = 99
	if g.Counts().ByStatus[200] != 1 {
		t.Error("Counts returns a shared map")
	}
	if g.RefreshesOf("ann") != 1 || g.RefreshesOf("bob") != 0 {
		t.Error("wrong refreshes by user")
	}
}

// TestConcurrentRefresh: only one of many concurrent requests exchanges a refresh token.
func TestConcurrentRefresh(t *testing.T) {
	g := start(t, zoomtest.Options{})
	_, refresh := g.Grant(app, "ann")
	var group sync.WaitGroup
	for range 16 {
		r := g.refresh(refresh)
		group.Go(func() {
			if _, err := g.do(r); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if c := g.Counts(); c.Refreshes != 1 || c.SpentPresented != 15 {
		t.Errorf("counts %+v", c)
	}
}

func TestLiveAccessTokens(t *testing.T) {
	g := start(t, zoomtest.Options{LiveAccessTokens: 2})
	access1, refresh := g.Grant(app, "ann")
	a := g.must(g.refresh(refresh))
	if !g.IsLive(access1) {
		t.Error("the previous access token is invalid")
	}
	g.must(g.refresh(a.str("refresh_token")))
	g.wantInvalidAccess(access1)
	if !g.IsLive(a.str("access_token")) {
		t.Error("the second newest access token is invalid")
	}
}

func TestLenientPredecessor(t *testing.T) {
	g := start(t, zoomtest.Options{LenientPredecessor: true})
	_, first := g.Grant(app, "ann")
	lost := g.must(g.refresh(first)).str("refresh_token")
	if !g.AcceptsRefreshToken(first) {
		t.Fatal("the predecessor is invalid")
	}
	again := g.must(g.refresh(first))
	fresh := again.str("refresh_token")
	if again.status != 200 || fresh == lost || g.AcceptsRefreshToken(lost) || !g.AcceptsRefreshToken(fresh) {
		t.Fatalf("retry: status %d", again.status)
	}
	g.wantInvalidGrant(g.refresh(lost))
	if a := g.must(g.refresh(fresh)); a.status != 200 {
		t.Fatalf("new successor: status %d", a.status)
	}
	g.wantInvalidGrant(g.refresh(first))
	if c := g.Counts(); c.Refreshes != 3 || c.SpentPresented != 2 || c.UnknownPresented != 1 {
		t.Errorf("counts %+v", c)
	}
}

func TestCodeExchange(t *testing.T) {
	g := start(t, zoomtest.Options{Apps: map[string]string{app: secret, "other": "x"}})
	code := g.Consent(app, "ann", callback, "")
	g.wantInvalidGrant(g.form("/oauth/token", "grant_type", "authorization_code", "code", code, "redirect_uri", callback+"/"))
	g.wantInvalidGrant(g.form("/oauth/token", "grant_type", "authorization_code", "code", code))
	g.wantInvalidGrant(g.exchange(code, "code_verifier", "unexpected"))
	g.wantInvalidGrant(g.exchange("never issued"))
	g.wantInvalidGrant(g.exchange(g.Consent("other", "ann", callback, "")))
	if a := g.must(g.exchange(code)); a.status != 200 {
		t.Fatalf("response %d %s", a.status, a.text)
	}
	g.wantInvalidGrant(g.exchange(code))
	late := g.Consent(app, "ann", callback, "")
	g.clock.add(5 * time.Minute)
	g.wantInvalidGrant(g.exchange(late))
	g.wantInvalidGrant(g.exchange(code))
	if c := g.Counts(); c.Exchanges != 1 || c.SpentCodes != 2 {
		t.Errorf("counts %+v", c)
	}
}

func TestPKCE(t *testing.T) {
	g := start(t, zoomtest.Options{})
	code := g.Consent(app, "ann", callback, challenge("right"))
	g.wantInvalidGrant(g.exchange(code))
	g.wantInvalidGrant(g.exchange(code, "code_verifier", "wrong"))
	if a := g.must(g.exchange(code, "code_verifier", "right")); a.status != 200 {
		t.Errorf("response %d %s", a.status, a.text)
	}
}

func TestClientAuthentication(t *testing.T) {
	g := start(t, zoomtest.Options{Apps: map[string]string{app: secret, "other": "a+b"}})
	_, refresh := g.Grant(app, "ann")
	basic := func(id, password string) *http.Request {
		r := g.refresh(refresh)
		r.SetBasicAuth(id, password)
		return r
	}
	missing := g.form("/oauth/token", "grant_type", "refresh_token", "refresh_token", refresh,
		"client_id", app, "client_secret", secret)
	both := missing.Clone(t.Context())
	both.Body, _ = missing.GetBody()
	missing.Header.Del("Authorization")
	for _, r := range []*http.Request{missing, basic(app, "wrong"), basic("unknown", secret), basic(app, "%zz"), basic("", "")} {
		g.wantError(g.must(r), 401, "invalid_client", "Invalid client_id or client_secret")
	}
	g.wantError(g.must(both), 400, "invalid_request", "")
	if c := g.Counts(); c.InvalidClient != 5 {
		t.Errorf("counts %+v", c)
	}
	// RFC 6749, section 2.3.1: credentials are form-encoded. Another app's refresh token
	// is refused and remains valid.
	g.wantInvalidGrant(basic("other", url.QueryEscape("a+b")))
	g.SetClientSecret(app, "changed")
	g.wantError(g.must(g.refresh(refresh)), 401, "invalid_client", "")
	if a := g.must(basic(app, "changed")); a.status != 200 {
		t.Errorf("response %d %s", a.status, a.text)
	}
}

func TestMalformedTokenRequests(t *testing.T) {
	g := start(t, zoomtest.Options{})
	_, refresh := g.Grant(app, "ann")
	asJSON := g.refresh(refresh)
	asJSON.Header.Set("Content-Type", "application/json")
	untyped := g.refresh(refresh)
	untyped.Header.Del("Content-Type")
	long := g.form("/oauth/token", "refresh_token", strings.Repeat("x", 64<<10))
	twice := g.form("/oauth/token", "grant_type", "refresh_token", "refresh_token", refresh, "refresh_token", refresh)
	for _, r := range []*http.Request{asJSON, untyped, long, twice} {
		g.wantError(g.must(r), 400, "invalid_request", "")
	}
	inQuery := g.form("/oauth/token?grant_type=refresh_token&refresh_token=" + refresh)
	for _, r := range []*http.Request{inQuery, g.form("/oauth/token", "grant_type", "password")} {
		g.wantError(g.must(r), 400, "unsupported_grant_type", "")
	}
	if !g.AcceptsRefreshToken(refresh) {
		t.Error("a malformed request spent the refresh token")
	}
}

func TestUnknownPaths(t *testing.T) {
	g := start(t, zoomtest.Options{})
	for _, r := range []*http.Request{
		g.form("//oauth/token"), g.form("/oauth/token/"), g.form("/oauth/authorize"),
		g.request(http.MethodGet, "/oauth/token", ""), g.request(http.MethodGet, "/v2/users/you", ""),
	} {
		if a := g.must(r); a.status != 404 || a.json == nil {
			t.Errorf("%s %s: %d %s", r.Method, r.URL.Path, a.status, a.text)
		}
	}
	r := g.request(http.MethodGet, "/v2/users/me", "")
	if a := g.must(r); a.status != 401 {
		t.Errorf("users/me without a token: status %d", a.status)
	}
}

func TestAuthorize(t *testing.T) {
	g := start(t, zoomtest.Options{})
	consent := func(change ...string) response {
		query := url.Values{
			"response_type": {"code"}, "client_id": {app}, "redirect_uri": {callback}, "state": {"s&t"},
			"code_challenge": {challenge("v")}, "code_challenge_method": {"S256"},
		}
		for pair := range slices.Chunk(change, 2) {
			query.Del(pair[0])
			if pair[1] != "-" {
				query.Set(pair[0], pair[1])
			}
		}
		return g.must(g.request(http.MethodGet, "/oauth/authorize?"+query.Encode(), ""))
	}
	g.wantError(consent(), 400, "invalid_request", "no such user")
	g.AddUser(zoomtest.User{ID: "ann"})
	g.AddUser(zoomtest.User{ID: "bob"})
	for user, change := range map[string][]string{"ann": nil, "bob": {"login_hint", "bob"}} {
		a := consent(change...)
		to, err := url.Parse(a.header.Get("Location"))
		if err != nil || a.status != 302 || to.Host != "app.example" || to.Query().Get("state") != "s&t" || to.Query().Get("x") != "1" {
			t.Fatalf("response %d, redirect to %v", a.status, to)
		}
		tokens := g.must(g.exchange(to.Query().Get("code"), "code_verifier", "v"))
		if me := g.me(tokens.str("access_token")); me.str("id") != user {
			t.Errorf("users/me: %s, want %s", me.text, user)
		}
	}
	plain := consent("state", "-", "code_challenge", "-", "code_challenge_method", "-")
	if plain.status != 302 || strings.Contains(plain.header.Get("Location"), "state=") {
		t.Errorf("without state and PKCE: %d to %s", plain.status, plain.header.Get("Location"))
	}
	for _, change := range [][]string{
		{"response_type", "token"},
		{"response_type", "-"},
		{"client_id", "unknown"},
		{"client_id", "-"},
		{"redirect_uri", "-"},
		{"redirect_uri", "/callback"},
		{"redirect_uri", callback + "#f"},
		{"redirect_uri", "mailto:a"},
		{"code_challenge_method", "plain"},
		{"code_challenge_method", "-"},
		{"code_challenge", "-"},
		{"code_challenge", "short"},
		{"login_hint", "unknown"},
	} {
		if a := consent(change...); a.status != 400 || a.str("error") == "" {
			t.Errorf("%q: %d %s", change, a.status, a.text)
		}
	}
	twice := g.request(http.MethodGet, "/oauth/authorize?response_type=code&response_type=code", "")
	g.wantError(g.must(twice), 400, "invalid_request", "a parameter is repeated")
}

func TestRevoke(t *testing.T) {
	g := start(t, zoomtest.Options{Apps: map[string]string{app: secret, "other": "x"}})
	for _, which := range []int{0, 1} {
		access, refresh := g.Grant(app, "ann")
		token := []string{access, refresh}[which]
		if a := g.must(g.form("/oauth/revoke", "token", token)); a.status != 200 || a.str("status") != "success" {
			t.Fatalf("response %d %s", a.status, a.text)
		}
		g.wantInvalidAccess(access)
		g.wantInvalidGrant(g.refresh(refresh))
		g.wantError(g.must(g.form("/oauth/revoke", "token", token)), 400, "invalid_request", "")
	}
	access, _ := g.Grant("other", "ann")
	g.wantError(g.must(g.form("/oauth/revoke", "token", access)), 400, "invalid_request", "")
	unauthenticated := g.form("/oauth/revoke", "token", access)
	unauthenticated.Header.Del("Authorization")
	g.wantError(g.must(unauthenticated), 401, "invalid_client", "")
	if !g.IsLive(access) || g.Counts().Revocations != 2 {
		t.Errorf("counts %+v", g.Counts())
	}
}

func TestRevokeUser(t *testing.T) {
	g := start(t, zoomtest.Options{})
	access, refresh := g.Grant(app, "ann")
	code := g.Consent(app, "ann", callback, "")
	bobs, _ := g.Grant(app, "bob")
	g.RevokeUser("ann")
	g.wantInvalidAccess(access)
	g.wantInvalidGrant(g.refresh(refresh))
	g.wantInvalidGrant(g.exchange(code))
	if !g.IsLive(bobs) {
		t.Error("bob's access token is invalid")
	}
	if again, _ := g.Grant(app, "ann"); !g.IsLive(again) {
		t.Error("the access token of a new consent is invalid")
	}
}

func TestFaultDrops(t *testing.T) {
	g := start(t, zoomtest.Options{})
	_, refresh := g.Grant(app, "ann")
	g.Fail("/oauth/token", 1, zoomtest.Fault{DropBefore: true})
	g.Fail("/oauth/token", 1, zoomtest.Fault{DropAfter: true})
	for _, spent := range []bool{false, true} {
		if _, err := g.do(g.refresh(refresh)); err == nil {
			t.Fatal("got a response, want a closed connection")
		}
		if g.AcceptsRefreshToken(refresh) == spent {
			t.Errorf("refresh token spent: %v, want %v", !spent, spent)
		}
	}
	g.wantInvalidGrant(g.refresh(refresh)) // no idempotent retry: devforum 10375
	if c := g.Counts(); c.Requests != 3 || c.Refreshes != 1 || c.ByStatus[200] != 0 || c.ByStatus[400] != 1 {
		t.Errorf("counts %+v", c)
	}
}

func TestFaultStatus(t *testing.T) {
	g := start(t, zoomtest.Options{})
	access, refresh := g.Grant(app, "ann")
	g.Fail("/oauth/token", 2, zoomtest.Fault{Status: 429, Header: http.Header{"retry-after": {"2020-05-31T00:00:00Z"}}, Body: "slow"})
	g.Fail("/oauth/token", 0, zoomtest.Fault{Status: 418})
	g.Fail("/oauth/token", -1, zoomtest.Fault{Status: 503})
	for _, want := range []int{429, 429, 503, 503, 503} {
		a := g.must(g.refresh(refresh))
		if a.status != want || (want == 429) != (a.header.Get("Retry-After") == "2020-05-31T00:00:00Z" && a.text == "slow") {
			t.Errorf("response %d %v %s, want %d", a.status, a.header, a.text, want)
		}
	}
	if a := g.me(access); a.status != 200 {
		t.Errorf("another path: status %d", a.status)
	}
	g.Heal()
	g.Fail("/oauth/token", 1, zoomtest.Fault{Status: 400})
	g.wantError(g.must(g.refresh(refresh)), 400, "invalid_grant", "Invalid Token!")
	g.Fail("/oauth/token", 1, zoomtest.Fault{Status: 401})
	g.wantError(g.must(g.refresh(refresh)), 401, "invalid_client", "Invalid client_id or client_secret")
	g.Fail("/v2/users/me", 1, zoomtest.Fault{Status: 401})
	if a := g.me(access); a.status != 401 || a.json["code"] != 124.0 {
		t.Errorf("users/me: %d %s", a.status, a.text)
	}
	if a := g.must(g.refresh(refresh)); a.status != 200 {
		t.Errorf("a fault spent the refresh token: %d %s", a.status, a.text)
	}
}

func TestFaultFields(t *testing.T) {
	g := start(t, zoomtest.Options{})
	_, refresh := g.Grant(app, "ann")
	g.Fail("/oauth/token", 1, zoomtest.Fault{
		Omit: []string{"expires_in"}, Replace: map[string]any{"token_type": "odd", "scope": nil},
		Header: http.Header{"Content-Type": {"text/html"}},
	})
	a := g.must(g.refresh(refresh))
	if _, present := a.json["expires_in"]; present || a.str("token_type") != "odd" || a.json["scope"] != nil ||
		a.str("access_token") == "" || a.header.Get("Content-Type") != "text/html" {
		t.Errorf("response %v %s", a.header, a.text)
	}
	if a := g.must(g.refresh(a.str("refresh_token"))); a.json["expires_in"] != 3600.0 || a.str("token_type") != "bearer" {
		t.Errorf("next response %s", a.text)
	}
}

// TestLatency: Latency and Delay add up, before processing.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := zoomtest.New(zoomtest.Options{Latency: time.Second})
		access, _ := z.Grant(app, "ann")
		z.Fail("/v2/users/me", 1, zoomtest.Fault{Delay: 2 * time.Second})
		for _, want := range []time.Duration{3 * time.Second, time.Second} {
			r, _ := http.NewRequest(http.MethodGet, "/v2/users/me", nil) // a nil Body
			r.Header.Set("Authorization", "Bearer "+access)
			w, began := httptest.NewRecorder(), time.Now()
			z.ServeHTTP(w, r)
			if took := time.Since(began); took != want || w.Code != 200 {
				t.Errorf("status %d after %v, want %v", w.Code, took, want)
			}
		}
	})
}

// TestClientDisconnects: a client that disconnects during the wait has spent its token.
// server.Close returns long before the hour, so the wait ended with the connection.
func TestClientDisconnects(t *testing.T) {
	z := zoomtest.New(zoomtest.Options{})
	server := httptest.NewServer(z)
	_, refresh := z.Grant(app, "ann")
	z.Fail("/oauth/token", 1, zoomtest.Fault{Delay: time.Hour})
	ctx, disconnect := context.WithCancel(t.Context())
	g := &fixture{Zoom: z, t: t, url: server.URL, client: server.Client()}
	r := g.refresh(refresh).WithContext(ctx)
	result := make(chan error)
	go func() {
		_, err := g.client.Do(r)
		result <- err
	}()
	for z.Counts().Requests == 0 { // until the request has arrived
		time.Sleep(time.Millisecond)
	}
	disconnect()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
	server.Close()
	if z.AcceptsRefreshToken(refresh) || z.Counts().Refreshes != 1 {
		t.Error("the request was not processed")
	}
}
