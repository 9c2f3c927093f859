// Package zoomtest simulates Zoom's OAuth and REST API for tests. [New] returns an
// [http.Handler] for both hosts, zoom.us and api.zoom.us; serve it with
// [net/http/httptest.NewServer].
//
// Refresh tokens and codes work once, and a new access token ends the previous one.
// [Zoom.Fail] adds delays, errors, and responses that are lost before or after
// processing. [Zoom.Counts] returns what a test needs to judge a client.
//
// Sources: developers.zoom.us (OAuth, API reference, rate limits), and topics of
// devforum.zoom.us: a refresh token works once (10375, 77706), and one access token of
// a grant is live (72070, 74432, 95429).
//
// # Limitations
//
// There are no scopes, account-level apps or rate limits (use [Zoom.Fail] for a 429),
// and tokens are not signed. Where Zoom's behaviour is not documented, this package is
// strict: it may refuse what Zoom would accept. Each consent makes a separate grant and
// ends no other. Nothing is ever deleted, so memory grows with each token.
package zoomtest

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"maps"
	"sync"
	"time"
)

// The app that exists unless [Options] has others.
const (
	DefaultClientID     = "zoom-client"
	DefaultClientSecret = "zoom-secret"
)

// Options configures the simulation. The zero value is strict and adds no latency.
type Options struct {
	Apps                 map[string]string // client id -> secret; nil: the default app
	AccessTokenLifetime  time.Duration     // 0: an hour; rounded down to seconds in expires_in
	CodeLifetime         time.Duration     // 0: 5 minutes
	RefreshTokenLifetime time.Duration     // 0: 90 days
	Latency              time.Duration     // before each request is processed; 0: none
	LiveAccessTokens     int               // how many of a grant's newest access tokens work; 0: 1
	// LenientPredecessor accepts the predecessor of a grant's newest refresh token until
	// the newest one is used. The response has another successor, and the previous
	// successor becomes void. Zoom does not document this, and devforum 10375 denies it.
	LenientPredecessor bool
	// Now is the clock for expiry, called with a lock held; nil: time.Now. Latency and
	// delays always use real time.
	Now func() time.Time
}

// User is a Zoom user.
type User struct{ ID, AccountID, Email string }

// Counts counts events since the start.
type Counts struct {
	Requests         int         // received, including dropped ones
	Exchanges        int         // codes exchanged
	Refreshes        int         // refresh tokens exchanged
	SpentPresented   int         // spent refresh tokens presented again, accepted or not
	UnknownPresented int         // refresh tokens never issued, of another app, expired, revoked or void
	SpentCodes       int         // spent codes presented again
	InvalidClient    int         // requests without valid credentials of an app
	Revocations      int         // grants revoked by an app
	ByStatus         map[int]int // responses sent, including those that no client read
}

// Zoom simulates Zoom. It is an [http.Handler], safe for concurrent use.
type Zoom struct {
	options Options
	now     func() time.Time

	mu      sync.Mutex
	users   map[string]User
	first   string // id of the user added first
	codes   map[string]*code
	refresh map[string]*refreshToken
	access  map[string]*accessToken
	faults  map[string][]*queued
	counts  Counts
	renewed map[string]int // refreshes, by user
}

// grant is one consent of a user to an app.
type grant struct {
	client, user string
	revoked      bool
	newest       *refreshToken
	live         []*accessToken // oldest first
}

type code struct {
	client, user, redirect, challenge string
	expires                           time.Time
	spent                             bool
}

type refreshToken struct {
	grant       *grant
	predecessor *refreshToken
	expires     time.Time
	spent       bool
	void        bool // its predecessor was used again
}

type accessToken struct {
	grant   *grant
	expires time.Time
	ended   bool // by a newer one
}

// New returns a simulation without users.
func New(o Options) *Zoom {
	if o.Apps == nil {
		o.Apps = map[string]string{DefaultClientID: DefaultClientSecret}
	}
	o.Apps = maps.Clone(o.Apps)
	for field, fallback := range map[*time.Duration]time.Duration{
		&o.AccessTokenLifetime: time.Hour, &o.CodeLifetime: 5 * time.Minute, &o.RefreshTokenLifetime: 90 * 24 * time.Hour,
	} {
		if *field == 0 {
			*field = fallback
		}
	}
	if o.LiveAccessTokens < 1 {
		o.LiveAccessTokens = 1
	}
	z := &Zoom{
		options: o, now: o.Now,
		users: map[string]User{}, codes: map[string]*code{},
		refresh: map[string]*refreshToken{}, access: map[string]*accessToken{},
		faults: map[string][]*queued{}, renewed: map[string]int{},
	}
	if z.now == nil {
		z.now = time.Now
	}
	z.counts.ByStatus = map[int]int{}
	return z
}

// AddUser adds or replaces a user.
func (z *Zoom) AddUser(u User) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addLocked(u)
}

func (z *Zoom) addLocked(u User) {
	if z.first == "" {
		z.first = u.ID
	}
	z.users[u.ID] = u
}

// Consent records a user's consent to an app and returns the authorization code. It
// adds an unknown user.
func (z *Zoom) Consent(clientID, userID, redirectURI, codeChallenge string) string {
	z.mu.Lock()
	defer z.mu.Unlock()
	if _, known := z.users[userID]; !known {
		z.addLocked(User{ID: userID, AccountID: "account-of-" + userID, Email: userID + "@example.com"})
	}
	text := rand.Text()
	z.codes[text] = &code{
		client: clientID, user: userID, redirect: redirectURI, challenge: codeChallenge,
		expires: z.now().Add(z.options.CodeLifetime),
	}
	return text
}

// Grant creates a grant without a code exchange and returns its tokens.
func (z *Zoom) Grant(clientID, userID string) (access, refresh string) {
	code := z.Consent(clientID, userID, "", "")
	z.mu.Lock()
	defer z.mu.Unlock()
	z.codes[code].spent = true
	return z.issueLocked(&grant{client: clientID, user: userID})
}

// issueLocked issues a grant's next pair of tokens.
func (z *Zoom) issueLocked(g *grant) (access, refresh string) {
	now := z.now()
	access, refresh = newToken("access"), newToken("refresh")
	a := &accessToken{grant: g, expires: now.Add(z.options.AccessTokenLifetime)}
	g.live = append(g.live, a)
	for len(g.live) > z.options.LiveAccessTokens {
		g.live[0].ended = true // devforum 72070, 74432, 95429
		g.live = g.live[1:]
	}
	r := &refreshToken{grant: g, predecessor: g.newest, expires: now.Add(z.options.RefreshTokenLifetime)}
	g.newest = r
	z.access[access], z.refresh[refresh] = a, r
	return access, refresh
}

// newToken returns a random token with the size and format of Zoom's.
func newToken(kind string) string {
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT","kind":"` + kind + `"}`))
	var claims [480]byte
	var signature [64]byte
	_, _ = rand.Read(claims[:])
	_, _ = rand.Read(signature[:])
	return header + "." + base64.RawURLEncoding.EncodeToString(claims[:]) + "." + base64.RawURLEncoding.EncodeToString(signature[:])
}

// acceptsLocked reports whether a refresh token would be exchanged now.
func (z *Zoom) acceptsLocked(r *refreshToken) bool {
	if r == nil || r.void || r.grant.revoked || !z.now().Before(r.expires) {
		return false
	}
	if !r.spent {
		return true
	}
	return z.options.LenientPredecessor && r.grant.newest.predecessor == r && !r.grant.newest.spent
}

func (z *Zoom) liveLocked(token string) *accessToken {
	a := z.access[token]
	if a == nil || a.ended || a.grant.revoked || !z.now().Before(a.expires) {
		return nil
	}
	return a
}

// IsLive reports whether an access token is valid now.
func (z *Zoom) IsLive(access string) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.liveLocked(access) != nil
}

// LookUpAccessToken returns the user of a valid access token and its remaining lifetime.
func (z *Zoom) LookUpAccessToken(access string) (u User, left time.Duration, ok bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	a := z.liveLocked(access)
	if a == nil {
		return User{}, 0, false
	}
	return z.users[a.grant.user], a.expires.Sub(z.now()), true
}

// AcceptsRefreshToken reports whether a refresh token would be exchanged now.
func (z *Zoom) AcceptsRefreshToken(refresh string) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.acceptsLocked(z.refresh[refresh])
}

// Counts returns a copy of the counts.
func (z *Zoom) Counts() Counts {
	z.mu.Lock()
	defer z.mu.Unlock()
	counts := z.counts
	counts.ByStatus = maps.Clone(counts.ByStatus)
	return counts
}

// RefreshesOf returns the number of refresh tokens of a user that were exchanged.
func (z *Zoom) RefreshesOf(userID string) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.renewed[userID]
}

// RefreshTokensOf returns the refresh tokens of a user that would be exchanged
// now.
func (z *Zoom) RefreshTokensOf(userID string) (tokens []string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for token, r := range z.refresh {
		if r.grant.user == userID && z.acceptsLocked(r) {
			tokens = append(tokens, token)
		}
	}
	return tokens
}

// SetClientSecret changes an app's secret, or adds an app.
func (z *Zoom) SetClientSecret(clientID, secret string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.options.Apps[clientID] = secret
}

// SetAccessTokenLifetime sets the lifetime of access tokens issued from now on.
func (z *Zoom) SetAccessTokenLifetime(d time.Duration) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.options.AccessTokenLifetime = d
}

// RevokeUser removes the app for a user: it ends the user's grants and deletes codes that
// were not exchanged.
func (z *Zoom) RevokeUser(userID string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, r := range z.refresh {
		if r.grant.user == userID {
			r.grant.revoked = true
		}
	}
	maps.DeleteFunc(z.codes, func(_ string, c *code) bool { return c.user == userID && !c.spent })
}

// s256 returns the challenge of a PKCE verifier (RFC 7636, section 4.2).
func s256(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
