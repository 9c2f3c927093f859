// Package zoom is a client for the calls of Zoom's OAuth and REST API that keep a
// grant alive: code exchange, refresh, revocation and users/me.
//
// A refresh token works once, so a caller must know whether a failed request may
// have spent it. The errors say so:
//
//   - [ErrInvalidGrant], [ErrInvalidClient], [*RefusedError]: Zoom responded without
//     spending it.
//   - [ErrUnsent]: no bytes left this machine.
//   - [ErrUncertain]: unknown; the request may have reached Zoom.
//
// The client never repeats a request, except with the second client secret after
// invalid_client.
package zoom

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"tokenprovider/internal/neterr"
	"tokenprovider/internal/secret"
)

var (
	// ErrInvalidGrant means that Zoom refused the code or refresh token: it is spent or
	// expired, or the user removed the app.
	ErrInvalidGrant = errors.New("Zoom refused the grant (invalid_grant)") //nolint:staticcheck // a name
	// ErrInvalidClient means that Zoom refused the app's credentials. Only an operator
	// can fix that; the grant may be valid.
	ErrInvalidClient = errors.New("Zoom refused the app's client id or secret (invalid_client)") //nolint:staticcheck // a name
	// ErrInvalidToken means that the access token has expired or was replaced.
	ErrInvalidToken = errors.New("Zoom refused the access token") //nolint:staticcheck // a name
	// ErrUnsent means that the request was not sent.
	ErrUnsent = errors.New("Zoom is unreachable") //nolint:staticcheck // a name
	// ErrUncertain means that the request may have been sent, and that no usable
	// response arrived. Zoom may have processed it.
	ErrUncertain = errors.New("no usable response from Zoom")
)

// RefusedError is an error response that is not about the grant, the app or the
// access token: a rate limit, a server error, an invalid request.
type RefusedError struct {
	Status     int
	Code       string        // OAuth error code; empty if there is none, or not a plain one
	RetryAfter time.Duration // 0: the response has no Retry-After
}

func (e *RefusedError) Error() string {
	if e.Code != "" {
		return fmt.Sprintf("Zoom returned %d (%s)", e.Status, e.Code)
	}
	return fmt.Sprintf("Zoom returned %d", e.Status)
}

// Temporary reports whether the same request may succeed later.
func (e *RefusedError) Temporary() bool {
	return e.Status == http.StatusTooManyRequests || e.Status >= http.StatusInternalServerError
}

// Config configures a client for one Zoom app. Fields without a stated default are
// required.
type Config struct {
	ClientID string
	// ClientSecret is the app's secret, or two secrets separated by a comma. When Zoom
	// refuses one, the client tries the other, so a secret can be replaced at Zoom
	// without an interruption.
	ClientSecret secret.Text
	OAuthURL     *url.URL // base of /oauth/token and /oauth/revoke; Zoom's is https://zoom.us
	APIURL       *url.URL // base of /v2/users/me; Zoom's is https://api.zoom.us
	HTTP         *http.Client

	Metrics *Metrics // nil: no metrics
	App     string   // name of the app in the metrics
}

// Client calls Zoom for one Zoom app, at that app's own hosts. It is safe for
// concurrent use.
type Client struct {
	oauth      oauth2.Config
	secrets    []secret.Text
	lastSecret *atomic.Int32 // index of the secret that Zoom accepted last
	revokeURL  string
	meURL      string
	http       *http.Client

	metrics *Metrics
	app     string
}

// New returns a client. It does no I/O.
func New(c Config) *Client {
	httpClient := *c.HTTP
	// A redirect would send a single-use token to another server.
	httpClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.Metrics != nil {
		httpClient.Transport = clockTransport{cmp.Or(httpClient.Transport, http.DefaultTransport), c.Metrics}
	}
	c.Metrics.initApp(c.App)
	var secrets []secret.Text
	for text := range strings.SplitSeq(c.ClientSecret.Reveal(), ",") {
		secrets = append(secrets, secret.New(strings.TrimSpace(text)))
	}
	return &Client{
		metrics: c.Metrics, app: c.App,
		secrets:    secrets,
		lastSecret: new(atomic.Int32),
		oauth: oauth2.Config{
			ClientID: c.ClientID,
			Endpoint: oauth2.Endpoint{
				TokenURL: c.OAuthURL.JoinPath("oauth", "token").String(),
				// Auto-detection repeats the request after any error, which would spend a
				// single-use token twice.
				AuthStyle: oauth2.AuthStyleInHeader,
			},
		},
		revokeURL: c.OAuthURL.JoinPath("oauth", "revoke").String(),
		meURL:     c.APIURL.JoinPath("v2", "users", "me").String(),
		http:      &httpClient,
	}
}

// Tokens is Zoom's response to a code or a refresh token.
type Tokens struct {
	Access   secret.Text
	Refresh  secret.Text   // the spent one if the response has no new one
	Lifetime time.Duration // of the access token, counted from when the request was sent
}

// DefaultLifetime is the assumed lifetime of an access token whose response has no
// expires_in, or an implausible one. It is well below Zoom's documented hour
// (developers.zoom.us, OAuth).
const DefaultLifetime = 10 * time.Minute

// maxLifetime is the longest plausible lifetime of an access token.
const maxLifetime = 24 * time.Hour

// Code is an authorization code. It works once and expires after 5 minutes
// (developers.zoom.us, OAuth).
type Code struct {
	Code        secret.Text
	RedirectURI string      // byte for byte as in the consent request
	Verifier    secret.Text // PKCE (RFC 7636); may be empty
}

// Exchange spends an authorization code.
func (c *Client) Exchange(ctx context.Context, code Code) (tokens Tokens, err error) {
	start := time.Now()
	defer func() { c.metrics.observe(c.app, "exchange", start, err) }()
	var options []oauth2.AuthCodeOption
	if !code.Verifier.IsZero() {
		options = append(options, oauth2.VerifierOption(code.Verifier.Reveal()))
	}
	return c.requestTokens(ctx, "exchanging code", func(ctx context.Context, oauth oauth2.Config) (*oauth2.Token, error) {
		oauth.RedirectURL = code.RedirectURI
		return oauth.Exchange(ctx, code.Code.Reveal(), options...)
	})
}

// Refresh spends a refresh token. It works once, and the new access token ends the
// previous one (devforum.zoom.us, 10375 and 72070).
func (c *Client) Refresh(ctx context.Context, refresh secret.Text) (tokens Tokens, err error) {
	start := time.Now()
	defer func() { c.metrics.observe(c.app, "refresh", start, err) }()
	return c.requestTokens(ctx, "refreshing", func(ctx context.Context, oauth oauth2.Config) (*oauth2.Token, error) {
		return oauth.TokenSource(ctx, &oauth2.Token{RefreshToken: refresh.Reveal()}).Token()
	})
}

// trySecrets calls with each client secret until Zoom accepts one, starting with the
// one accepted last. Another attempt cannot spend a token twice: a failed client
// authentication ends a request before its grant is examined (RFC 6749, section 5.2).
func (c *Client) trySecrets(call func(clientSecret string) error) error {
	first := int(c.lastSecret.Load())
	var err error
	for n := range c.secrets {
		i := (first + n) % len(c.secrets)
		if err = call(c.secrets[i].Reveal()); !errors.Is(err, ErrInvalidClient) {
			c.lastSecret.Store(int32(i)) //nolint:gosec // an operator sets one or two
			return err
		}
	}
	return err
}

func (c *Client) requestTokens(ctx context.Context, action string, call func(context.Context, oauth2.Config) (*oauth2.Token, error)) (Tokens, error) {
	var token *oauth2.Token
	err := c.trySecrets(func(clientSecret string) error {
		ctx, sent := traceSent(context.WithValue(ctx, oauth2.HTTPClient, c.http))
		oauth := c.oauth
		oauth.ClientSecret = clientSecret
		var err error
		if token, err = call(ctx, oauth); err != nil {
			return tokenError(err, sent())
		}
		return nil
	})
	if err != nil {
		return Tokens{}, fmt.Errorf("%s: %w", action, err)
	}
	if token.RefreshToken == "" {
		return Tokens{}, fmt.Errorf("%s: no refresh token in the response: %w", action, ErrUncertain)
	}
	lifetime := time.Duration(token.ExpiresIn) * time.Second
	if lifetime <= 0 || lifetime > maxLifetime {
		lifetime = DefaultLifetime
	}
	return Tokens{secret.New(token.AccessToken), secret.New(token.RefreshToken), lifetime}, nil
}

// tokenError converts an error of the token endpoint. It drops the bodies and URLs
// that x/oauth2 and net/http quote.
func tokenError(err error, sent bool) error {
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) && refused.Response != nil && refused.Response.StatusCode != http.StatusOK {
		return responseError(refused.Response, refused.ErrorCode)
	}
	return transportError(err, sent)
}

// responseError returns the error of a response other than 200.
func responseError(response *http.Response, code string) error {
	isAuthError := response.StatusCode == http.StatusBadRequest || response.StatusCode == http.StatusUnauthorized
	switch {
	case isAuthError && code == "invalid_grant":
		return ErrInvalidGrant
	case isAuthError && code == "invalid_client":
		return ErrInvalidClient
	}
	return &RefusedError{
		Status:     response.StatusCode,
		Code:       plainCode(code),
		RetryAfter: neterr.RetryAfter(response.Header, time.Now()),
	}
}

// transportError returns the error of a request without a usable response.
func transportError(err error, sent bool) error {
	if !sent {
		return fmt.Errorf("%w (%s)", ErrUnsent, neterr.Describe(err))
	}
	return fmt.Errorf("%w (%s)", ErrUncertain, neterr.Describe(err))
}

// plainCode returns a code that looks like an OAuth error code (RFC 6749, section
// 5.2), and otherwise nothing, so that no response can put a secret into an error.
func plainCode(code string) string {
	if len(code) > 40 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ""
	}
	return code
}

// User is a Zoom user.
type User struct {
	ID        string `json:"id"`
	AccountID string `json:"account_id"`
}

// Me returns the user of an access token.
func (c *Client) Me(ctx context.Context, access secret.Text) (user User, err error) {
	start := time.Now()
	defer func() { c.metrics.observe(c.app, "me", start, err) }()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.meURL, nil)
	if err != nil {
		return User{}, fmt.Errorf("reading user: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+access.Reveal())
	if err := c.do(request, &user); err != nil {
		return User{}, fmt.Errorf("reading user: %w", err)
	}
	if user.ID == "" {
		return User{}, fmt.Errorf("reading user: no id in the response: %w", ErrUncertain)
	}
	return user, nil
}

// Revoke ends a grant at Zoom. It takes any of the grant's tokens.
func (c *Client) Revoke(ctx context.Context, token secret.Text) (err error) {
	start := time.Now()
	defer func() { c.metrics.observe(c.app, "revoke", start, err) }()
	form := url.Values{"token": {token.Reveal()}}
	err = c.trySecrets(func(clientSecret string) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.revokeURL, strings.NewReader(form.Encode()))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.SetBasicAuth(url.QueryEscape(c.oauth.ClientID), url.QueryEscape(clientSecret))
		var response struct {
			Status string `json:"status"`
		}
		return c.do(request, &response)
	})
	if err != nil {
		return fmt.Errorf("revoking: %w", err)
	}
	return nil
}

// do sends a request and decodes the body of a 200 into result.
func (c *Client) do(request *http.Request, result any) error {
	ctx, sent := traceSent(request.Context())
	response, err := c.http.Do(request.WithContext(ctx))
	if err != nil {
		return transportError(err, sent())
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return transportError(err, true)
	}
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(body, result); err != nil {
			return transportError(err, true)
		}
		return nil
	}
	var failure struct {
		Error string `json:"error"`
		Code  int    `json:"code"`
	}
	_ = json.Unmarshal(body, &failure) // a body that is not JSON has no code
	if response.StatusCode == http.StatusUnauthorized && failure.Code == 124 {
		return ErrInvalidToken
	}
	return responseError(response, failure.Error)
}

// traceSent returns a function that reports whether the request got a connection. From
// then on it may have been sent.
func traceSent(ctx context.Context) (context.Context, func() bool) {
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { sent.Store(true) },
	})
	return ctx, sent.Load
}
