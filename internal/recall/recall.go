// Package recall is a client for Recall.ai's Zoom OAuth credentials in the
// customer-managed mode: Recall gets a callback URL and holds no tokens
// (docs.recall.ai, customer-managed OAuth and the API reference).
//
// Recall has no idempotency key and no call that changes a credential. After a
// create that returns [ErrUncertain], list the credentials and compare before
// creating again.
//
// Recall's limits count all requests of a workspace. A [Gate] keeps them for all
// processes that share the workspace.
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
	// ErrNotFound means that Recall has no such credential.
	ErrNotFound = errors.New("no such credential at Recall")
	// ErrUnauthorized means that Recall refuses the API key. The operator has to fix that.
	ErrUnauthorized = errors.New("Recall refuses the API key") //nolint:staticcheck // a name
	// ErrUncertain means that no usable response came. Recall may have carried out the
	// request.
	ErrUncertain = errors.New("no response from Recall")
)

// ConflictError means that the Zoom user or account already has a credential at Recall.
type ConflictError struct{ ZoomUser, ZoomAccount string }

func (e *ConflictError) Error() string {
	return "the Zoom user already has a credential at Recall"
}

// RefusedError is any other response that is not a success.
type RefusedError struct {
	Status     int
	Fields     []string      // names of the fields that Recall rejects
	RetryAfter time.Duration // 0: the response has none
}

func (e *RefusedError) Error() string {
	if len(e.Fields) > 0 {
		return fmt.Sprintf("Recall returned %d for %s", e.Status, strings.Join(e.Fields, ", "))
	}
	return fmt.Sprintf("Recall returned %d", e.Status)
}

// LimitError means that no request was sent: it would exceed Recall's limits, or
// Recall has requested a pause.
type LimitError struct{ For time.Duration }

func (e *LimitError) Error() string {
	return fmt.Sprintf("over the limit of requests to Recall for %v", e.For.Round(time.Millisecond))
}

// Kind is a class of requests with a limit of its own.
type Kind string

// The kinds of requests. Recall's reference allows 60 lists of credentials a
// minute, and 300 of each other request, for a workspace.
const (
	Lists Kind = "list"
	Other Kind = "other"
)

// Gate decides when requests may be sent. It is safe for concurrent use.
type Gate interface {
	// Enter waits until n requests of a kind may be sent, and counts them. It returns a
	// [*LimitError] if that takes too long. With n = 0 it counts nothing.
	Enter(ctx context.Context, kind Kind, n int) error
	// Pause stops requests of a kind for d, as Recall has requested.
	Pause(ctx context.Context, kind Kind, d time.Duration)
}

// Credential is a Zoom OAuth credential at Recall.
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

// Config configures a client. Every field without a default is required.
type Config struct {
	APIURL *url.URL // https://us-east-1.recall.ai, or another region's host
	APIKey secret.Text
	HTTP   *http.Client
	Gate   Gate // nil: requests are sent at once

	Metrics *Metrics // nil: nothing is measured
}

// Client calls Recall's API. It is safe for concurrent use.
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
		c.Gate = openGate{}
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

// SetKey replaces the API key of this client, and of every client that
// [Client.WithGate] has made from it.
func (c *Client) SetKey(key secret.Text) { c.key.Store(&key) }

// WithGate returns a client like c whose requests go through another gate.
func (c *Client) WithGate(gate Gate) *Client {
	other := *c
	other.gate = gate
	return &other
}

// openGate has no limits.
type openGate struct{}

func (openGate) Enter(context.Context, Kind, int) error     { return nil }
func (openGate) Pause(context.Context, Kind, time.Duration) {}

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

// WaitForQuota waits until the gate has room for a request. It sends none and
// reserves nothing.
func (c *Client) WaitForQuota(ctx context.Context) error { return c.gate.Enter(ctx, Other, 0) }

// Create creates a credential with a callback URL. Recall may call the URL before
// Create returns. Create returns a [*ConflictError] if the Zoom user already has a
// credential.
func (c *Client) Create(ctx context.Context, oauthApp string, callbackURL secret.Text) (Credential, error) {
	if err := c.gate.Enter(ctx, Other, 1); err != nil {
		return Credential{}, fmt.Errorf("creating a credential: %w", err)
	}
	return c.create(ctx, oauthApp, callbackURL)
}

// Replace deletes a credential, if it exists, and creates another immediately after.
// It sends neither request if the limits have no room for both. Its other errors are
// those of [Client.Create].
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
// until each returns false.
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

// Page returns one page of the credentials that the filter selects: the page of a
// cursor, or the first if cursor is "". next is the following page's cursor, "" after
// the last.
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
	var response struct {
		Next    string `json:"next"`
		Results []wire `json:"results"`
	}
	if err := c.do(ctx, Lists, http.MethodGet, &page, nil, http.StatusOK, &response); err != nil {
		return nil, "", fmt.Errorf("listing credentials: %w", err)
	}
	for _, w := range response.Results {
		found = append(found, w.credential())
	}
	if response.Next == "" {
		return found, "", nil
	}
	// Only the cursor is used: the API key must not go to another host.
	link, err := url.Parse(response.Next)
	if err != nil || link.Query().Get("cursor") == "" || link.Query().Get("cursor") == cursor {
		return nil, "", fmt.Errorf("listing credentials: next page without a new cursor: %w", ErrUncertain)
	}
	return found, link.Query().Get("cursor"), nil
}

// App is a Zoom OAuth app at Recall.
type App struct {
	ID       string // what a credential names as its oauth_app
	ClientID string // at Zoom
}

// Apps returns the Zoom apps with a client id, or the first page of all Zoom apps if
// clientID is empty.
func (c *Client) Apps(ctx context.Context, clientID string) ([]App, error) {
	if err := c.gate.Enter(ctx, Lists, 1); err != nil {
		return nil, fmt.Errorf("listing Zoom apps: %w", err)
	}
	page := *c.apps
	if clientID != "" {
		page.RawQuery = url.Values{"client_id": {clientID}}.Encode()
	}
	var response struct {
		Results []struct {
			ID       string `json:"id"`
			ClientID string `json:"client_id"`
		} `json:"results"`
	}
	if err := c.do(ctx, Lists, http.MethodGet, &page, nil, http.StatusOK, &response); err != nil {
		return nil, fmt.Errorf("listing Zoom apps: %w", err)
	}
	apps := make([]App, len(response.Results))
	for i, app := range response.Results {
		apps[i] = App{app.ID, app.ClientID}
	}
	return apps, nil
}

// LogEntry is an entry of a credential's log at Recall.
type LogEntry struct {
	Message string // Recall's text; it may quote secrets
	At      time.Time
}

// ListLogs returns the entries of a credential's log since a time, in no order: one
// page.
func (c *Client) ListLogs(ctx context.Context, id string, since time.Time) ([]LogEntry, error) {
	if err := c.gate.Enter(ctx, Other, 1); err != nil {
		return nil, fmt.Errorf("reading the credential's log: %w", err)
	}
	page := *c.logs
	page.RawQuery = url.Values{"credential": {id}, "created_at_after": {since.UTC().Format(time.RFC3339)}}.Encode()
	var response struct {
		Results []struct {
			Message   string    `json:"message"`
			CreatedAt time.Time `json:"created_at"`
		} `json:"results"`
	}
	if err := c.do(ctx, Other, http.MethodGet, &page, nil, http.StatusOK, &response); err != nil {
		return nil, fmt.Errorf("reading the credential's log: %w", err)
	}
	entries := make([]LogEntry, len(response.Results))
	for i, entry := range response.Results {
		entries[i] = LogEntry{entry.Message, entry.CreatedAt}
	}
	return entries, nil
}

// Get returns a credential, or [ErrNotFound].
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

// Delete deletes a credential. It returns [ErrNotFound] if there is none.
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

// do sends one request and decodes the response into result. Errors contain neither
// bodies nor URLs: both may contain a callback secret.
func (c *Client) do(ctx context.Context, kind Kind, method string, target *url.URL, body []byte, want int, result any) (err error) {
	began := time.Now()
	defer func() { c.metrics.observe(c.callOf(kind, method, target.Path), began, err) }()
	request, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return errors.New("building the request")
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
			c.gate.Pause(ctx, kind, max(refused.RetryAfter, time.Second))
		}
		return err
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(text, result); err != nil {
		return ErrUncertain
	}
	return nil
}

// refusal returns the error of an unexpected response.
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
	// Only names of fields that were sent: the response may quote secrets.
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(text, &fields) // a body that is not JSON has no fields
	for _, field := range []string{"oauth_app", "access_token_callback_url"} {
		if _, named := fields[field]; named {
			refused.Fields = append(refused.Fields, field)
		}
	}
	return refused
}
