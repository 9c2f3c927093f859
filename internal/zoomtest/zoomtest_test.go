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

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) add(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

// rig is a stand-in that is served, with a client that follows no redirect.
type rig struct {
	*zoomtest.Zoom
	t      *testing.T
	clock  *clock
	url    string
	client *http.Client
}

func start(t *testing.T, o zoomtest.Options) *rig {
	c := &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	if o.Now == nil {
		o.Now = c.Now
	}
	z := zoomtest.New(o)
	server := httptest.NewServer(z)
	t.Cleanup(server.Close)
	client := server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &rig{Zoom: z, t: t, clock: c, url: server.URL, client: client}
}

type answer struct {
	status int
	header http.Header
	text   string
	json   map[string]any
}

func (a answer) str(name string) string { s, _ := a.json[name].(string); return s }

func (g *rig) do(r *http.Request) (answer, error) {
	g.t.Helper()
	res, err := g.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: res.StatusCode, header: res.Header, text: string(text)}
	_ = json.Unmarshal(text, &a.json)
	return a, nil
}

func (g *rig) must(r *http.Request) answer {
	g.t.Helper()
	a, err := g.do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	return a
}

func (g *rig) request(method, path, body string) *http.Request {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// form is a POST by the default app, of names and values in turn.
func (g *rig) form(path string, pairs ...string) *http.Request {
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

func (g *rig) refresh(token string) *http.Request {
	g.t.Helper()
	return g.form("/oauth/token", "grant_type", "refresh_token", "refresh_token", token)
}

func (g *rig) exchange(code string, more ...string) *http.Request {
	g.t.Helper()
	return g.form("/oauth/token", append([]string{
		"grant_type", "authorization_code", "code", code, "redirect_uri", callback,
	}, more...)...)
}

func (g *rig) me(access string) answer {
	g.t.Helper()
	r := g.request(http.MethodGet, "/v2/users/me", "")
	r.Header.Set("Authorization", "Bearer "+access)
	return g.must(r)
}

func (g *rig) refused(a answer, status int, code, reason string) {
	g.t.Helper()
	if a.status != status || a.str("error") != code || reason != "" && a.str("reason") != reason {
		g.t.Errorf("answer %d %s, want %d %s %s", a.status, a.text, status, code, reason)
	}
}

func (g *rig) invalidGrant(r *http.Request) {
	g.t.Helper()
	g.refused(g.must(r), 400, "invalid_grant", "Invalid Token!")
}

func (g *rig) dead(access string) {
	g.t.Helper()
	a := g.me(access)
	if a.status != 401 || a.json["code"] != 124.0 || a.str("message") != "Invalid access token." || g.IsLive(access) {
		g.t.Errorf("answer %d %s (live: %v), want a dead token's", a.status, a.text, g.IsLive(access))
	}
}

func challenge(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestTokenAnswer(t *testing.T) {
	g := start(t, zoomtest.Options{AccessTokenLifetime: 8 * time.Second})
	g.AddUser(zoomtest.User{ID: "ann", AccountID: "acme", Email: "ann@acme.example"})
	a := g.must(g.exchange(g.Consent(app, "ann", callback, "")))
	if a.status != 200 || a.str("token_type") != "bearer" || a.json["expires_in"] != 8.0 ||
		a.str("scope") == "" || a.str("api_url") == "" {
		t.Fatalf("answer %d %s", a.status, a.text)
	}
	access, refresh := a.str("access_token"), a.str("refresh_token")
	for _, token := range []string{access, refresh} {
		head, _, _ := strings.Cut(token, ".")
		header, err := base64.RawURLEncoding.DecodeString(head)
		if err != nil || !json.Valid(header) || strings.Count(token, ".") != 2 || len(token) < 700 || len(token) > 900 {
			t.Errorf("%d bytes with header %q: does not look like Zoom's", len(token), header)
		}
	}
	if access == refresh {
		t.Error("two tokens are one")
	}
	who := g.me(access)
	if who.status != 200 || who.str("id") != "ann" || who.str("account_id") != "acme" || who.str("email") != "ann@acme.example" {
		t.Errorf("me: %d %s", who.status, who.text)
	}
	if u, left, ok := g.LookUpAccessToken(access); !ok || u.ID != "ann" || left != 8*time.Second {
		t.Errorf("whose: %v %v %v", u, left, ok)
	}
	g.clock.add(8*time.Second - 1)
	if !g.IsLive(access) {
		t.Error("dead before its time")
	}
	g.clock.add(1)
	g.dead(access)
	g.SetAccessTokenLife(30 * time.Second)
	if a := g.must(g.refresh(refresh)); a.json["expires_in"] != 30.0 {
		t.Errorf("expires_in %v, want 30", a.json["expires_in"])
	}
}

func TestRefreshTokenWorksOnce(t *testing.T) {
	g := start(t, zoomtest.Options{})
	access1, refresh1 := g.Grant(app, "ann")
	a := g.must(g.refresh(refresh1))
	access2, refresh2 := a.str("access_token"), a.str("refresh_token")
	g.dead(access1)
	if !g.IsLive(access2) || g.AcceptsRefreshToken(refresh1) || !g.AcceptsRefreshToken(refresh2) {
		t.Error("the wrong tokens work")
	}
	g.invalidGrant(g.refresh(refresh1))
	if !g.IsLive(access2) || !g.AcceptsRefreshToken(refresh2) {
		t.Error("a spent token presented did harm")
	}
	g.invalidGrant(g.refresh("never issued"))
	g.clock.add(90 * 24 * time.Hour)
	g.invalidGrant(g.refresh(refresh2))
	c := g.Counts()
	if c.Requests != 5 || c.Refreshes != 1 || c.SpentPresented != 1 || c.UnknownPresented != 2 ||
		c.ByStatus[200] != 1 || c.ByStatus[400] != 3 || c.ByStatus[401] != 1 {
		t.Errorf("counts %+v", c)
	}
	c.ByStatus[200] = 99
	if g.Counts().ByStatus[200] != 1 {
		t.Error("counts are shared")
	}
	if g.RefreshesOf("ann") != 1 || g.RefreshesOf("bob") != 0 {
		t.Error("refreshes by user")
	}
}

// However many ask at once, one refresh token is exchanged once.
func TestRefreshRace(t *testing.T) {
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
		t.Error("the one before is dead")
	}
	g.must(g.refresh(a.str("refresh_token")))
	g.dead(access1)
	if !g.IsLive(a.str("access_token")) {
		t.Error("the second newest is dead")
	}
}

func TestLenientPredecessor(t *testing.T) {
	g := start(t, zoomtest.Options{LenientPredecessor: true})
	_, first := g.Grant(app, "ann")
	lost := g.must(g.refresh(first)).str("refresh_token")
	if !g.AcceptsRefreshToken(first) {
		t.Fatal("the predecessor is dead")
	}
	again := g.must(g.refresh(first))
	fresh := again.str("refresh_token")
	if again.status != 200 || fresh == lost || g.AcceptsRefreshToken(lost) || !g.AcceptsRefreshToken(fresh) {
		t.Fatalf("the retry answered %d", again.status)
	}
	g.invalidGrant(g.refresh(lost))
	if a := g.must(g.refresh(fresh)); a.status != 200 {
		t.Fatalf("the fresh successor: %d", a.status)
	}
	g.invalidGrant(g.refresh(first))
	if c := g.Counts(); c.Refreshes != 3 || c.SpentPresented != 2 || c.UnknownPresented != 1 {
		t.Errorf("counts %+v", c)
	}
}

func TestCode(t *testing.T) {
	g := start(t, zoomtest.Options{Apps: map[string]string{app: secret, "other": "x"}})
	code := g.Consent(app, "ann", callback, "")
	g.invalidGrant(g.form("/oauth/token", "grant_type", "authorization_code", "code", code, "redirect_uri", callback+"/"))
	g.invalidGrant(g.form("/oauth/token", "grant_type", "authorization_code", "code", code))
	g.invalidGrant(g.exchange(code, "code_verifier", "unasked"))
	g.invalidGrant(g.exchange("never issued"))
	g.invalidGrant(g.exchange(g.Consent("other", "ann", callback, "")))
	if a := g.must(g.exchange(code)); a.status != 200 {
		t.Fatalf("answer %d %s", a.status, a.text)
	}
	g.invalidGrant(g.exchange(code))
	late := g.Consent(app, "ann", callback, "")
	g.clock.add(5 * time.Minute)
	g.invalidGrant(g.exchange(late))
	g.invalidGrant(g.exchange(code))
	if c := g.Counts(); c.Exchanges != 1 || c.SpentCodes != 2 {
		t.Errorf("counts %+v", c)
	}
}

func TestPKCE(t *testing.T) {
	g := start(t, zoomtest.Options{})
	code := g.Consent(app, "ann", callback, challenge("right"))
	g.invalidGrant(g.exchange(code))
	g.invalidGrant(g.exchange(code, "code_verifier", "wrong"))
	if a := g.must(g.exchange(code, "code_verifier", "right")); a.status != 200 {
		t.Errorf("answer %d %s", a.status, a.text)
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
	for _, r := range []*http.Request{missing, basic(app, "wrong"), basic("nobody", secret), basic(app, "%zz"), basic("", "")} {
		g.refused(g.must(r), 401, "invalid_client", "Invalid client_id or client_secret")
	}
	g.refused(g.must(both), 400, "invalid_request", "")
	if c := g.Counts(); c.InvalidClient != 5 {
		t.Errorf("counts %+v", c)
	}
	// RFC 6749, section 2.3.1: credentials are form-encoded first. Another
	// app's refresh token is refused, and stays whole.
	g.invalidGrant(basic("other", url.QueryEscape("a+b")))
	g.SetClientSecret(app, "changed")
	g.refused(g.must(g.refresh(refresh)), 401, "invalid_client", "")
	if a := g.must(basic(app, "changed")); a.status != 200 {
		t.Errorf("answer %d %s", a.status, a.text)
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
		g.refused(g.must(r), 400, "invalid_request", "")
	}
	inQuery := g.form("/oauth/token?grant_type=refresh_token&refresh_token=" + refresh)
	for _, r := range []*http.Request{inQuery, g.form("/oauth/token", "grant_type", "password")} {
		g.refused(g.must(r), 400, "unsupported_grant_type", "")
	}
	if !g.AcceptsRefreshToken(refresh) {
		t.Error("a malformed request spent the token")
	}
}

func TestOtherPaths(t *testing.T) {
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
		t.Errorf("me without a token: %d", a.status)
	}
}

func TestAuthorize(t *testing.T) {
	g := start(t, zoomtest.Options{})
	consent := func(change ...string) answer {
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
	g.refused(consent(), 400, "invalid_request", "no such user")
	g.AddUser(zoomtest.User{ID: "ann"})
	g.AddUser(zoomtest.User{ID: "bob"})
	for user, change := range map[string][]string{"ann": nil, "bob": {"login_hint", "bob"}} {
		a := consent(change...)
		to, err := url.Parse(a.header.Get("Location"))
		if err != nil || a.status != 302 || to.Host != "app.example" || to.Query().Get("state") != "s&t" || to.Query().Get("x") != "1" {
			t.Fatalf("answer %d to %v", a.status, to)
		}
		tokens := g.must(g.exchange(to.Query().Get("code"), "code_verifier", "v"))
		if who := g.me(tokens.str("access_token")); who.str("id") != user {
			t.Errorf("me: %s, want %s", who.text, user)
		}
	}
	plain := consent("state", "-", "code_challenge", "-", "code_challenge_method", "-")
	if plain.status != 302 || strings.Contains(plain.header.Get("Location"), "state=") {
		t.Errorf("without state and PKCE: %d to %s", plain.status, plain.header.Get("Location"))
	}
	for _, change := range [][]string{
		{"response_type", "token"},
		{"response_type", "-"},
		{"client_id", "nobody"},
		{"client_id", "-"},
		{"redirect_uri", "-"},
		{"redirect_uri", "/callback"},
		{"redirect_uri", callback + "#f"},
		{"redirect_uri", "mailto:a"},
		{"code_challenge_method", "plain"},
		{"code_challenge_method", "-"},
		{"code_challenge", "-"},
		{"code_challenge", "short"},
		{"login_hint", "nobody"},
	} {
		if a := consent(change...); a.status != 400 || a.str("error") == "" {
			t.Errorf("%q: %d %s", change, a.status, a.text)
		}
	}
	twice := g.request(http.MethodGet, "/oauth/authorize?response_type=code&response_type=code", "")
	g.refused(g.must(twice), 400, "invalid_request", "a parameter is repeated")
}

func TestRevoke(t *testing.T) {
	g := start(t, zoomtest.Options{Apps: map[string]string{app: secret, "other": "x"}})
	for _, which := range []int{0, 1} {
		access, refresh := g.Grant(app, "ann")
		token := []string{access, refresh}[which]
		if a := g.must(g.form("/oauth/revoke", "token", token)); a.status != 200 || a.str("status") != "success" {
			t.Fatalf("answer %d %s", a.status, a.text)
		}
		g.dead(access)
		g.invalidGrant(g.refresh(refresh))
		g.refused(g.must(g.form("/oauth/revoke", "token", token)), 400, "invalid_request", "")
	}
	access, _ := g.Grant("other", "ann")
	g.refused(g.must(g.form("/oauth/revoke", "token", access)), 400, "invalid_request", "")
	unauthenticated := g.form("/oauth/revoke", "token", access)
	unauthenticated.Header.Del("Authorization")
	g.refused(g.must(unauthenticated), 401, "invalid_client", "")
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
	g.dead(access)
	g.invalidGrant(g.refresh(refresh))
	g.invalidGrant(g.exchange(code))
	if !g.IsLive(bobs) {
		t.Error("bob's grant is dead")
	}
	if again, _ := g.Grant(app, "ann"); !g.IsLive(again) {
		t.Error("a new consent does not work")
	}
}

func TestFaultDrops(t *testing.T) {
	g := start(t, zoomtest.Options{})
	_, refresh := g.Grant(app, "ann")
	g.Fail("/oauth/token", 1, zoomtest.Fault{DropBefore: true})
	g.Fail("/oauth/token", 1, zoomtest.Fault{DropAfter: true})
	for _, spent := range []bool{false, true} {
		if _, err := g.do(g.refresh(refresh)); err == nil {
			t.Fatal("an answer")
		}
		if g.AcceptsRefreshToken(refresh) == spent {
			t.Errorf("spent: %v, want %v", !spent, spent)
		}
	}
	g.invalidGrant(g.refresh(refresh)) // no idempotent retry: devforum 10375
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
			t.Errorf("answer %d %v %s, want %d", a.status, a.header, a.text, want)
		}
	}
	if a := g.me(access); a.status != 200 {
		t.Errorf("another path: %d", a.status)
	}
	g.Heal()
	g.Fail("/oauth/token", 1, zoomtest.Fault{Status: 400})
	g.refused(g.must(g.refresh(refresh)), 400, "invalid_grant", "Invalid Token!")
	g.Fail("/oauth/token", 1, zoomtest.Fault{Status: 401})
	g.refused(g.must(g.refresh(refresh)), 401, "invalid_client", "Invalid client_id or client_secret")
	g.Fail("/v2/users/me", 1, zoomtest.Fault{Status: 401})
	if a := g.me(access); a.status != 401 || a.json["code"] != 124.0 {
		t.Errorf("me: %d %s", a.status, a.text)
	}
	if a := g.must(g.refresh(refresh)); a.status != 200 {
		t.Errorf("the faults did work: %d %s", a.status, a.text)
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
	if _, there := a.json["expires_in"]; there || a.str("token_type") != "odd" || a.json["scope"] != nil ||
		a.str("access_token") == "" || a.header.Get("Content-Type") != "text/html" {
		t.Errorf("answer %v %s", a.header, a.text)
	}
	if a := g.must(g.refresh(a.str("refresh_token"))); a.json["expires_in"] != 3600.0 || a.str("token_type") != "bearer" {
		t.Errorf("the next answer %s", a.text)
	}
}

// Latency and Delay add up, and pass before the work.
func TestWait(t *testing.T) {
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
				t.Errorf("%d after %v, want %v", w.Code, took, want)
			}
		}
	})
}

// A client that leaves during the wait has spent its token all the same. That
// the server closes at once, long before the hour is over, shows that the wait
// has ended with the client.
func TestClientLeaves(t *testing.T) {
	z := zoomtest.New(zoomtest.Options{})
	server := httptest.NewServer(z)
	_, refresh := z.Grant(app, "ann")
	z.Fail("/oauth/token", 1, zoomtest.Fault{Delay: time.Hour})
	ctx, leave := context.WithCancel(t.Context())
	g := &rig{Zoom: z, t: t, url: server.URL, client: server.Client()}
	r := g.refresh(refresh).WithContext(ctx)
	left := make(chan error)
	go func() {
		_, err := g.client.Do(r)
		left <- err
	}()
	for z.Counts().Requests == 0 { // until it has arrived
		time.Sleep(time.Millisecond)
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
	server.Close()
	if z.AcceptsRefreshToken(refresh) || z.Counts().Refreshes != 1 {
		t.Error("the work was not done")
	}
}
