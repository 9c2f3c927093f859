package recall_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/recall"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/secret"
)

const key = "the-api-key"

func client(t *testing.T, base, apiKey string) *recall.Client {
	t.Helper()
	parsed, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return recall.New(recall.Config{APIURL: parsed, APIKey: secret.New(apiKey), HTTP: &http.Client{Transport: transport}})
}

// start runs a stand-in for Recall, and a token server that returns the end of the
// callback URL as the token: the Zoom user's name.
func start(t *testing.T, options recalltest.Options) (*recalltest.Recall, *recall.Client, func(user string) secret.Text) {
	t.Helper()
	options.APIKey = key
	options.Identify = func(_ context.Context, token string) (string, string, time.Duration, error) {
		return token, "account", time.Hour, nil
	}
	r := recalltest.New(options)
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = fmt.Fprint(w, r.URL.Path[1:])
	}))
	t.Cleanup(tokens.Close)
	return r, client(t, server.URL, key), func(user string) secret.Text { return secret.New(tokens.URL + "/" + user) }
}

func list(t *testing.T, c *recall.Client, filter recall.Filter) (users []string) {
	t.Helper()
	if err := c.List(t.Context(), filter, func(found recall.Credential) bool {
		users = append(users, found.ZoomUser)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return users
}

func TestCreateGetDelete(t *testing.T) {
	r, c, address := start(t, recalltest.Options{})
	created, err := c.Create(t.Context(), recalltest.DefaultOAuthApp, address("ann"))
	if err != nil {
		t.Fatal(err)
	}
	if created.ZoomUser != "ann" || created.ZoomAccount != "account" || created.Status != "healthy" || created.OAuthApp != recalltest.DefaultOAuthApp || !created.CallbackURL.Equal(address("ann")) || created.CreatedAt.IsZero() || created.MeetingSync == "" {
		t.Errorf("created %+v", created)
	}
	if got, err := c.Get(t.Context(), created.ID); err != nil || got != created {
		t.Errorf("Get = %+v, %v", got, err)
	}
	var conflict *recall.ConflictError
	if _, err := c.Create(t.Context(), recalltest.DefaultOAuthApp, address("ann")); !errors.As(err, &conflict) || conflict.ZoomUser != "ann" {
		t.Errorf("a second credential: %v", err)
	}
	if err := c.Delete(t.Context(), created.ID); err != nil || len(r.Credentials()) != 0 {
		t.Errorf("Delete: %v, %d left", err, len(r.Credentials()))
	}
	if _, err := c.Get(t.Context(), created.ID); !errors.Is(err, recall.ErrNotFound) {
		t.Errorf("Get after Delete: %v", err)
	}
	if err := c.Delete(t.Context(), created.ID); !errors.Is(err, recall.ErrNotFound) {
		t.Errorf("Delete again: %v", err)
	}
	if _, err := c.Get(t.Context(), "../../x"); err == nil {
		t.Error("found a credential with an id that is a path")
	}
}

func TestListPagesAndFilters(t *testing.T) {
	r, c, _ := start(t, recalltest.Options{PageSize: 3, ListRateLimit: -1})
	var want []string
	for i := range 10 {
		user := fmt.Sprint("user-", i)
		r.AddCredential(recalltest.Credential{OAuthApp: recalltest.DefaultOAuthApp, UserID: user, AccountID: fmt.Sprint("account-", i%2), Status: "healthy"})
		want = append(want, user)
	}
	if got := list(t, c, recall.Filter{}); !slices.Equal(got, want) {
		t.Errorf("listed %v", got)
	}
	if got := list(t, c, recall.Filter{OAuthApp: recalltest.DefaultOAuthApp, ZoomUser: "user-7"}); !slices.Equal(got, []string{"user-7"}) {
		t.Errorf("one user: %v", got)
	}
	if got := list(t, c, recall.Filter{ZoomAccount: "account-1"}); len(got) != 5 {
		t.Errorf("one account: %v", got)
	}
	before, seen := r.Counts().Lists, 0
	if err := c.List(t.Context(), recall.Filter{}, func(recall.Credential) bool { seen++; return seen < 2 }); err != nil || seen != 2 || r.Counts().Lists != before+1 {
		t.Errorf("stopped after %d, %v, %d pages", seen, err, r.Counts().Lists-before)
	}
}

func TestRefusals(t *testing.T) {
	r, c, address := start(t, recalltest.Options{})
	var refused *recall.RefusedError
	if _, err := c.Create(t.Context(), "no-uuid", address("ann")); !errors.As(err, &refused) || !slices.Equal(refused.Fields, []string{"oauth_app"}) {
		t.Errorf("a wrong app: %v", err)
	}
	r.Fail(http.MethodPost, "", 1, recalltest.Fault{Status: 429, Header: http.Header{"Retry-After": {"9"}}})
	if _, err := c.Create(t.Context(), recalltest.DefaultOAuthApp, address("ann")); !errors.As(err, &refused) || refused.Status != 429 || refused.RetryAfter != 9*time.Second {
		t.Errorf("over the limit: %v", err)
	}
	r.Fail(http.MethodPost, "", 1, recalltest.Fault{Status: 307, Header: http.Header{"Location": {"/elsewhere"}}})
	if _, err := c.Create(t.Context(), recalltest.DefaultOAuthApp, address("ann")); !errors.As(err, &refused) || refused.Status != 307 || r.Counts().Requests != 3 {
		t.Errorf("a redirect: %v after %d requests", err, r.Counts().Requests)
	}
	server := httptest.NewServer(r)
	defer server.Close()
	if _, err := client(t, server.URL, "wrong").Get(t.Context(), "x"); !errors.Is(err, recall.ErrUnauthorized) {
		t.Errorf("a wrong key: %v", err)
	}
}

func TestLostResponsesAndNoSecretsInErrors(t *testing.T) {
	for name, c := range map[string]struct {
		fault   recalltest.Fault
		created int
	}{
		"lost before": {recalltest.Fault{DropBefore: true}, 0},
		"lost after":  {recalltest.Fault{DropAfter: true}, 1},
		"garbage":     {recalltest.Fault{Status: 201, Body: "hunter2"}, 0},
		"an error":    {recalltest.Fault{Status: 500, Body: "hunter2"}, 0},
		"a field":     {recalltest.Fault{Status: 400, Body: `{"access_token_callback_url":["hunter2"]}`}, 0},
	} {
		r, client, address := start(t, recalltest.Options{})
		r.Fail(http.MethodPost, "", 1, c.fault)
		_, err := client.Create(t.Context(), recalltest.DefaultOAuthApp, address("ann"))
		if c.fault.Status < 400 && !errors.Is(err, recall.ErrUncertain) {
			t.Errorf("%s: %v, want ErrUncertain", name, err)
		}
		if n := len(r.Credentials()); n != c.created || r.Counts().Requests != 1 {
			t.Errorf("%s: %d created by %d requests", name, n, r.Counts().Requests)
		}
		if text := fmt.Sprint(err); err == nil || strings.Contains(text, key) || strings.Contains(text, "hunter2") || strings.Contains(text, "http://") {
			t.Errorf("%s: the error contains a secret, URL or body", name)
		}
	}
	_, client, address := start(t, recalltest.Options{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.Create(ended, recalltest.DefaultOAuthApp, address("ann")); !errors.Is(err, context.Canceled) || !errors.Is(err, recall.ErrUncertain) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNextLinkIsUsedForItsCursorOnly(t *testing.T) {
	requests := 0
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request reached another host") }))
	defer elsewhere.Close()
	for name, c := range map[string]struct {
		next string
		most int
		ok   bool
	}{
		"another host": {elsewhere.URL + "/?cursor=2", 2, true},
		"no cursor":    {"/?page=2", 1, false},
		"a loop":       {"/?cursor=same", 2, false},
	} {
		requests = 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests++
			next := c.next
			if c.ok && r.URL.Query().Get("cursor") == "2" {
				next = ""
			}
			_, _ = fmt.Fprintf(w, `{"next":%q,"results":[]}`, next)
		}))
		err := client(t, server.URL, key).List(t.Context(), recall.Filter{}, func(recall.Credential) bool { return true })
		if (err == nil) != c.ok || requests != c.most {
			t.Errorf("%s: %v after %d pages", name, err, requests)
		}
		server.Close()
	}
}

func TestKeyIsReplaced(t *testing.T) {
	_, c, _ := start(t, recalltest.Options{})
	c.SetKey(secret.New("another"))
	if _, err := c.Get(t.Context(), "x"); !errors.Is(err, recall.ErrUnauthorized) {
		t.Errorf("with a wrong key: %v", err)
	}
	c.SetKey(secret.New(key))
	if _, err := c.Get(t.Context(), "x"); !errors.Is(err, recall.ErrNotFound) {
		t.Errorf("with the right key: %v", err)
	}
}

func TestApps(t *testing.T) {
	_, c, _ := start(t, recalltest.Options{
		OAuthApps: []string{"one", "two"}, ClientIDs: map[string]string{"one": "client-1", "two": "client-2"},
	})
	all, err := c.Apps(t.Context(), "")
	if want := []recall.App{{ID: "one", ClientID: "client-1"}, {ID: "two", ClientID: "client-2"}}; err != nil || !slices.Equal(all, want) {
		t.Errorf("all apps: %v, %v", all, err)
	}
	if some, err := c.Apps(t.Context(), "client-2"); err != nil || len(some) != 1 || some[0].ID != "two" {
		t.Errorf("apps of a client id: %v, %v", some, err)
	}
}

// gate records what a client asks of its gate.
type gate struct {
	entered []string
	paused  []string
	err     error
}

func (g *gate) Enter(_ context.Context, kind recall.Kind, n int) error {
	g.entered = append(g.entered, fmt.Sprint(kind, " ", n))
	return g.err
}

func (g *gate) Pause(_ context.Context, kind recall.Kind, d time.Duration) {
	g.paused = append(g.paused, fmt.Sprint(kind, " ", d))
}

func TestEveryRequestEntersTheGate(t *testing.T) {
	r, open, address := start(t, recalltest.Options{PageSize: 1})
	made, err := open.Create(t.Context(), recalltest.DefaultOAuthApp, address("ann"))
	if err != nil {
		t.Fatal(err)
	}
	before := r.Counts().Requests
	limit := &recall.LimitError{For: time.Minute}
	for name, c := range map[string]struct {
		want string
		call func(*recall.Client) error
	}{
		"create": {"other 1", func(c *recall.Client) error {
			_, err := c.Create(t.Context(), recalltest.DefaultOAuthApp, address("bob"))
			return err
		}},
		"replace": {"other 2", func(c *recall.Client) error {
			_, err := c.Replace(t.Context(), made.ID, recalltest.DefaultOAuthApp, address("ann"))
			return err
		}},
		"list": {"list 1", func(c *recall.Client) error {
			return c.List(t.Context(), recall.Filter{}, func(recall.Credential) bool { return true })
		}},
		"apps": {"list 1", func(c *recall.Client) error { _, err := c.Apps(t.Context(), ""); return err }},
		"logs": {"other 1", func(c *recall.Client) error {
			_, err := c.ListLogs(t.Context(), made.ID, time.Now().Add(-time.Hour))
			return err
		}},
		"get":    {"other 1", func(c *recall.Client) error { _, err := c.Get(t.Context(), made.ID); return err }},
		"delete": {"other 1", func(c *recall.Client) error { return c.Delete(t.Context(), made.ID) }},
		"wait":   {"other 0", func(c *recall.Client) error { return c.WaitForQuota(t.Context()) }},
	} {
		closed := &gate{err: limit}
		var got *recall.LimitError
		if err := c.call(open.WithGate(closed)); !errors.As(err, &got) || got != limit || !slices.Equal(closed.entered, []string{c.want}) {
			t.Errorf("%s: entered %v, %v; want %s and the limit", name, closed.entered, err, c.want)
		}
	}
	if n := r.Counts().Requests - before; n != 0 || len(r.Credentials()) != 1 {
		t.Errorf("%d requests were sent over the limit; %d credentials", n, len(r.Credentials()))
	}
}

func TestReplace(t *testing.T) {
	r, c, address := start(t, recalltest.Options{})
	first, err := c.Create(t.Context(), recalltest.DefaultOAuthApp, address("ann"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Replace(t.Context(), first.ID, recalltest.DefaultOAuthApp, address("ann"))
	if err != nil || second.ID == first.ID {
		t.Fatalf("replaced %s by %s: %v", first.ID, second.ID, err)
	}
	// A credential that is gone is no reason not to create the other.
	if err := c.Delete(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	third, err := c.Replace(t.Context(), second.ID, recalltest.DefaultOAuthApp, address("ann"))
	if err != nil {
		t.Fatal(err)
	}
	// One that may still be there is.
	r.Fail(http.MethodDelete, "", 1, recalltest.Fault{Status: 503})
	var refused *recall.RefusedError
	if _, err := c.Replace(t.Context(), third.ID, recalltest.DefaultOAuthApp, address("ann")); !errors.As(err, &refused) || refused.Status != 503 {
		t.Errorf("the deletion failed: %v", err)
	}
	if all := r.Credentials(); len(all) != 1 || all[0].ID != third.ID || r.Counts().Creates != 3 {
		t.Errorf("%d credentials, %d creates", len(all), r.Counts().Creates)
	}
}

// The gate gets each pause that Recall requests, and none after another failure.
func TestPauses(t *testing.T) {
	r, open, _ := start(t, recalltest.Options{})
	for name, c := range map[string]struct {
		fault recalltest.Fault
		want  []string
	}{
		"Retry-After":         {recalltest.Fault{Status: 503, Header: http.Header{"Retry-After": {"7"}}}, []string{"other 7s", "list 7s"}},
		"limited":             {recalltest.Fault{Status: 429, Header: http.Header{"Retry-After": {"9"}}}, []string{"other 9s", "list 9s"}},
		"limited, without it": {recalltest.Fault{Status: 429}, []string{"other 1s", "list 1s"}},
		"a failure":           {recalltest.Fault{Status: 500}, nil},
	} {
		g := &gate{}
		client := open.WithGate(g)
		r.Fail(http.MethodGet, "", 2, c.fault)
		if _, err := client.Get(t.Context(), "x"); err == nil {
			t.Errorf("%s: Get succeeds", name)
		}
		if _, _, err := client.Page(t.Context(), recall.Filter{}, ""); err == nil {
			t.Errorf("%s: Page succeeds", name)
		}
		if !slices.Equal(g.paused, c.want) {
			t.Errorf("%s: paused %v, want %v", name, g.paused, c.want)
		}
	}
}

func TestErrorTexts(t *testing.T) {
	for want, err := range map[string]error{
		"Recall returned 503": &recall.RefusedError{Status: 503},
		"Recall returned 400 for oauth_app, access_token_callback_url": &recall.RefusedError{
			Status: 400, Fields: []string{"oauth_app", "access_token_callback_url"},
		},
		"over the limit of requests to Recall for 1.5s":    &recall.LimitError{For: 1500 * time.Millisecond},
		"the Zoom user already has a credential at Recall": &recall.ConflictError{ZoomUser: "ann"},
	} {
		if got := err.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestLogs(t *testing.T) {
	r, c, address := start(t, recalltest.Options{})
	made, err := c.Create(t.Context(), recalltest.DefaultOAuthApp, address("ann"))
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := c.ListLogs(t.Context(), made.ID, time.Now().Add(-time.Hour)); err != nil || len(entries) != 0 {
		t.Errorf("a new credential's log: %v, %v", entries, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.Callback(ended, made.ID); err == nil {
		t.Fatal("a cancelled callback succeeds")
	}
	entries, err := c.ListLogs(t.Context(), made.ID, time.Now().Add(-time.Hour))
	if err != nil || len(entries) != 1 || entries[0].Message == "" || time.Since(entries[0].At) > time.Minute {
		t.Errorf("after a failed callback: %v, %v", entries, err)
	}
	if entries, err := c.ListLogs(t.Context(), made.ID, time.Now().Add(time.Hour)); err != nil || len(entries) != 0 {
		t.Errorf("since a later time: %v, %v", entries, err)
	}
	if entries, err := c.ListLogs(t.Context(), "another", time.Now().Add(-time.Hour)); err != nil || len(entries) != 0 {
		t.Errorf("another credential's log: %v, %v", entries, err)
	}
}
