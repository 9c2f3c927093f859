// Package zoom is a client for the few calls of Zoom's OAuth and REST API that
// keep a grant alive: code exchange, refresh, revocation and users/me.
//
// Its errors answer the one question that matters with single-use refresh
// tokens: may Zoom have spent it? [ErrInvalidGrant], [ErrInvalidClient] and a
// [*RefusedError] say no, Zoom answered without doing it; [ErrUnsent] says no,
// nothing left this machine; [ErrUncertain] says that nobody knows. The client
// never repeats a request by itself.
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
	// ErrInvalidGrant means: Zoom refuses the code or the refresh token itself. It was
	// spent, has expired, or the user has removed the app.
	ErrInvalidGrant = errors.New("Zoom refuses the grant (invalid_grant)") //nolint:staticcheck // a name
	// ErrInvalidClient means: Zoom refuses the app's credentials. The operator has to
	// mend that; it says nothing about any grant.
	ErrInvalidClient = errors.New("Zoom refuses the app's client id or secret (invalid_client)") //nolint:staticcheck // a name
	// ErrInvalidToken means: the access token is dead.
	ErrInvalidToken = errors.New("Zoom refuses the access token") //nolint:staticcheck // a name
	// ErrUnsent means: the request did not leave.
	ErrUnsent = errors.New("Zoom cannot be reached") //nolint:staticcheck // a name
	// ErrUncertain means: the request left and no usable answer came. Zoom may have
	// done what it was asked.
	ErrUncertain = errors.New("Zoom's answer was lost") //nolint:staticcheck // a name
)

// RefusedError is an answer that is neither success nor a verdict on the grant
// or the app: over the limit, a fault of Zoom's, a request it does not like.
type RefusedError struct {
	Status     int
	Code       string        // OAuth error code, if Zoom gave a plain one
	RetryAfter time.Duration // 0 if Zoom did not say
}

func (e *RefusedError) Error() string {
	if e.Code != "" {
		return fmt.Sprintf("Zoom answered %d (%s)", e.Status, e.Code)
	}
	return fmt.Sprintf("Zoom answered %d", e.Status)
}

// Temporary reports whether the same request may be answered otherwise later.
func (e *RefusedError) Temporary() bool {
	return e.Status == http.StatusTooManyRequests || e.Status >= 500
}

// Config is what a client needs; every field without a default is required.
type Config struct {
	ClientID string
	// ClientSecret is the app's secret, or two, separated by a comma: when Zoom
	// refuses the one, the other is tried, so that it can be replaced at Zoom
	// without a moment in which nothing works.
	ClientSecret secret.Text
	OAuthURL     *url.URL // https://zoom.us: /oauth/token and /oauth/revoke are under it
	APIURL       *url.URL // https://api.zoom.us: /v2/users/me is under it
	HTTP         *http.Client

	Metrics *Metrics // nil: nothing is measured
	App     string   // name of the app in the metrics
}

// Client talks to Zoom for one Zoom app. It is safe for concurrent use.
type Client struct {
	oauth   oauth2.Config
	secrets []secret.Text
	using   *atomic.Int32 // the secret that Zoom took last
	revoke  string
	me      string
	http    *http.Client

	metrics *Metrics
	app     string
}

// New returns a client. It does no I/O.
func New(c Config) *Client {
	httpClient := *c.HTTP
	// A redirect would send a single-use token on to another place.
	httpClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.Metrics != nil {
		httpClient.Transport = watched{cmp.Or(httpClient.Transport, http.DefaultTransport), c.Metrics}
	}
	c.Metrics.begin(c.App)
	var secrets []secret.Text
	for text := range strings.SplitSeq(c.ClientSecret.Reveal(), ",") {
		secrets = append(secrets, secret.New(strings.TrimSpace(text)))
	}
	return &Client{
		metrics: c.Metrics, app: c.App,
		secrets: secrets,
		using:   new(atomic.Int32),
		oauth: oauth2.Config{
			ClientID: c.ClientID,
			Endpoint: oauth2.Endpoint{
				TokenURL: c.OAuthURL.JoinPath("oauth", "token").String(),
				// Auto-detection posts a second time after any first error, which
				// spends a single-use token twice.
				AuthStyle: oauth2.AuthStyleInHeader,
			},
		},
		revoke: c.OAuthURL.JoinPath("oauth", "revoke").String(),
		me:     c.APIURL.JoinPath("v2", "users", "me").String(),
		http:   &httpClient,
	}
}

// Tokens is Zoom's answer to a code or a refresh token.
type Tokens struct {
	Access   secret.Text
	Refresh  secret.Text   // the old one if Zoom did not send a new one
	Lifetime time.Duration // of the access token, from when the request was sent
}

// Life is what an access token is taken to live where Zoom does not say, or
// says something absurd: Zoom's own figure, one hour (developers.zoom.us,
// OAuth), is an upper bound, so this stays well below it.
const DefaultLifetime = 10 * time.Minute

// Code is an authorization code as the caller got it. It works once and lives
// for 5 minutes (developers.zoom.us, OAuth).
type Code struct {
	Code        secret.Text
	RedirectURI string      // as in the consent request, byte for byte
	Verifier    secret.Text // PKCE (RFC 7636); may be empty
}

// Exchange spends an authorization code.
func (c *Client) Exchange(ctx context.Context, code Code) (answer Tokens, err error) {
	began := time.Now()
	defer func() { c.metrics.ended(c.app, "exchange", began, err) }()
	var options []oauth2.AuthCodeOption
	if !code.Verifier.IsZero() {
		options = append(options, oauth2.VerifierOption(code.Verifier.Reveal()))
	}
	return c.tokens(ctx, "exchanging the code", func(ctx context.Context, oauth oauth2.Config) (*oauth2.Token, error) {
		oauth.RedirectURL = code.RedirectURI
		return oauth.Exchange(ctx, code.Code.Reveal(), options...)
	})
}

// Refresh spends a refresh token. Each works once, and its answer ends the
// access token before it (devforum.zoom.us, 10375 and 72070).
func (c *Client) Refresh(ctx context.Context, refresh secret.Text) (answer Tokens, err error) {
	began := time.Now()
	defer func() { c.metrics.ended(c.app, "refresh", began, err) }()
	return c.tokens(ctx, "refreshing", func(ctx context.Context, oauth oauth2.Config) (*oauth2.Token, error) {
		return oauth.TokenSource(ctx, &oauth2.Token{RefreshToken: refresh.Reveal()}).Token()
	})
}

// eachSecret calls with one secret after the other until Zoom does not refuse it.
// That Zoom refuses the app says that it has not looked at what else was sent: an
// authentication that fails ends a request (RFC 6749, section 5.2).
func (c *Client) eachSecret(call func(clientSecret string) error) error {
	first := int(c.using.Load())
	var err error
	for n := range c.secrets {
		using := (first + n) % len(c.secrets)
		if err = call(c.secrets[using].Reveal()); !errors.Is(err, ErrInvalidClient) {
			c.using.Store(int32(using)) //nolint:gosec // as many as an operator has typed
			return err
		}
	}
	return err
}

func (c *Client) tokens(ctx context.Context, doing string, call func(context.Context, oauth2.Config) (*oauth2.Token, error)) (Tokens, error) {
	var token *oauth2.Token
	err := c.eachSecret(func(clientSecret string) error {
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
		return Tokens{}, fmt.Errorf("%s: %w", doing, err)
	}
	if token.RefreshToken == "" {
		return Tokens{}, fmt.Errorf("%s: no refresh token in the answer: %w", doing, ErrUncertain)
	}
	life := time.Duration(token.ExpiresIn) * time.Second
	if life <= 0 || life > 24*time.Hour {
		life = DefaultLifetime
	}
	return Tokens{secret.New(token.AccessToken), secret.New(token.RefreshToken), life}, nil
}

// tokenError tells the errors of the token endpoint apart. It drops what
// x/oauth2 and net/http would quote, bodies and URLs.
func tokenError(err error, sent bool) error {
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) && refused.Response != nil && refused.Response.StatusCode != http.StatusOK {
		return verdict(refused.Response, refused.ErrorCode)
	}
	return lost(err, sent)
}

// verdict reads an answer that is not 200.
func verdict(response *http.Response, code string) error {
	client := response.StatusCode == http.StatusBadRequest || response.StatusCode == http.StatusUnauthorized
	switch {
	case client && code == "invalid_grant":
		return ErrInvalidGrant
	case client && code == "invalid_client":
		return ErrInvalidClient
	}
	return &RefusedError{
		Status:     response.StatusCode,
		Code:       plainCode(code),
		RetryAfter: neterr.RetryAfter(response.Header, time.Now()),
	}
}

// lost says what is known when there is no answer.
func lost(err error, sent bool) error {
	if !sent {
		return fmt.Errorf("%w (%s)", ErrUnsent, neterr.Describe(err))
	}
	return fmt.Errorf("%w (%s)", ErrUncertain, neterr.Describe(err))
}

// plainCode lets through only what looks like an OAuth error code (RFC 6749,
// section 5.2), so that no answer can put a secret into an error.
func plainCode(code string) string {
	if len(code) > 40 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ""
	}
	return code
}

// User is whose grant it is.
type User struct {
	ID        string `json:"id"`
	AccountID string `json:"account_id"`
}

// Me asks whose access token it is.
func (c *Client) Me(ctx context.Context, access secret.Text) (user User, err error) {
	began := time.Now()
	defer func() { c.metrics.ended(c.app, "me", began, err) }()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.me, nil)
	if err != nil {
		return User{}, fmt.Errorf("asking whose token it is: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+access.Reveal())
	if err := c.do(request, &user); err != nil {
		return User{}, fmt.Errorf("asking whose token it is: %w", err)
	}
	if user.ID == "" {
		return User{}, fmt.Errorf("asking whose token it is: no id in the answer: %w", ErrUncertain)
	}
	return user, nil
}

// Revoke ends a grant at Zoom by one of its tokens.
func (c *Client) Revoke(ctx context.Context, token secret.Text) (err error) {
	began := time.Now()
	defer func() { c.metrics.ended(c.app, "revoke", began, err) }()
	form := url.Values{"token": {token.Reveal()}}
	err = c.eachSecret(func(clientSecret string) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.revoke, strings.NewReader(form.Encode()))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.SetBasicAuth(url.QueryEscape(c.oauth.ClientID), url.QueryEscape(clientSecret))
		var answer struct {
			Status string `json:"status"`
		}
		return c.do(request, &answer)
	})
	if err != nil {
		return fmt.Errorf("revoking: %w", err)
	}
	return nil
}

// do sends a request and decodes the answer.
func (c *Client) do(request *http.Request, answer any) error {
	ctx, sent := traceSent(request.Context())
	response, err := c.http.Do(request.WithContext(ctx))
	if err != nil {
		return lost(err, sent())
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return lost(err, true)
	}
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(body, answer); err != nil {
			return lost(err, true)
		}
		return nil
	}
	var fault struct {
		Error string `json:"error"`
		Code  int    `json:"code"`
	}
	_ = json.Unmarshal(body, &fault) // what is not JSON has no code
	if response.StatusCode == http.StatusUnauthorized && fault.Code == 124 {
		return ErrInvalidToken
	}
	return verdict(response, fault.Error)
}

// traceSent reports whether a request may have left: from the moment that it
// has a connection, it may.
func traceSent(ctx context.Context) (context.Context, func() bool) {
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { sent.Store(true) },
	})
	return ctx, sent.Load
}
