package zoom_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/secret"
	"tokenprovider/internal/zoom"
	"tokenprovider/internal/zoomtest"
)

const redirect = "https://app.example/oauth?a=b&c=d e"

func parse(t *testing.T, raw string) *url.URL {
	t.Helper()
	parsed, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func client(t *testing.T, base, id, password string) *zoom.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return zoom.New(zoom.Config{
		ClientID: id, ClientSecret: secret.New(password), OAuthURL: parse(t, base), APIURL: parse(t, base),
		HTTP: &http.Client{Transport: transport},
	})
}

func start(t *testing.T, options zoomtest.Options) (*zoomtest.Zoom, *zoom.Client) {
	t.Helper()
	z := zoomtest.New(options)
	server := httptest.NewServer(z)
	t.Cleanup(server.Close)
	return z, client(t, server.URL, zoomtest.DefaultClientID, zoomtest.DefaultClientSecret)
}

func code(z *zoomtest.Zoom, challenge string) zoom.Code {
	return zoom.Code{Code: secret.New(z.Consent(zoomtest.DefaultClientID, "ann", redirect, challenge)), RedirectURI: redirect}
}

func TestExchangeRefreshRevoke(t *testing.T) {
	z, c := start(t, zoomtest.Options{})
	first, err := c.Exchange(t.Context(), code(z, ""))
	if err != nil || !z.IsLive(first.Access.Reveal()) || !z.AcceptsRefreshToken(first.Refresh.Reveal()) || first.Lifetime != time.Hour {
		t.Fatalf("exchanged for a token of %v, %v", first.Lifetime, err)
	}
	if user, err := c.Me(t.Context(), first.Access); err != nil || user != (zoom.User{ID: "ann", AccountID: "account-of-ann"}) {
		t.Errorf("Me = %+v, %v", user, err)
	}
	second, err := c.Refresh(t.Context(), first.Refresh)
	if err != nil || z.IsLive(first.Access.Reveal()) || !z.IsLive(second.Access.Reveal()) || second.Refresh.Equal(first.Refresh) {
		t.Fatalf("refreshing: %v", err)
	}
	if _, err := c.Me(t.Context(), first.Access); !errors.Is(err, zoom.ErrInvalidToken) {
		t.Errorf("a replaced access token: %v", err)
	}
	if _, err := c.Refresh(t.Context(), first.Refresh); !errors.Is(err, zoom.ErrInvalidGrant) {
		t.Errorf("a spent token: %v", err)
	}
	if err := c.Revoke(t.Context(), second.Refresh); err != nil || z.IsLive(second.Access.Reveal()) {
		t.Errorf("revoked: %v", err)
	}
	var refused *zoom.RefusedError
	if err := c.Revoke(t.Context(), second.Refresh); !errors.As(err, &refused) || refused.Temporary() {
		t.Errorf("revoked twice: %v", err)
	}
}

func TestExchangeRefused(t *testing.T) {
	const verifier, challenge = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM" // RFC 7636, appendix B
	z, c := start(t, zoomtest.Options{})
	good := code(z, challenge)
	for name, change := range map[string]func(*zoom.Code){
		"no verifier":    func(*zoom.Code) {},
		"wrong verifier": func(c *zoom.Code) { c.Verifier = secret.New(verifier[1:] + "x") },
		"other redirect": func(c *zoom.Code) { c.Verifier, c.RedirectURI = secret.New(verifier), redirect+"/" },
		"unknown code":   func(c *zoom.Code) { c.Code = secret.New("nonsense") },
	} {
		bad := good
		change(&bad)
		if _, err := c.Exchange(t.Context(), bad); !errors.Is(err, zoom.ErrInvalidGrant) {
			t.Errorf("%s: %v, want ErrInvalidGrant", name, err)
		}
	}
	good.Verifier = secret.New(verifier)
	if _, err := c.Exchange(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exchange(t.Context(), good); !errors.Is(err, zoom.ErrInvalidGrant) {
		t.Errorf("a spent code: %v", err)
	}
}

func TestAppCredentials(t *testing.T) {
	const id, password = "id:with/odd+characters%", "pass word:&="
	z := zoomtest.New(zoomtest.Options{Apps: map[string]string{id: password}})
	server := httptest.NewServer(z)
	defer server.Close()
	_, refresh := z.Grant(id, "ann")
	if _, err := client(t, server.URL, id, password).Refresh(t.Context(), secret.New(refresh)); err != nil {
		t.Errorf("odd characters: %v", err)
	}
	_, refresh = z.Grant(id, "ann")
	wrong := client(t, server.URL, id, "wrong")
	if _, err := wrong.Refresh(t.Context(), secret.New(refresh)); !errors.Is(err, zoom.ErrInvalidClient) {
		t.Errorf("a wrong secret: %v", err)
	}
	if err := wrong.Revoke(t.Context(), secret.New(refresh)); !errors.Is(err, zoom.ErrInvalidClient) {
		t.Errorf("a wrong secret: %v", err)
	}
	if !z.AcceptsRefreshToken(refresh) {
		t.Error("the token was spent")
	}
}

// TestErrorsByFault: each failure has its error. No request is sent twice, and no
// error quotes a secret or a body.
func TestErrorsByFault(t *testing.T) {
	soon := time.Now().Add(90 * time.Second).UTC()
	const body = `{"error":"hunter2 eyJ","reason":"hunter2"}`
	for name, c := range map[string]struct {
		fault zoomtest.Fault
		want  error // nil: a RefusedError
		wait  time.Duration
		spent bool
	}{
		"lost before":        {fault: zoomtest.Fault{DropBefore: true}, want: zoom.ErrUncertain},
		"lost after":         {fault: zoomtest.Fault{DropAfter: true}, want: zoom.ErrUncertain, spent: true},
		"garbage":            {fault: zoomtest.Fault{Status: 200, Body: "hunter2"}, want: zoom.ErrUncertain},
		"nothing in it":      {fault: zoomtest.Fault{Status: 200, Body: "{}"}, want: zoom.ErrUncertain},
		"500":                {fault: zoomtest.Fault{Status: 500, Body: body}},
		"400, another error": {fault: zoomtest.Fault{Status: 400, Body: body}},
		"429, seconds":       {fault: zoomtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"7"}}}, wait: 7 * time.Second},
		"429, HTTP date":     {fault: zoomtest.Fault{Status: 429, Header: http.Header{"Retry-After": {soon.Format(http.TimeFormat)}}}, wait: 90 * time.Second},
		"429, ISO 8601":      {fault: zoomtest.Fault{Status: 429, Header: http.Header{"Retry-After": {soon.Format(time.RFC3339)}}}, wait: 90 * time.Second},
		"500, invalid_grant": {fault: zoomtest.Fault{Status: 500, Body: `{"error":"invalid_grant"}`}},
		"a redirect":         {fault: zoomtest.Fault{Status: 307, Header: http.Header{"Location": {"/oauth/token"}}}},
	} {
		z, client := start(t, zoomtest.Options{})
		_, refresh := z.Grant(zoomtest.DefaultClientID, "ann")
		z.Fail("/oauth/token", 1, c.fault)
		_, err := client.Refresh(t.Context(), secret.New(refresh))
		var refused *zoom.RefusedError
		switch {
		case c.want != nil && !errors.Is(err, c.want):
			t.Errorf("%s: %v, want %v", name, err, c.want)
		case c.want == nil && !errors.As(err, &refused):
			t.Errorf("%s: %v, want a refusal", name, err)
		case c.want == nil && (refused.Status != c.fault.Status || refused.RetryAfter < c.wait-2*time.Second || refused.RetryAfter > c.wait || refused.Temporary() != (c.fault.Status == 429 || c.fault.Status >= 500)):
			t.Errorf("%s: %+v", name, refused)
		}
		if counts := z.Counts(); counts.Requests != 1 || z.AcceptsRefreshToken(refresh) == c.spent {
			t.Errorf("%s: %d requests, want 1; accepted: %v", name, counts.Requests, z.AcceptsRefreshToken(refresh))
		}
		if err == nil || strings.Contains(err.Error(), refresh) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), zoomtest.DefaultClientSecret) {
			t.Errorf("%s: the error has a secret or a body", name)
		}
	}
}

func TestNoServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + listener.Addr().String()
	_ = listener.Close()
	c := client(t, address, "id", "secret")
	if _, err := c.Refresh(t.Context(), secret.New("hunter2")); !errors.Is(err, zoom.ErrUnsent) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Refresh: %v, want ErrUnsent", err)
	}
	if _, err := c.Me(t.Context(), secret.New("hunter2")); !errors.Is(err, zoom.ErrUnsent) {
		t.Errorf("Me: %v, want ErrUnsent", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Refresh(ended, secret.New("hunter2")); !errors.Is(err, zoom.ErrUnsent) {
		t.Errorf("after the deadline: %v, want ErrUnsent", err)
	}
}

func TestSlowResponse(t *testing.T) {
	z, c := start(t, zoomtest.Options{})
	_, refresh := z.Grant(zoomtest.DefaultClientID, "ann")
	z.Fail("/oauth/token", 1, zoomtest.Fault{Delay: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Refresh(ctx, secret.New(refresh)); !errors.Is(err, zoom.ErrUncertain) || !strings.Contains(err.Error(), "time-out") {
		t.Errorf("Refresh: %v, want ErrUncertain after a time-out", err)
	}
}

func TestUnusualResponses(t *testing.T) {
	z, c := start(t, zoomtest.Options{})
	refresh := func(f zoomtest.Fault) (zoom.Tokens, secret.Text) {
		t.Helper()
		_, before := z.Grant(zoomtest.DefaultClientID, "ann")
		z.Fail("/oauth/token", 1, f)
		tokens, err := c.Refresh(t.Context(), secret.New(before))
		if err != nil {
			t.Fatal(err)
		}
		return tokens, secret.New(before)
	}
	if tokens, before := refresh(zoomtest.Fault{Omit: []string{"refresh_token"}}); !tokens.Refresh.Equal(before) {
		t.Error("without a new refresh token, the old one must be kept")
	}
	for name, f := range map[string]zoomtest.Fault{
		"missing":  {Omit: []string{"expires_in"}},
		"negative": {Replace: map[string]any{"expires_in": -5}},
		"absurd":   {Replace: map[string]any{"expires_in": 1 << 40}},
	} {
		if tokens, _ := refresh(f); tokens.Lifetime != zoom.DefaultLifetime {
			t.Errorf("expires_in %s: a lifetime of %v, want %v", name, tokens.Lifetime, zoom.DefaultLifetime)
		}
	}
	if tokens, _ := refresh(zoomtest.Fault{Replace: map[string]any{"expires_in": 24 * 60 * 60}}); tokens.Lifetime != 24*time.Hour {
		t.Errorf("the longest plausible lifetime is read as %v", tokens.Lifetime)
	}
	z.Fail("/oauth/token", 1, zoomtest.Fault{Omit: []string{"refresh_token"}})
	if _, err := c.Exchange(t.Context(), code(z, "")); !errors.Is(err, zoom.ErrUncertain) {
		t.Errorf("an exchange without a refresh token: %v", err)
	}
	z.Fail("/v2/users/me", 1, zoomtest.Fault{Status: 200, Body: `{}`})
	access, _ := z.Grant(zoomtest.DefaultClientID, "ann")
	if _, err := c.Me(t.Context(), secret.New(access)); !errors.Is(err, zoom.ErrUncertain) {
		t.Errorf("a user without an id: %v", err)
	}
}

// TestTwoSecrets: while a client secret is replaced at Zoom, the settings have the old
// and the new one, and either may be the valid one.
func TestTwoSecrets(t *testing.T) {
	z, _ := start(t, zoomtest.Options{})
	server := httptest.NewServer(z)
	t.Cleanup(server.Close)
	c := client(t, server.URL, zoomtest.DefaultClientID, "not-yet-at-zoom, "+zoomtest.DefaultClientSecret)
	first, err := c.Exchange(t.Context(), code(z, ""))
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Refresh(t.Context(), first.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Revoke(t.Context(), second.Refresh); err != nil {
		t.Error(err)
	}
	// The wrong one was tried once, and spent no token.
	if counts := z.Counts(); counts.InvalidClient != 1 || counts.SpentCodes+counts.SpentPresented+counts.UnknownPresented != 0 {
		t.Errorf("requests at Zoom: %+v", counts)
	}
	if _, err := client(t, server.URL, zoomtest.DefaultClientID, "one,two").Refresh(t.Context(), secret.New("x")); !errors.Is(err, zoom.ErrInvalidClient) {
		t.Errorf("two wrong secrets: %v", err)
	}
}

// TestHostsPerApp: two apps in one process have hosts of their own, also for the API.
func TestHostsPerApp(t *testing.T) {
	type host struct {
		zoom *zoomtest.Zoom
		url  *url.URL
	}
	serve := func() host {
		z := zoomtest.New(zoomtest.Options{})
		server := httptest.NewServer(z)
		t.Cleanup(server.Close)
		return host{z, parse(t, server.URL)}
	}
	shared := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, app := range []struct{ user string }{{"ann"}, {"bob"}} {
		oauth, api := serve(), serve()
		c := zoom.New(zoom.Config{
			ClientID: zoomtest.DefaultClientID, ClientSecret: secret.New(zoomtest.DefaultClientSecret),
			OAuthURL: oauth.url, APIURL: api.url, HTTP: shared,
		})
		_, refresh := oauth.zoom.Grant(zoomtest.DefaultClientID, app.user)
		tokens, err := c.Refresh(t.Context(), secret.New(refresh))
		if err != nil || !oauth.zoom.IsLive(tokens.Access.Reveal()) {
			t.Fatalf("%s: %v", app.user, err)
		}
		access, _ := api.zoom.Grant(zoomtest.DefaultClientID, app.user)
		if user, err := c.Me(t.Context(), secret.New(access)); err != nil || user.ID != app.user {
			t.Errorf("%s: Me = %+v, %v", app.user, user, err)
		}
		if err := c.Revoke(t.Context(), tokens.Refresh); err != nil {
			t.Errorf("%s: %v", app.user, err)
		}
		if o, a := oauth.zoom.Counts().Requests, api.zoom.Counts().Requests; o != 2 || a != 1 {
			t.Errorf("%s: %d requests at the OAuth host and %d at the API host, want 2 and 1", app.user, o, a)
		}
	}
}

// TestRefusedErrorCode: an error has the OAuth code of the response only if it is a
// plain one.
func TestRefusedErrorCode(t *testing.T) {
	z, c := start(t, zoomtest.Options{})
	longest := strings.Repeat("a", 40)
	for code, want := range map[string]string{"slow_down": "slow_down", longest: longest, longest + "a": "", "Slow down": ""} {
		z.Fail("/oauth/token", 1, zoomtest.Fault{Status: 400, Body: `{"error":"` + code + `"}`})
		_, err := c.Refresh(t.Context(), secret.New("x"))
		var refused *zoom.RefusedError
		if !errors.As(err, &refused) || refused.Code != want {
			t.Errorf("code %q: %v, want the code %q", code, err, want)
		}
	}
	z.Fail("/v2/users/me", 1, zoomtest.Fault{Status: 400, Body: `{"code":124}`})
	if _, err := c.Me(t.Context(), secret.New("x")); err == nil || errors.Is(err, zoom.ErrInvalidToken) {
		t.Errorf("code 124 with status 400: %v, want a RefusedError", err)
	}
}
