// Package recall is a client for Recall.ai's Zoom OAuth credentials in the
// customer-managed mode: Recall is given a callback URL and holds no tokens
// (docs.recall.ai, customer-managed OAuth and the API reference).
//
// Recall has no idempotency key and no call that changes a credential. So after
// an [ErrUncertain] create, list and compare before creating again.
//
// Recall's limits are for all that a workspace does. A [Gate] keeps them for all
// who share it.
package recall

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"tokenprovider/internal/neterr"
	"tokenprovider/internal/secret"
)

var (
	// ErrNotFound means: Recall has no such credential.
	ErrNotFound = errors.New("no such credential at Recall")
	// ErrUnauthorized means: Recall refuses the API key. The operator has to mend that.
	ErrUnauthorized = errors.New("Recall refuses the API key") //nolint:staticcheck // a name
	// ErrUncertain means: no usable answer came. Recall may have done what it was asked.
	ErrUncertain = errors.New("no answer from Recall")
)

// ConflictError means: the Zoom user or account already has a credential at Recall.
type ConflictError struct{ ZoomUser, ZoomAccount string }

func (e *ConflictError) Error() string {
	return "the Zoom user already has a credential at Recall"
}

// RefusedError is any other answer that is not a success.
type RefusedError struct {
	Status     int
	Fields     []string      // names of the fields that Recall does not like
	RetryAfter time.Duration // 0 if Recall did not say
}

func (e *RefusedError) Error() string {
	if len(e.Fields) > 0 {
		return fmt.Sprintf("Recall answered %d about %s", e.Status, strings.Join(e.Fields, ", "))
	}
	return fmt.Sprintf("Recall answered %d", e.Status)
}

// LimitError means: no request was sent, because it would be over Recall's limits,
// or because Recall has asked to be left alone.
type LimitError struct{ For time.Duration }

func (e *LimitError) Error() string {
	return fmt.Sprintf("over the limit of requests to Recall for %v", e.For.Round(time.Millisecond))
}

// Kind is what Recall's limits tell apart.
type Kind string

// The kinds of requests. Recall's reference allows 60 lists of credentials a
// minute, and 300 of each other request, for a workspace.
const (
	Lists Kind = "list"
	Other Kind = "other"
)

// Gate decides when requests may be sent.
type Gate interface {
	// Enter returns when n requests of a kind may be sent, or why they may not
	// now: a [*LimitError].
	Enter(ctx context.Context, kind Kind, n int) error
	// Rest says that Recall has asked to be left alone with this kind of request.
	Rest(ctx context.Context, kind Kind, d time.Duration)
}

// Credential is a Zoom OAuth credential as Recall knows it.
type Credential struct {
	ID          string
	OAuthApp    string
	CallbackURL secret.Text
	Status      string // healthy or unhealthy
	ZoomUser    string
	ZoomAccount string
	CreatedAt   time.Time
	MeetingSync string // not_started, in_progress, completed or failed
}

// Config is what a client needs; every field without a default is required.
type Config struct {
	APIURL *url.URL // https://us-east-1.recall.ai, or another region's host
	APIKey secret.Text
	HTTP   *http.Client
	Gate   Gate // nil: requests are sent at once

	Metrics *Metrics // nil: nothing is measured
}

// Client talks to Recall. It is safe for concurrent use.
type Client struct {
	credentials *url.URL
	logs        *url.URL
	apps        *url.URL
	key         *atomic.Pointer[secret.Text]
	http        *http.Client
	gate        Gate
	metrics     *Metrics
}

// New returns a client. It does no I/O.
func New(c Config) *Client {
	httpClient := *c.HTTP
	httpClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.Gate == nil {
		c.Gate = open{}
	}
	return &Client{
		credentials: c.APIURL.JoinPath("api", "v2", "zoom-oauth-credentials", "/"),
		logs:        c.APIURL.JoinPath("api", "v2", "zoom-oauth-credential-logs", "/"),
		apps:        c.APIURL.JoinPath("api", "v2", "zoom-oauth-apps", "/"),
		key:         newKey(c.APIKey), http: &httpClient, gate: c.Gate, metrics: c.Metrics,
	}
}

func newKey(text secret.Text) *atomic.Pointer[secret.Text] {
	key := new(atomic.Pointer[secret.Text])
	key.Store(&text)
	return key
}

// SetKey replaces the API key, for requests from now on and for every client that
// [Client.WithGate] has made of this one.
func (c *Client) SetKey(key secret.Text) { c.key.Store(&key) }

// WithGate returns a client like c whose requests go through another gate.
func (c *Client) WithGate(gate Gate) *Client {
	other := *c
	other.gate = gate
	return &other
}

// open is a gate that lets everything pass.
type open struct{}

func (open) Enter(context.Context, Kind, int) error    { return nil }
func (open) Rest(context.Context, Kind, time.Duration) {}

// wire is a credential in JSON.
type wire struct {
	ID          string    `json:"id"`
	OAuthApp    string    `json:"oauth_app"`
	CallbackURL string    `json:"access_token_callback_url"`
	Status      string    `json:"status"`
	ZoomUser    string    `json:"user_id"`
	ZoomAccount string    `json:"account_id"`
	CreatedAt   time.Time `json:"created_at"`
	MeetingSync string    `json:"meeting_sync_status"`
}

func (w wire) credential() Credential {
	return Credential{w.ID, w.OAuthApp, secret.New(w.CallbackURL), w.Status, w.ZoomUser, w.ZoomAccount, w.CreatedAt, w.MeetingSync}
}

// Capacity returns when the gate would let a request pass, but sends none.
func (c *Client) WaitForQuota(ctx context.Context) error { return c.gate.Enter(ctx, Other, 0) }

// Create makes a credential that calls back for its tokens. Recall may call the
// URL before this returns. It answers a [*ConflictError] if the Zoom user has
// a credential already.
func (c *Client) Create(ctx context.Context, oauthApp string, callbackURL secret.Text) (Credential, error) {
	if err := c.gate.Enter(ctx, Other, 1); err != nil {
		return Credential{}, fmt.Errorf("creating a credential: %w", err)
	}
	return c.create(ctx, oauthApp, callbackURL)
}

// Replace deletes a credential, if there is one, and creates another in its
// place, with as short a time between the two as can be had. It fails before the
// first if there is no room for both within the limits. Otherwise it answers what
// [Client.Create] does.
func (c *Client) Replace(ctx context.Context, id, oauthApp string, callbackURL secret.Text) (Credential, error) {
	if err := c.gate.Enter(ctx, Other, 2); err != nil {
		return Credential{}, fmt.Errorf("replacing a credential: %w", err)
	}
	if err := c.delete(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
		return Credential{}, err
	}
	return c.create(ctx, oauthApp, callbackURL)
}

func (c *Client) create(ctx context.Context, oauthApp string, callbackURL secret.Text) (Credential, error) {
	body, err := json.Marshal(map[string]string{
		"oauth_app":                 oauthApp,
		"access_token_callback_url": callbackURL.Reveal(),
	})
	if err != nil {
		return Credential{}, fmt.Errorf("creating a credential: %w", err)
	}
	var created wire
	if err := c.do(ctx, Other, http.MethodPost, c.credentials, body, http.StatusCreated, &created); err != nil {
		return Credential{}, fmt.Errorf("creating a credential: %w", err)
	}
	return created.credential(), nil
}

// Filter selects credentials; an empty field selects all.
type Filter struct{ OAuthApp, ZoomUser, ZoomAccount string }

// List calls each with every credential that the filter selects, page by page,
// until it returns false.
func (c *Client) List(ctx context.Context, filter Filter, each func(Credential) bool) error {
	for cursor := ""; ; {
		found, next, err := c.Page(ctx, filter, cursor)
		if err != nil {
			return err
		}
		for _, credential := range found {
			if !each(credential) {
				return nil
			}
		}
		if next == "" {
			return nil
		}
		cursor = next
	}
}

// Page reads one page of the credentials that the filter selects: the one of a
// cursor, or the first. It returns the cursor of the next, "" after the last.
func (c *Client) Page(ctx context.Context, filter Filter, cursor string) (found []Credential, next string, err error) {
	query := url.Values{}
	for name, value := range map[string]string{
		"oauth_app": filter.OAuthApp, "user_id": filter.ZoomUser, "account_id": filter.ZoomAccount, "cursor": cursor,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if err := c.gate.Enter(ctx, Lists, 1); err != nil {
		return nil, "", fmt.Errorf("listing credentials: %w", err)
	}
	page := *c.credentials
	page.RawQuery = query.Encode()
	var answer struct {
		Next    string `json:"next"`
		Results []wire `json:"results"`
	}
	if err := c.do(ctx, Lists, http.MethodGet, &page, nil, http.StatusOK, &answer); err != nil {
		return nil, "", fmt.Errorf("listing credentials: %w", err)
	}
	for _, w := range answer.Results {
		found = append(found, w.credential())
	}
	if answer.Next == "" {
		return found, "", nil
	}
	// Only the cursor is taken from the link: the API key goes to no other host.
	link, err := url.Parse(answer.Next)
	if err != nil || link.Query().Get("cursor") == "" || link.Query().Get("cursor") == cursor {
		return nil, "", fmt.Errorf("listing credentials: no cursor in the next page's link: %w", ErrUncertain)
	}
	return found, link.Query().Get("cursor"), nil
}

// App is a Zoom OAuth app as Recall knows it.
type App struct {
	ID       string // what a credential names as its oauth_app
	ClientID string // at Zoom
}

// Apps returns the Zoom apps that Recall knows by a client id, or the first page of
// all of them if it is empty.
func (c *Client) Apps(ctx context.Context, clientID string) ([]App, error) {
	if err := c.gate.Enter(ctx, Lists, 1); err != nil {
		return nil, fmt.Errorf("listing Zoom apps: %w", err)
	}
	page := *c.apps
	if clientID != "" {
		page.RawQuery = url.Values{"client_id": {clientID}}.Encode()
	}
	var answer struct {
		Results []struct {
			ID       string `json:"id"`
			ClientID string `json:"client_id"`
		} `json:"results"`
	}
	if err := c.do(ctx, Lists, http.MethodGet, &page, nil, http.StatusOK, &answer); err != nil {
		return nil, fmt.Errorf("listing Zoom apps: %w", err)
	}
	apps := make([]App, len(answer.Results))
	for i, app := range answer.Results {
		apps[i] = App{app.ID, app.ClientID}
	}
	return apps, nil
}

// LogEntry is what Recall has logged of a credential.
type LogEntry struct {
	Message string // Recall's own words, which may quote anything
	At      time.Time
}

// ListLogs returns what Recall has logged of a credential since a time, in no
// order.
func (c *Client) ListLogs(ctx context.Context, id string, since time.Time) ([]LogEntry, error) {
	if err := c.gate.Enter(ctx, Other, 1); err != nil {
		return nil, fmt.Errorf("reading Recall's log: %w", err)
	}
	page := *c.logs
	page.RawQuery = url.Values{"credential": {id}, "created_at_after": {since.UTC().Format(time.RFC3339)}}.Encode()
	var answer struct {
		Results []struct {
			Message   string    `json:"message"`
			CreatedAt time.Time `json:"created_at"`
		} `json:"results"`
	}
	if err := c.do(ctx, Other, http.MethodGet, &page, nil, http.StatusOK, &answer); err != nil {
		return nil, fmt.Errorf("reading Recall's log: %w", err)
	}
	complaints := make([]LogEntry, len(answer.Results))
	for i, entry := range answer.Results {
		complaints[i] = LogEntry{entry.Message, entry.CreatedAt}
	}
	return complaints, nil
}

// Get reads a credential. It answers [ErrNotFound] if there is none.
func (c *Client) Get(ctx context.Context, id string) (Credential, error) {
	if err := c.gate.Enter(ctx, Other, 1); err != nil {
		return Credential{}, fmt.Errorf("reading a credential: %w", err)
	}
	var found wire
	if err := c.do(ctx, Other, http.MethodGet, c.credential(id), nil, http.StatusOK, &found); err != nil {
		return Credential{}, fmt.Errorf("reading a credential: %w", err)
	}
	return found.credential(), nil
}

// Delete removes a credential. It answers [ErrNotFound] if there is none.
func (c *Client) Delete(ctx context.Context, id string) error {
	if err := c.gate.Enter(ctx, Other, 1); err != nil {
		return fmt.Errorf("deleting a credential: %w", err)
	}
	return c.delete(ctx, id)
}

func (c *Client) delete(ctx context.Context, id string) error {
	if err := c.do(ctx, Other, http.MethodDelete, c.credential(id), nil, http.StatusNoContent, nil); err != nil {
		return fmt.Errorf("deleting a credential: %w", err)
	}
	return nil
}

func (c *Client) credential(id string) *url.URL {
	return c.credentials.JoinPath(url.PathEscape(id), "/")
}

// do sends one request. Errors hold neither bodies nor URLs: both may hold a
// callback's secret.
func (c *Client) do(ctx context.Context, kind Kind, method string, target *url.URL, body []byte, want int, answer any) (err error) {
	began := time.Now()
	defer func() { c.metrics.ended(c.callOf(kind, method, target.Path), began, err) }()
	request, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return errors.New("not a request that can be sent")
	}
	request.Header.Set("Authorization", "Token "+c.key.Load().Reveal())
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrUncertain, ctx.Err())
		}
		return fmt.Errorf("%w (%s)", ErrUncertain, neterr.Describe(err))
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, 8<<20))
	if err != nil {
		return ErrUncertain
	}
	if response.StatusCode != want {
		err := refusal(response, text)
		var refused *RefusedError
		if errors.As(err, &refused) && (refused.RetryAfter > 0 || refused.Status == http.StatusTooManyRequests) {
			c.gate.Rest(ctx, kind, max(refused.RetryAfter, time.Second))
		}
		return err
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return ErrUncertain
	}
	return nil
}

// refusal reads an answer that is not the wanted one.
func refusal(response *http.Response, text []byte) error {
	switch response.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return ErrUnauthorized
	case http.StatusNotFound:
		return ErrNotFound
	}
	refused := &RefusedError{
		Status:     response.StatusCode,
		RetryAfter: neterr.RetryAfter(response.Header, time.Now()),
	}
	if response.StatusCode != http.StatusBadRequest {
		return refused
	}
	var conflict struct {
		ZoomUser    string `json:"conflicting_zoom_user_id"`
		ZoomAccount string `json:"conflicting_zoom_account_id"`
	}
	if json.Unmarshal(text, &conflict) == nil && conflict.ZoomUser+conflict.ZoomAccount != "" {
		return &ConflictError{conflict.ZoomUser, conflict.ZoomAccount}
	}
	// Only the fields that were sent are named: an answer's text is not ours.
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(text, &fields) // what is not JSON names no field
	for _, field := range []string{"oauth_app", "access_token_callback_url"} {
		if _, named := fields[field]; named {
			refused.Fields = append(refused.Fields, field)
		}
	}
	return refused
}
