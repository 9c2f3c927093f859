package zoomtest

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// route processes a request. A ServeMux would redirect "//oauth/token" and so hide a
// badly joined URL.
func (z *Zoom) route(w http.ResponseWriter, r *http.Request, f Fault) {
	switch r.Method + " " + r.URL.Path {
	case "GET /oauth/authorize":
		z.authorize(w, r)
	case "POST /oauth/token":
		z.token(w, r, f)
	case "POST /oauth/revoke":
		z.revoke(w, r)
	case "GET /v2/users/me":
		z.me(w, r)
	default:
		reply(w, http.StatusNotFound, map[string]any{"code": 404, "message": "not found"})
	}
}

func reply(w http.ResponseWriter, status int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, code, reason string) {
	reply(w, status, map[string]any{"reason": reason, "error": code})
}

// authorize serves the consent page. The user whom login_hint names, or else the first
// one, consents immediately.
func (z *Zoom) authorize(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	redirect, err := url.Parse(query.Get("redirect_uri"))
	pkce := query.Has("code_challenge") || query.Has("code_challenge_method")
	z.mu.Lock()
	_, app := z.options.Apps[query.Get("client_id")]
	userID := query.Get("login_hint")
	if userID == "" {
		userID = z.first
	}
	_, user := z.users[userID]
	z.mu.Unlock()
	switch {
	case repeated(query):
		refuse(w, http.StatusBadRequest, "invalid_request", "a parameter is repeated")
	case query.Get("response_type") != "code":
		refuse(w, http.StatusBadRequest, "unsupported_response_type", "response_type must be code")
	case !app:
		refuse(w, http.StatusBadRequest, "invalid_client", "Invalid client_id")
	case err != nil || !redirect.IsAbs() || redirect.Host == "" || redirect.Fragment != "":
		refuse(w, http.StatusBadRequest, "invalid_request", "redirect_uri must be an absolute URL without a fragment")
	case pkce && query.Get("code_challenge_method") != "S256":
		refuse(w, http.StatusBadRequest, "invalid_request", "code_challenge_method must be S256")
	case pkce && len(query.Get("code_challenge")) != len(s256("")):
		refuse(w, http.StatusBadRequest, "invalid_request", "code_challenge must be a base64url SHA-256")
	case !user:
		refuse(w, http.StatusBadRequest, "invalid_request", "no such user")
	default:
		target := redirect.Query()
		target.Set("code", z.Consent(query.Get("client_id"), userID, query.Get("redirect_uri"), query.Get("code_challenge")))
		if query.Has("state") {
			target.Set("state", query.Get("state"))
		}
		redirect.RawQuery = target.Encode()
		http.Redirect(w, r, redirect.String(), http.StatusFound)
	}
}

// form authenticates the app by HTTP Basic and parses the form. If ok is false, it has
// sent the error response.
func (z *Zoom) form(w http.ResponseWriter, r *http.Request) (client string, form url.Values, ok bool) {
	id, password, basic := r.BasicAuth()
	client, errID := url.QueryUnescape(id) // RFC 6749, section 2.3.1
	secret, errSecret := url.QueryUnescape(password)
	z.mu.Lock()
	want, known := z.options.Apps[client]
	authentic := basic && errID == nil && errSecret == nil && known && equal(secret, want)
	if !authentic {
		z.counts.InvalidClient++
	}
	z.mu.Unlock()
	if !authentic {
		refuse(w, http.StatusUnauthorized, "invalid_client", invalidClient)
		return "", nil, false
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/x-www-form-urlencoded" {
		refuse(w, http.StatusBadRequest, "invalid_request", "the body must be form-encoded")
		return "", nil, false
	}
	if err := r.ParseForm(); err != nil || repeated(r.PostForm) || r.PostForm.Has("client_secret") {
		refuse(w, http.StatusBadRequest, "invalid_request", "bad form, a repeated field, or credentials in it")
		return "", nil, false
	}
	return client, r.PostForm, true
}

// repeated reports whether a parameter is given twice (RFC 6749, section 3.1).
func repeated(form url.Values) bool {
	for _, values := range form {
		if len(values) > 1 {
			return true
		}
	}
	return false
}

// The messages of Zoom's error responses.
const (
	invalidToken  = "Invalid Token!"
	invalidClient = "Invalid client_id or client_secret"
	invalidAccess = "Invalid access token."
)

func (z *Zoom) token(w http.ResponseWriter, r *http.Request, fault Fault) {
	client, form, ok := z.form(w, r)
	if !ok {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	var g *grant
	switch form.Get("grant_type") {
	case "authorization_code":
		g = z.exchangeLocked(client, form)
	case "refresh_token":
		g = z.refreshLocked(client, form.Get("refresh_token"))
	default:
		refuse(w, http.StatusBadRequest, "unsupported_grant_type", "Invalid grant_type")
		return
	}
	if g == nil {
		refuse(w, http.StatusBadRequest, "invalid_grant", invalidToken)
		return
	}
	access, refresh := z.issueLocked(g)
	response := map[string]any{
		"access_token": access, "refresh_token": refresh, "token_type": "bearer",
		"expires_in": int(z.options.AccessTokenLifetime / time.Second),
		"scope":      "user:read:token user:read:zak", "api_url": "https://api.zoom.us",
	}
	for name, value := range fault.Replace {
		response[name] = value
	}
	for _, name := range fault.Omit {
		delete(response, name)
	}
	reply(w, http.StatusOK, response)
}

// exchangeLocked spends a code and returns its grant, or nil if the code is invalid.
func (z *Zoom) exchangeLocked(client string, form url.Values) *grant {
	c := z.codes[form.Get("code")]
	if c == nil || c.client != client {
		return nil
	}
	if c.spent {
		z.counts.SpentCodes++
		return nil
	}
	if !z.now().Before(c.expires) {
		return nil
	}
	verifier := form.Get("code_verifier")
	if c.redirect != form.Get("redirect_uri") || (c.challenge != "" || verifier != "") && c.challenge != s256(verifier) {
		return nil
	}
	c.spent = true
	z.counts.Exchanges++
	return &grant{client: client, user: c.user}
}

// refreshLocked spends a refresh token and returns its grant, or nil if the token is
// invalid. Only the latest token of a grant is valid (devforum 10375, 77706).
func (z *Zoom) refreshLocked(client, token string) *grant {
	r := z.refresh[token]
	switch {
	case r == nil || r.grant.client != client:
		z.counts.UnknownPresented++
		return nil
	case r.spent:
		z.counts.SpentPresented++
	}
	if !z.acceptsLocked(r) {
		if !r.spent {
			z.counts.UnknownPresented++
		}
		return nil
	}
	if r.spent { // only with LenientPredecessor: the lost successor becomes void
		r.grant.newest.void = true
		r.grant.newest = r
	}
	r.spent = true
	z.counts.Refreshes++
	z.renewed[r.grant.user]++
	return r.grant
}

func (z *Zoom) revoke(w http.ResponseWriter, r *http.Request) {
	client, form, ok := z.form(w, r)
	if !ok {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	var g *grant
	if a := z.access[form.Get("token")]; a != nil {
		g = a.grant
	} else if r := z.refresh[form.Get("token")]; r != nil {
		g = r.grant
	}
	if g == nil || g.client != client || g.revoked {
		refuse(w, http.StatusBadRequest, "invalid_request", invalidToken)
		return
	}
	g.revoked = true
	z.counts.Revocations++
	reply(w, http.StatusOK, map[string]any{"status": "success"})
}

func (z *Zoom) me(w http.ResponseWriter, r *http.Request) {
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	user, _, live := z.LookUpAccessToken(token)
	if !bearer || !live {
		reply(w, http.StatusUnauthorized, map[string]any{"code": 124, "message": invalidAccess})
		return
	}
	reply(w, http.StatusOK, map[string]any{"id": user.ID, "account_id": user.AccountID, "email": user.Email, "type": 2})
}
