package recalltest_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tokenprovider/internal/recalltest"
)

const (
	credentialsPath = "/api/v2/zoom-oauth-credentials/"
	logsPath        = "/api/v2/zoom-oauth-credential-logs/"
)

// world is a Recall behind a server, and a provider that it calls back.
type world struct {
	*testing.T
	recall   *recalltest.Recall
	url      string       // of Recall
	callback string       // URL of the provider
	provide  atomic.Value // http.HandlerFunc: what the provider does
}

// start makes a world in which the token "user:account:ttl" is that user's.
func start(t *testing.T, o recalltest.Options) *world {
	t.Helper()
	if o.Identify == nil {
		o.Identify = identify
	}
	w := &world{T: t, recall: recalltest.New(o)}
	w.respond(200, "text/plain; charset=utf-8", "ann:acme:1h")
	provider := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		w.provide.Load().(http.HandlerFunc)(rw, req)
	}))
	t.Cleanup(provider.Close)
	api := httptest.NewServer(w.recall)
	t.Cleanup(api.Close)
	w.url, w.callback = api.URL, provider.URL+"/token?id=1"
	return w
}

func identify(_ context.Context, token string) (userID, accountID string, ttl time.Duration, err error) {
	parts := strings.Split(token, ":")
	if len(parts) != 3 {
		return "", "", 0, errors.New("invalid access token")
	}
	ttl, err = time.ParseDuration(parts[2])
	return parts[0], parts[1], ttl, err
}

// respond sets the provider's response from now on.
func (w *world) respond(status int, contentType, body string) {
	w.provide.Store(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header()["Content-Type"] = []string{contentType}
		if status == http.StatusFound {
			rw.Header().Set("Location", "/elsewhere")
		}
		rw.WriteHeader(status)
		_, _ = io.WriteString(rw, body)
	}))
}

type reply struct {
	status int
	header http.Header
	body   map[string]any
	raw    string
}

// send makes one request on a connection of its own; edit may spoil it.
func (w *world) send(method, path, body string, edit func(*http.Request)) (reply, error) {
	w.Helper()
	target := path
	if strings.HasPrefix(path, "/") {
		target = w.url + path
	}
	req, err := http.NewRequestWithContext(w.Context(), method, target, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	req.Close = true
	req.Header.Set("Authorization", "Token recall-key")
	if method == "POST" {
		req.Header.Set("Content-Type", "application/json")
	}
	if edit != nil {
		edit(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	r := reply{status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	_ = json.Unmarshal(raw, &r.body)
	return r, err
}

func (w *world) do(method, path, body string) reply {
	w.Helper()
	r, err := w.send(method, path, body, nil)
	if err != nil {
		w.Fatal(err)
	}
	return r
}

func (w *world) createBody() string {
	return fmt.Sprintf(`{"oauth_app": %q, "access_token_callback_url": %q}`, recalltest.DefaultOAuthApp, w.callback)
}

func (w *world) create() reply {
	w.Helper()
	return w.do("POST", credentialsPath, w.createBody())
}

func (w *world) want(r reply, status int, fields ...string) {
	w.Helper()
	if r.status != status {
		w.Fatalf("status %d, want %d: %s", r.status, status, r.raw)
	}
	for _, f := range fields {
		if _, ok := r.body[f]; !ok {
			w.Fatalf("no %q in %s", f, r.raw)
		}
	}
	if status >= 400 && !strings.HasPrefix(r.header.Get("Content-Type"), "application/json") {
		w.Fatalf("Content-Type %q", r.header.Get("Content-Type"))
	}
}

func TestLifeOfACredential(t *testing.T) {
	w := start(t, recalltest.Options{})
	made := w.create()
	w.want(made, 201)
	id, _ := made.body["id"].(string)
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Errorf("id %q is not a UUID", id)
	}
	created, _ := made.body["created_at"].(string)
	if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`).MatchString(created) {
		t.Errorf("created_at %q", created)
	}
	for name, want := range map[string]any{
		"oauth_app": recalltest.DefaultOAuthApp, "access_token_callback_url": w.callback, "status": "healthy",
		"user_id": "ann", "account_id": "acme", "meeting_sync_status": "not_started",
	} {
		if made.body[name] != want {
			t.Errorf("%s is %v, want %v", name, made.body[name], want)
		}
	}
	if len(made.body) != 8 {
		t.Errorf("fields: %s", made.raw)
	}

	if got := w.do("GET", credentialsPath+id+"/", ""); got.status != 200 || got.raw != made.raw {
		t.Errorf("retrieved %d %s", got.status, got.raw)
	}
	if all := w.recall.Credentials(); len(all) != 1 || all[0].ID != id || all[0].AccessTokenCallbackURL != w.callback {
		t.Errorf("credentials: %+v", all)
	}

	clash := w.create()
	w.want(clash, 400, "detail")
	if clash.body["conflicting_zoom_user_id"] != "ann" || clash.body["conflicting_zoom_account_id"] != "acme" {
		t.Errorf("conflict: %s", clash.raw)
	}

	if gone := w.do("DELETE", credentialsPath+id+"/", ""); gone.status != 204 || gone.raw != "" {
		t.Errorf("delete: %d %q", gone.status, gone.raw)
	}
	w.want(w.do("DELETE", credentialsPath+id+"/", ""), 404, "detail")
	w.want(w.do("GET", credentialsPath+id+"/", ""), 404, "detail")
	w.want(w.create(), 201)

	want := recalltest.Counts{Requests: 7, Creates: 2, CreateAttempts: 3, Conflicts: 1, Deletes: 1, Callbacks: 3}
	if got := w.recall.Counts(); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

func TestStrictRequests(t *testing.T) {
	w := start(t, recalltest.Options{})
	const id = credentialsPath + "6f1d0b52-0000-4000-8000-000000000000/"
	auth := func(values ...string) func(*http.Request) {
		return func(req *http.Request) { req.Header["Authorization"] = values }
	}
	contentType := func(v string) func(*http.Request) {
		return func(req *http.Request) { req.Header.Set("Content-Type", v) }
	}
	for name, tc := range map[string]struct {
		method, path string
		edit         func(*http.Request)
		status       int
	}{
		"no key":              {"GET", credentialsPath, auth(), 401},
		"wrong key":           {"GET", credentialsPath, auth("Token other"), 401},
		"bearer":              {"GET", credentialsPath, auth("Bearer recall-key"), 401},
		"lower case":          {"GET", credentialsPath, auth("token recall-key"), 401},
		"two spaces":          {"GET", credentialsPath, auth("Token  recall-key"), 401},
		"two keys":            {"GET", credentialsPath, auth("Token recall-key", "Token recall-key"), 401},
		"no slash":            {"POST", strings.TrimSuffix(credentialsPath, "/"), nil, 404},
		"no slash after id":   {"GET", strings.TrimSuffix(id, "/"), nil, 404},
		"no slash after logs": {"GET", strings.TrimSuffix(logsPath, "/"), nil, 404},
		"deeper":              {"GET", id + "more/", nil, 404},
		"elsewhere":           {"GET", "/", nil, 404},
		"unknown id":          {"GET", id, nil, 404},
		"no change of a URL":  {"PATCH", id, nil, 405},
		"logs are read only":  {"POST", logsPath, nil, 405},
		"no Content-Type":     {"POST", credentialsPath, func(req *http.Request) { req.Header.Del("Content-Type") }, 415},
		"form":                {"POST", credentialsPath, contentType("application/x-www-form-urlencoded"), 415},
		"malformed query":     {"GET", credentialsPath + "?a=%zz", nil, 400},
		"body beyond the limit": {"POST", credentialsPath, func(req *http.Request) {
			req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(make([]byte, 2<<20))), 2<<20
		}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := w.send(tc.method, tc.path, w.createBody(), tc.edit)
			if err != nil {
				t.Fatal(err)
			}
			w.want(r, tc.status, "detail")
		})
	}
	if c := w.recall.Counts(); c.Unauthorized != 6 || c.Creates != 0 || c.Callbacks != 0 || c.Lists != 0 {
		t.Errorf("counts %+v", c)
	}
}

func TestStrictCreateFields(t *testing.T) {
	w := start(t, recalltest.Options{})
	app, cb := fmt.Sprintf(`"oauth_app": %q`, recalltest.DefaultOAuthApp), fmt.Sprintf(`"access_token_callback_url": %q`, w.callback)
	code := `"authorization_code": {"code": "c", "redirect_uri": "https://a.example/cb"}`
	for name, tc := range map[string]struct{ body, field string }{
		"not JSON":         {`{`, "detail"},
		"null":             {`null`, "detail"},
		"array":            {`[]`, "detail"},
		"trailing data":    {`{} {}`, "detail"},
		"no app":           {`{` + cb + `}`, "oauth_app"},
		"null app":         {`{"oauth_app": null,` + cb + `}`, "oauth_app"},
		"app not a string": {`{"oauth_app": 1,` + cb + `}`, "oauth_app"},
		"unknown app":      {`{"oauth_app": "6f1d0b52-0000-4000-8000-000000000000",` + cb + `}`, "oauth_app"},
		"unknown field":    {`{` + app + `,` + cb + `,"user_id": "ann"}`, "user_id"},
		"neither":          {`{` + app + `}`, "non_field_errors"},
		"both null":        {`{` + app + `,"access_token_callback_url": null, "authorization_code": null}`, "non_field_errors"},
		"both":             {`{` + app + `,` + cb + `,` + code + `}`, "non_field_errors"},
		"URL not a string": {`{` + app + `,"access_token_callback_url": 1}`, "access_token_callback_url"},
		"empty URL":        {`{` + app + `,"access_token_callback_url": ""}`, "access_token_callback_url"},
		"relative URL":     {`{` + app + `,"access_token_callback_url": "/token"}`, "access_token_callback_url"},
		"ftp URL":          {`{` + app + `,"access_token_callback_url": "ftp://a.example/"}`, "access_token_callback_url"},
		"no host":          {`{` + app + `,"access_token_callback_url": "https:///token"}`, "access_token_callback_url"},
		"code is a string": {`{` + app + `,"authorization_code": "c"}`, "authorization_code"},
		"no redirect_uri":  {`{` + app + `,"authorization_code": {"code": "c"}}`, "authorization_code"},
		"code with more":   {`{` + app + `,"authorization_code": {"code": "c", "redirect_uri": "u", "state": "s"}}`, "authorization_code"},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.do("POST", credentialsPath, tc.body)
			w.want(r, 400, tc.field)
			if messages, ok := r.body[tc.field].([]any); tc.field != "detail" && (!ok || len(messages) != 1) {
				t.Errorf("not a list of one message: %s", r.raw)
			}
		})
	}
	if c := w.recall.Counts(); c.Callbacks != 0 || c.Creates != 0 || c.CreateAttempts != 20 {
		t.Errorf("counts %+v", c)
	}

	made := w.do("POST", credentialsPath, `{`+app+`,`+code+`}`)
	w.want(made, 201)
	if made.body["user_id"] != nil || made.body["account_id"] != nil || made.body["access_token_callback_url"] != nil {
		t.Errorf("made from a code: %s", made.raw)
	}
	if _, _, err := w.recall.Callback(t.Context(), made.body["id"].(string)); err == nil {
		t.Error("called back without a URL")
	}
}

// Every case is refused at a create, and makes a credential unhealthy later.
func TestStrictCallback(t *testing.T) {
	for name, tc := range map[string]struct {
		status            int
		contentType, body string
	}{
		"status":           {503, "text/plain", "ann:acme:1h"},
		"other success":    {202, "text/plain", "ann:acme:1h"},
		"redirect":         {302, "text/plain", "ann:acme:1h"},
		"JSON":             {200, "application/json", "ann:acme:1h"},
		"no Content-Type":  {200, "", "ann:acme:1h"},
		"empty":            {200, "text/plain", ""},
		"newline":          {200, "text/plain", "ann:acme:1h\n"},
		"leading space":    {200, "text/plain", " ann:acme:1h"},
		"two lines":        {200, "text/plain", "ann:acme\n:1h"},
		"too long":         {200, "text/plain", strings.Repeat("a", 20<<10)},
		"not Zoom's":       {200, "text/plain", "junk"},
		"119 seconds left": {200, "text/plain", "ann:acme:119s"},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, recalltest.Options{})
			w.respond(tc.status, tc.contentType, tc.body)
			refused := w.create()
			w.want(refused, 400, "access_token_callback_url")

			c := w.recall.AddCredential(recalltest.Credential{AccessTokenCallbackURL: w.callback, UserID: "ann"})
			token, status, err := w.recall.Callback(t.Context(), c.ID)
			if token != "" || status != tc.status || err == nil {
				t.Errorf("callback: %q, %d, %v", token, status, err)
			}
			if got := w.recall.Credentials(); len(got) != 1 || got[0].Status != "unhealthy" {
				t.Errorf("credentials %+v", got)
			}
			logs := w.do("GET", logsPath+"?credential="+c.ID, "")
			if logs.status != 200 || len(logs.body["results"].([]any)) != 1 {
				t.Errorf("logs: %s", logs.raw)
			}
			if n := w.recall.Counts(); n.Callbacks != 2 || n.CallbackFailures != 2 || n.Creates != 0 {
				t.Errorf("counts %+v", n)
			}

			w.respond(200, "text/plain", "ann:acme:120s")
			if token, status, err := w.recall.Callback(t.Context(), c.ID); token != "ann:acme:120s" || status != 200 || err != nil {
				t.Errorf("callback: %q, %d, %v", token, status, err)
			}
			if got := w.recall.Credentials(); got[0].Status != "healthy" {
				t.Errorf("credentials %+v", got)
			}
		})
	}
}

func TestCallbackFailsWithoutAnswer(t *testing.T) {
	w := start(t, recalltest.Options{})
	if _, _, err := w.recall.Callback(t.Context(), "none"); err == nil {
		t.Error("called back for no credential")
	}
	fail := func(what, callback string, wantStatus int) {
		t.Helper()
		c := w.recall.AddCredential(recalltest.Credential{AccessTokenCallbackURL: callback})
		_, status, err := w.recall.Callback(t.Context(), c.ID)
		if status != wantStatus || err == nil || strings.Contains(err.Error(), "id=1") {
			t.Errorf("%s: %d, %v", what, status, err)
		}
	}
	w.provide.Store(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	fail("dropped", w.callback, 0)
	w.provide.Store(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", "100")
		_, _ = rw.Write([]byte("ann"))
	}))
	fail("cut short", w.callback, 200)
	fail("bad URL", "http://a b/?id=1", 0)
}

func TestCallbackOfAnotherUser(t *testing.T) {
	w := start(t, recalltest.Options{})
	id := w.create().body["id"].(string)
	w.respond(200, "text/plain", "bob:acme:1h")
	if _, status, err := w.recall.Callback(t.Context(), id); status != 200 || err == nil {
		t.Errorf("another user's token: %d, %v", status, err)
	}
}

func TestDeletedDuringCallback(t *testing.T) {
	w := start(t, recalltest.Options{})
	id := w.create().body["id"].(string)
	w.provide.Store(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.do("DELETE", credentialsPath+id+"/", "")
		rw.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(rw, "ann:acme:1h")
	}))
	if token, _, err := w.recall.Callback(t.Context(), id); token == "" || err != nil {
		t.Errorf("callback: %q, %v", token, err)
	}
	if got := w.recall.Credentials(); len(got) != 0 {
		t.Errorf("credentials %+v", got)
	}
}

func TestWithoutIdentify(t *testing.T) {
	w := start(t, recalltest.Options{})
	w.recall = recalltest.New(recalltest.Options{})
	api := httptest.NewServer(w.recall)
	defer api.Close()
	w.url = api.URL
	for range 2 {
		w.want(w.create(), 201)
	}
	if got := w.recall.Credentials(); len(got) != 2 || got[0].UserID != "" {
		t.Errorf("credentials %+v", got)
	}
	w.respond(200, "text/plain", "two\nlines")
	w.want(w.create(), 400, "access_token_callback_url")
}

// sign is the raw algorithm of Standard Webhooks.
func sign(t *testing.T, secret, id, timestamp, body string) string {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, id+"."+timestamp+"."+body)
	return "v1," + base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func TestSignedCallbacks(t *testing.T) {
	const old, secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for body, want := range map[string]string{
		`{"test": 2432232314}`: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		``:                     "v1,v48jdbgvh29KJz2Qc+ghw8G6vG3nAKnujWBg8oM/62A=",
	} {
		if got := sign(t, secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body); got != want {
			t.Fatalf("vector %q: %s", body, got)
		}
	}

	w := start(t, recalltest.Options{
		VerificationSecrets: []string{old, secret},
		Now:                 func() time.Time { return time.Unix(1614265330, 5) },
	})
	seen := make(chan http.Header, 2)
	record := func(rw http.ResponseWriter, req *http.Request) {
		seen <- req.Header
		if req.Method != "GET" || req.URL.RawQuery != "id=1" {
			t.Errorf("callback %s %s", req.Method, req.URL)
		}
		rw.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(rw, "ann:acme:1h")
	}
	w.provide.Store(http.HandlerFunc(record))
	made := w.create()
	w.want(made, 201)
	if got := made.body["created_at"]; got != "2021-02-25T15:02:10.000000Z" {
		t.Errorf("created_at %v", got)
	}
	if _, _, err := w.recall.Callback(t.Context(), made.body["id"].(string)); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for range 2 {
		h := <-seen
		id := h.Get("webhook-id")
		ids[id] = true
		want := sign(t, old, id, "1614265330", "") + " " + sign(t, secret, id, "1614265330", "")
		if h.Get("webhook-timestamp") != "1614265330" || h.Get("webhook-signature") != want {
			t.Errorf("headers %v, want signature %s", h, want)
		}
	}
	if len(ids) != 2 {
		t.Error("one webhook-id for two callbacks")
	}

	w = start(t, recalltest.Options{})
	w.provide.Store(http.HandlerFunc(record))
	w.want(w.create(), 201)
	if h := <-seen; h.Get("webhook-id")+h.Get("webhook-timestamp")+h.Get("webhook-signature") != "" {
		t.Errorf("signed without a secret: %v", h)
	}
}

func TestBadSecretPanics(t *testing.T) {
	for _, secret := range []string{"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_!"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was taken", secret)
				}
			}()
			recalltest.New(recalltest.Options{VerificationSecrets: []string{secret}})
		}()
	}
}

func TestConcurrentCreatesOfOneUser(t *testing.T) {
	w := start(t, recalltest.Options{})
	var both sync.WaitGroup // each callback returns once the other has started
	both.Add(2)
	w.provide.Store(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		both.Done()
		both.Wait()
		rw.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(rw, "ann:acme:1h")
	}))
	statuses := make(chan int, 2)
	for range 2 {
		go func() {
			r, _ := w.send("POST", credentialsPath, w.createBody(), nil)
			statuses <- r.status
		}()
	}
	if a, b := <-statuses, <-statuses; a+b != 201+400 {
		t.Errorf("statuses %d and %d", a, b)
	}
	if c := w.recall.Counts(); c.Creates != 1 || c.Conflicts != 1 || len(w.recall.Credentials()) != 1 {
		t.Errorf("counts %+v", c)
	}
}

func TestConflictIsPerApp(t *testing.T) {
	const other = "0b52ca1e-1111-4222-8333-444455556666"
	w := start(t, recalltest.Options{OAuthApps: []string{recalltest.DefaultOAuthApp, other}})
	w.recall.AddCredential(recalltest.Credential{OAuthApp: other, UserID: "ann"})
	w.want(w.create(), 201)
	w.want(w.do("POST", credentialsPath, strings.Replace(w.createBody(), recalltest.DefaultOAuthApp, other, 1)), 400,
		"conflicting_zoom_user_id", "conflicting_zoom_account_id")
}

func TestAddCredentialKeepsWhatIsGiven(t *testing.T) {
	given := recalltest.Credential{
		ID: "i", OAuthApp: "o", AccessTokenCallbackURL: "u", Status: "unhealthy", UserID: "z", AccountID: "a",
		CreatedAt: time.Date(2026, 4, 1, 0, 0, 0, 1000, time.UTC), MeetingSyncStatus: "failed",
	}
	r := recalltest.New(recalltest.Options{})
	if got := r.AddCredential(given); got != given {
		t.Errorf("got %+v", got)
	}
	if got := r.AddCredential(recalltest.Credential{}); got.ID == "" || got.CreatedAt.IsZero() ||
		got.OAuthApp != recalltest.DefaultOAuthApp || got.Status != "healthy" {
		t.Errorf("got %+v", got)
	}
}

// ids returns the ids on a page.
func ids(page reply) (all []string) {
	for _, r := range page.body["results"].([]any) {
		all = append(all, r.(map[string]any)["id"].(string))
	}
	return all
}

func TestPaging(t *testing.T) {
	w := start(t, recalltest.Options{PageSize: 3})
	add := func(id, user string) {
		w.recall.AddCredential(recalltest.Credential{ID: id, UserID: user})
	}
	for i := range 8 {
		add(fmt.Sprint("c", i), "ann")
		add(fmt.Sprint("x", i), "bob")
	}
	var pages []string
	var last reply
	for next := any(credentialsPath + "?user_id=ann"); next != nil; next = last.body["next"] {
		last = w.do("GET", next.(string), "")
		w.want(last, 200, "next", "previous", "results")
		pages = append(pages, strings.Join(ids(last), " "))
		switch len(pages) {
		case 1: // neither shifts what is to come
			w.want(w.do("DELETE", credentialsPath+"c1/", ""), 204)
			w.want(w.do("DELETE", credentialsPath+"c3/", ""), 204)
			add("c8", "ann")
		}
		if next, ok := last.body["next"].(string); ok && !strings.HasPrefix(next, w.url+credentialsPath+"?") {
			t.Errorf("next %q", next)
		}
	}
	if got := strings.Join(pages, ", "); got != "c0 c1 c2, c4 c5 c6, c7 c8" {
		t.Errorf("pages %q", got)
	}
	var back []string
	for previous := last.body["previous"]; previous != nil; previous = last.body["previous"] {
		last = w.do("GET", previous.(string), "")
		back = append(back, strings.Join(ids(last), " "))
	}
	if got := strings.Join(back, ", "); got != "c4 c5 c6, c0 c2" {
		t.Errorf("pages backwards %q", got)
	}
	if n := w.recall.Counts().Lists; n != 5 {
		t.Errorf("%d lists", n)
	}
}

func TestFilters(t *testing.T) {
	w := start(t, recalltest.Options{})
	at := func(s int) time.Time { return time.Date(2026, 4, 1, 0, 0, s, 0, time.UTC) }
	w.recall.AddCredential(recalltest.Credential{ID: "a", UserID: "u1", AccountID: "k1", CreatedAt: at(1)})
	w.recall.AddCredential(recalltest.Credential{ID: "b", UserID: "u2", AccountID: "k1", CreatedAt: at(2)})
	w.recall.AddCredential(recalltest.Credential{ID: "c", UserID: "u1", AccountID: "k2", CreatedAt: at(3), OAuthApp: "o"})
	for query, want := range map[string]string{
		"":                                      "a b c",
		"user_id=u1":                            "a c",
		"user_id=":                              "a b c",
		"account_id=k1":                         "a b",
		"user_id=u1&account_id=k1":              "a",
		"user_id=unknown":                       "",
		"oauth_app=o":                           "c",
		"created_at_after=2026-04-01T00:00:02Z": "b c",
		"created_at_before=2026-04-01T00:00:02.000000Z":                                 "a b",
		"created_at_after=2026-04-01T00:00:02Z&created_at_before=2026-04-01T00:00:02Z":  "b",
		"created_at_after=" + url.QueryEscape("2026-04-01T02:00:03+02:00") + "&cursor=": "?cursor",
		"created_at_after=yesterday":                                                    "?created_at_after",
		"created_at_before=2026-04-01":                                                  "?created_at_before",
		"cursor=!":                                                                      "?cursor",
		"cursor=" + base64.RawURLEncoding.EncodeToString([]byte("from x")):              "?cursor",
		"zoom_user=u1":  "?zoom_user",
		"credential=a":  "?credential",
		"page_size=100": "?page_size",
	} {
		r := w.do("GET", credentialsPath+"?"+query, "")
		if field, refused := strings.CutPrefix(want, "?"); refused {
			w.want(r, 400, field)
		} else if w.want(r, 200); strings.Join(ids(r), " ") != want {
			t.Errorf("%s: %s", query, r.raw)
		}
	}
}

func TestLogs(t *testing.T) {
	now := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	w := start(t, recalltest.Options{Now: func() time.Time { return now }})
	w.respond(500, "text/plain", "")
	for _, id := range []string{"a", "b"} {
		w.recall.AddCredential(recalltest.Credential{ID: id, AccessTokenCallbackURL: w.callback})
		_, _, _ = w.recall.Callback(t.Context(), id)
		now = now.Add(time.Second)
	}
	for query, want := range map[string]string{
		"":                                       "a b",
		"credential=b":                           "b",
		"created_at_after=2026-04-01T00:00:01Z":  "b",
		"created_at_before=2026-04-01T00:00:00Z": "a",
	} {
		r := w.do("GET", logsPath+"?"+query, "")
		w.want(r, 200, "next", "previous")
		var got []string
		for _, l := range r.body["results"].([]any) {
			got = append(got, l.(map[string]any)["credential"].(string))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s", query, r.raw)
		}
	}
	w.want(w.do("GET", logsPath+"?user_id=a", ""), 400, "user_id")
}

func TestRateLimits(t *testing.T) {
	now := time.Now()
	limited := func(o recalltest.Options, path string, n int) {
		t.Helper()
		o.Now = func() time.Time { return now }
		w := start(t, o)
		for range n {
			if r := w.do("GET", path, ""); r.status == 429 {
				t.Fatalf("limited too early: %+v", w.recall.Counts())
			}
		}
		now = now.Add(18*time.Second + time.Millisecond)
		r := w.do("GET", path, "")
		w.want(r, 429, "detail")
		if got := r.header.Get("Retry-After"); got != "42" {
			t.Errorf("Retry-After %q", got)
		}
		now = now.Add(42 * time.Second)
		if r := w.do("GET", path, ""); r.status == 429 {
			t.Error("still limited")
		}
		if c := w.recall.Counts(); c.RateLimited != 1 || c.Requests != n+2 {
			t.Errorf("counts %+v", c)
		}
	}
	limited(recalltest.Options{}, credentialsPath, 60)
	limited(recalltest.Options{}, logsPath, 300)
	limited(recalltest.Options{ListRateLimit: 2}, credentialsPath, 2)
	limited(recalltest.Options{RateLimit: 2}, credentialsPath+"x/", 2)

	w := start(t, recalltest.Options{RateLimit: -1, ListRateLimit: -1})
	for range 301 {
		w.want(w.do("GET", credentialsPath, ""), 200)
	}
}

func TestFaults(t *testing.T) {
	w := start(t, recalltest.Options{})
	r := w.recall
	r.Fail("POST", credentialsPath, 1, recalltest.Fault{DropBefore: true})
	r.Fail("POST", credentialsPath, 2, recalltest.Fault{
		Status: 503, Header: http.Header{"retry-after": {"7"}, "Content-Type": {"text/html"}}, Body: "<p>down",
	})
	r.Fail("POST", credentialsPath, 1, recalltest.Fault{Delay: time.Millisecond})
	r.Fail("", "", 0, recalltest.Fault{Status: 500})
	w.want(w.do("GET", credentialsPath, ""), 200) // not what is to fail

	if _, err := w.send("POST", credentialsPath, w.createBody(), nil); err == nil {
		t.Error("not dropped before")
	}
	for range 2 {
		got := w.create()
		if got.status != 503 || got.raw != "<p>down" || got.header.Get("Retry-After") != "7" || got.header.Get("Content-Type") != "text/html" {
			t.Errorf("fault: %+v", got)
		}
	}
	if c := r.Counts(); c.Requests != 4 || c.CreateAttempts != 0 || c.Callbacks != 0 {
		t.Errorf("counts %+v", c)
	}
	w.want(w.create(), 201) // late
	id := r.Credentials()[0].ID

	r.Fail("DELETE", credentialsPath+id, 1, recalltest.Fault{DropAfter: true})
	if _, err := w.send("DELETE", credentialsPath+id+"/", "", nil); err == nil {
		t.Error("not dropped after")
	}
	if c := r.Counts(); c.Deletes != 1 || len(r.Credentials()) != 0 {
		t.Errorf("counts %+v", c)
	}

	r.Fail("POST", "", 1, recalltest.Fault{DropAfter: true, Status: 504, Body: `{}`})
	w.want(w.create(), 504)
	if c := r.Counts(); c.Creates != 2 || len(r.Credentials()) != 1 {
		t.Errorf("counts %+v", c)
	}

	r.Fail("", credentialsPath, -1, recalltest.Fault{Status: 500})
	for range 3 {
		w.want(w.do("GET", credentialsPath, ""), 500)
	}
	r.Heal()
	w.want(w.do("GET", credentialsPath, ""), 200)
}

func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := recalltest.New(recalltest.Options{Latency: time.Hour})
		r.Fail("GET", credentialsPath, 1, recalltest.Fault{Delay: time.Minute})
		for _, want := range []time.Duration{time.Hour + time.Minute, time.Hour} {
			req := httptest.NewRequest("GET", credentialsPath, nil)
			req.Header.Set("Authorization", "Token recall-key")
			rec, began := httptest.NewRecorder(), time.Now()
			r.ServeHTTP(rec, req)
			if took := time.Since(began); rec.Code != 200 || took != want {
				t.Errorf("%d after %v, want %v", rec.Code, took, want)
			}
		}
	})
}

// A client that gives up during a wait does not stop what it has asked for.
func TestWorkGoesOnWithoutClient(t *testing.T) {
	w := start(t, recalltest.Options{Latency: time.Hour})
	done := make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		defer close(done)
		w.recall.ServeHTTP(rw, req)
	}))
	defer api.Close()
	w.url = api.URL

	ctx, cancel := context.WithCancel(t.Context())
	sent := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { cancel() },
	})
	_, err := w.send("POST", credentialsPath, w.createBody(), func(req *http.Request) { *req = *req.WithContext(sent) })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	<-done
	if c := w.recall.Counts(); c.Creates != 1 || len(w.recall.Credentials()) != 1 {
		t.Errorf("counts %+v", c)
	}
}

func TestHTTPSLinks(t *testing.T) {
	r := recalltest.New(recalltest.Options{PageSize: 1})
	for range 2 {
		r.AddCredential(recalltest.Credential{})
	}
	req := httptest.NewRequest("GET", "https://recall.example"+credentialsPath, nil)
	req.Header.Set("Authorization", "Token recall-key")
	rec := httptest.NewRecorder()
	r.ServeHTTP(rec, req)
	if !strings.Contains(rec.Body.String(), `"next":"https://recall.example`+credentialsPath) {
		t.Errorf("links: %s", rec.Body)
	}
}
