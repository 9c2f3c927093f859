package recalltest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// stored is a credential with its place in the order of lists.
type stored struct {
	Credential
	seq int
}

// body is the credential as JSON has it.
func (c Credential) body() any {
	return map[string]any{
		"id":                        c.ID,
		"oauth_app":                 c.OAuthApp,
		"access_token_callback_url": orNull(c.AccessTokenCallbackURL),
		"status":                    c.Status,
		"user_id":                   orNull(c.UserID),
		"account_id":                orNull(c.AccountID),
		"created_at":                timestamp(c.CreatedAt),
		"meeting_sync_status":       c.MeetingSyncStatus,
	}
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func timestamp(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00")
}

// handle routes a request, after the checks that all of them share.
func (r *Recall) handle(req *http.Request, body []byte) response {
	rest, underCredentials := strings.CutPrefix(req.URL.Path, credentialsPath)
	id, slash := strings.CutSuffix(rest, "/")
	route, allow := "", "GET"
	switch {
	case req.URL.Path == logsPath:
		route = "logs"
	case req.URL.Path == appsPath:
		route = "apps"
	case underCredentials && rest == "":
		route, allow = "credentials", "GET, POST"
	case underCredentials && slash && !strings.Contains(id, "/"):
		route, allow = "credential", "GET, DELETE"
	default:
		return detail(http.StatusNotFound, "Not found.")
	}

	kind := req.Method + " " + route
	if a, ok := r.admit(req, kind); !ok {
		return a
	}
	switch kind {
	case "POST credentials":
		return r.create(req, body)
	case "GET credentials":
		return r.listCredentials(req)
	case "GET credential":
		return r.retrieve(id)
	case "DELETE credential":
		return r.remove(id)
	case "GET logs":
		return r.listLogs(req)
	case "GET apps":
		return r.listApps(req)
	}
	a := detail(http.StatusMethodNotAllowed, fmt.Sprintf("Method %q not allowed.", req.Method))
	a.header = http.Header{"Allow": {allow}}
	return a
}

// admit checks the key and the rate limit of this kind of request.
func (r *Recall) admit(req *http.Request, kind string) (response, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if auth := req.Header["Authorization"]; len(auth) != 1 || auth[0] != "Token "+r.apiKey {
		r.counts.Unauthorized++
		a := detail(http.StatusUnauthorized, "Invalid token.")
		a.header = http.Header{"Www-Authenticate": {"Token"}}
		return a, false
	}

	limit := r.opts.RateLimit
	if kind == "GET credentials" || kind == "GET apps" {
		limit = r.opts.ListRateLimit
	}
	now := r.opts.Now()
	recent := slices.DeleteFunc(r.recent[kind], func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if limit >= 0 && len(recent) >= limit {
		r.recent[kind] = recent
		r.counts.RateLimited++
		left := recent[0].Add(time.Minute).Sub(now)
		seconds := strconv.Itoa(int((left + time.Second - 1) / time.Second))
		a := detail(http.StatusTooManyRequests, "Request was throttled. Expected available in "+seconds+" seconds.")
		a.header = http.Header{"Retry-After": {seconds}}
		return a, false
	}
	if limit >= 0 {
		r.recent[kind] = append(recent, now)
	}
	return response{}, true
}

func (r *Recall) create(req *http.Request, body []byte) response {
	r.mu.Lock()
	r.counts.CreateAttempts++
	r.mu.Unlock()

	if media, _, err := mime.ParseMediaType(req.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return detail(http.StatusUnsupportedMediaType, "Unsupported media type in request.")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return detail(http.StatusBadRequest, "JSON parse error: the body must be one object.")
	}
	c, errs := r.parseCreate(fields)
	if len(errs) > 0 {
		return response{status: http.StatusBadRequest, body: errs}
	}
	if c.AccessTokenCallbackURL != "" {
		// A server continues after its client has left.
		ctx := context.WithoutCancel(req.Context())
		got, err := r.call(ctx, c.AccessTokenCallbackURL, "")
		if err != nil {
			return fieldError("access_token_callback_url", err.Error())
		}
		c.UserID, c.AccountID = got.userID, got.accountID
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	for _, other := range r.credentials {
		if c.UserID != "" && other.UserID == c.UserID && other.OAuthApp == c.OAuthApp {
			r.counts.Conflicts++
			return response{status: http.StatusBadRequest, body: map[string]any{
				"detail":                      "A credential for this Zoom user already exists.",
				"conflicting_zoom_user_id":    other.UserID,
				"conflicting_zoom_account_id": orNull(other.AccountID),
			}}
		}
	}
	r.counts.Creates++
	return response{status: http.StatusCreated, body: r.addLocked(c).body()}
}

// parseCreate checks the fields of a create; a null counts as left out.
func (r *Recall) parseCreate(fields map[string]json.RawMessage) (Credential, map[string][]string) {
	var c Credential
	var code *authorizationCode
	errs := map[string][]string{}
	for name, raw := range fields {
		var err error
		switch name {
		case "oauth_app":
			err = json.Unmarshal(raw, &c.OAuthApp)
		case "access_token_callback_url":
			err = json.Unmarshal(raw, &c.AccessTokenCallbackURL)
			u, urlErr := url.Parse(c.AccessTokenCallbackURL)
			if string(raw) != "null" && (urlErr != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
				errs[name] = []string{"Enter a valid URL."}
			}
		case "authorization_code":
			d := json.NewDecoder(bytes.NewReader(raw))
			d.DisallowUnknownFields()
			err = d.Decode(&code)
			if code != nil && (code.Code == "" || code.RedirectURI == "") {
				errs[name] = []string{"code and redirect_uri are required."}
			}
		default:
			errs[name] = []string{"Unknown field."}
		}
		if err != nil {
			errs[name] = []string{"Not a valid value."}
		}
	}
	switch {
	case len(errs["oauth_app"]) > 0:
	case c.OAuthApp == "":
		errs["oauth_app"] = []string{"This field is required."}
	case !slices.Contains(r.opts.OAuthApps, c.OAuthApp):
		errs["oauth_app"] = []string{"No such Zoom OAuth app."}
	}
	if len(errs) == 0 && (code != nil) == (c.AccessTokenCallbackURL != "") {
		errs["non_field_errors"] = []string{"Exactly one of authorization_code and access_token_callback_url is required."}
	}
	return c, errs
}

// authorizationCode is what a create may carry in place of a callback URL.
type authorizationCode struct {
	Code         string `json:"code"`
	RedirectURI  string `json:"redirect_uri"`
	CodeVerifier string `json:"code_verifier"`
}

// indexLocked returns the place of a credential, or -1.
func (r *Recall) indexLocked(id string) int {
	return slices.IndexFunc(r.credentials, func(c stored) bool { return c.ID == id })
}

func (r *Recall) retrieve(id string) response {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.indexLocked(id)
	if i < 0 {
		return detail(http.StatusNotFound, "Not found.")
	}
	return response{status: http.StatusOK, body: r.credentials[i].body()}
}

func (r *Recall) remove(id string) response {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.indexLocked(id)
	if i < 0 {
		return detail(http.StatusNotFound, "Not found.")
	}
	r.credentials = slices.Delete(r.credentials, i, i+1)
	r.counts.Deletes++
	return response{status: http.StatusNoContent}
}

// row is one possible result of a list, with what it can be filtered by.
type row struct {
	seq     int
	created time.Time
	filters map[string]string
	body    any
}

func (r *Recall) listCredentials(req *http.Request) response {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows := make([]row, len(r.credentials))
	for i, c := range r.credentials {
		filters := map[string]string{"oauth_app": c.OAuthApp, "user_id": c.UserID, "account_id": c.AccountID}
		rows[i] = row{c.seq, c.CreatedAt, filters, c.body()}
	}
	a := r.list(req, rows, "oauth_app", "user_id", "account_id")
	if a.status == http.StatusOK {
		r.counts.Lists++
	}
	return a
}

func (r *Recall) listLogs(req *http.Request) response {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows := make([]row, len(r.logs))
	for i, l := range r.logs {
		rows[i] = row{l.seq, l.created, map[string]string{"credential": l.credential}, l.body()}
	}
	return r.list(req, rows, "credential")
}

func (r *Recall) listApps(req *http.Request) response {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows := make([]row, len(r.opts.OAuthApps))
	for i, id := range r.opts.OAuthApps {
		clientID := r.opts.ClientIDs[id]
		rows[i] = row{i + 1, time.Time{}, map[string]string{"client_id": clientID}, map[string]any{
			"id": id, "client_id": clientID, "kind": "user_level", "created_at": timestamp(time.Time{}),
		}}
	}
	return r.list(req, rows, "client_id")
}

// list returns one page of rows, which are in order of seq. Times are filtered
// with both ends included.
//
// A cursor is a direction and a seq, not an offset, so that what is created or
// deleted between two pages shifts none of the others.
func (r *Recall) list(req *http.Request, rows []row, filters ...string) response {
	query, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return detail(http.StatusBadRequest, "Malformed query.")
	}
	var after, before time.Time
	var pos int
	var backwards bool
	for name := range query {
		value, err := query.Get(name), error(nil)
		switch {
		case name == "created_at_after":
			after, err = time.Parse(time.RFC3339, value)
		case name == "created_at_before":
			before, err = time.Parse(time.RFC3339, value)
		case name == "cursor":
			pos, backwards, err = parseCursor(value)
		case slices.Contains(filters, name):
			rows = slices.DeleteFunc(rows, func(row row) bool { return value != "" && row.filters[name] != value })
		default:
			return fieldError(name, "Unknown parameter.")
		}
		if err != nil {
			return fieldError(name, "Enter a valid value.")
		}
	}
	rows = slices.DeleteFunc(rows, func(row row) bool {
		return row.created.Before(after) || !before.IsZero() && row.created.After(before)
	})

	lo := sort.Search(len(rows), func(i int) bool { return rows[i].seq >= pos })
	hi := min(lo+r.opts.PageSize, len(rows))
	if backwards {
		lo, hi = max(lo-r.opts.PageSize, 0), lo
	}
	link := func(cursor string) string {
		u := url.URL{Scheme: "http", Host: req.Host, Path: req.URL.Path}
		if req.TLS != nil {
			u.Scheme = "https"
		}
		query.Set("cursor", base64.RawURLEncoding.EncodeToString([]byte(cursor)))
		u.RawQuery = query.Encode()
		return u.String()
	}
	page := map[string]any{"next": nil, "previous": nil}
	if hi < len(rows) {
		page["next"] = link(fmt.Sprintf("from %d", rows[hi].seq))
	}
	if lo > 0 {
		page["previous"] = link(fmt.Sprintf("upto %d", rows[lo-1].seq))
	}
	results := make([]any, 0, hi-lo)
	for _, row := range rows[lo:hi] {
		results = append(results, row.body)
	}
	page["results"] = results
	return response{status: http.StatusOK, body: page}
}

// parseCursor returns the seq that a page starts with or, backwards, ends
// before.
func parseCursor(s string) (pos int, backwards bool, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return 0, false, err
	}
	direction, seq, _ := strings.Cut(string(b), " ")
	if direction != "from" && direction != "upto" {
		return 0, false, fmt.Errorf("unknown direction %q", direction)
	}
	pos, err = strconv.Atoi(seq)
	if direction == "upto" {
		pos++
	}
	return pos, direction == "upto", err
}
