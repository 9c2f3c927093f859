// Package zoomtest is a stand-in for Zoom's OAuth and REST API, in the manner
// of httptest. Start with [New] and serve it with [net/http/httptest.NewServer]; one
// handler stands for both hosts, zoom.us and api.zoom.us.
//
// It is strict where Zoom is known to be, or may be: refresh tokens and codes
// work once, and a new access token ends the one before it at once. It can be
// told to be slow, to fail, and to lose answers before or after it has done the
// work ([Zoom.Fail]), and it counts what a test needs to judge a client by
// ([Zoom.Counts]).
//
// The facts are those of developers.zoom.us (OAuth, API reference, rate limits)
// and of devforum.zoom.us, by topic number where they stand: a refresh token
// works once (10375, 77706), and one access token of a grant is live (72070,
// 74432, 95429).
//
// # What it does not promise
//
// It knows nothing of scopes, account-level apps and rate limits of its own
// (script a 429 with [Zoom.Fail]), and its tokens are not signed. Where Zoom's
// behaviour is not documented it takes the stricter reading, so that a client
// may be refused here what Zoom would let pass. Each consent is a grant of its
// own and ends no other. It forgets nothing, so it is no server to run for
// weeks.
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

// The app that there is unless [Options] says otherwise.
const (
	DefaultClientID     = "zoom-client"
	DefaultClientSecret = "zoom-secret"
)

// Options says how the stand-in behaves. The zero value is strict and fast.
type Options struct {
	Apps                 map[string]string // client id -> secret; nil: the default app
	AccessTokenLifetime  time.Duration     // 0: an hour; expires_in says it in whole seconds, rounded down
	CodeLifetime         time.Duration     // 0: 5 minutes
	RefreshTokenLifetime time.Duration     // 0: 90 days
	Latency              time.Duration     // before the work of every request; 0: none
	LiveAccessTokens     int               // how many of a grant's newest access tokens work; 0: 1
	// LenientPredecessor lets the predecessor of a grant's newest refresh token
	// work until the newest has been used. Whether Zoom does is not documented
	// (devforum 10375 says no). Such a retry answers a fresh successor and voids
	// the one before. False: never.
	LenientPredecessor bool
	// Now is the clock that tokens expire by, called with a lock held; nil:
	// time.Now. Latency and delays pass in real time whatever it says.
	Now func() time.Time
}

// User is a Zoom user.
type User struct{ ID, AccountID, Email string }

// Counts is what has happened since the start.
type Counts struct {
	Requests         int         // all that arrived, also those that were dropped
	Exchanges        int         // codes that were exchanged
	Refreshes        int         // refresh tokens that were exchanged
	SpentPresented   int         // refresh tokens presented again after they were spent, accepted or not
	UnknownPresented int         // refresh tokens never issued, another app's, expired, revoked or void
	SpentCodes       int         // codes presented again after they were spent
	InvalidClient    int         // requests without an app's right credentials
	Revocations      int         // grants that an app revoked
	ByStatus         map[int]int // answers that were sent, whether or not anyone read them
}

// Zoom is the stand-in. It is an [http.Handler], safe for concurrent use.
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

// grant is one consent of a user to an app, until it is revoked.
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

// New returns a stand-in.
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

// AddUser adds a user, or changes one.
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

// Consent is a user's consent to an app without a browser. It returns the code
// that Zoom would redirect with. An unknown user is added.
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

// Grant is a grant that was made elsewhere: its tokens.
func (z *Zoom) Grant(clientID, userID string) (access, refresh string) {
	code := z.Consent(clientID, userID, "", "")
	z.mu.Lock()
	defer z.mu.Unlock()
	z.codes[code].spent = true
	return z.issueLocked(&grant{client: clientID, user: userID})
}

// issueLocked makes a grant's next pair of tokens.
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

// newToken returns a text of the size and look of Zoom's tokens.
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

// Live reports whether an access token works now.
func (z *Zoom) IsLive(access string) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.liveLocked(access) != nil
}

// Whose returns the user of an access token that works now, and how long it
// will.
func (z *Zoom) LookUpAccessToken(access string) (u User, left time.Duration, ok bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	a := z.liveLocked(access)
	if a == nil {
		return User{}, 0, false
	}
	return z.users[a.grant.user], a.expires.Sub(z.now()), true
}

// Honours reports whether a refresh token would be exchanged now.
func (z *Zoom) AcceptsRefreshToken(refresh string) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.acceptsLocked(z.refresh[refresh])
}

// Counts returns what has happened since the start.
func (z *Zoom) Counts() Counts {
	z.mu.Lock()
	defer z.mu.Unlock()
	counts := z.counts
	counts.ByStatus = maps.Clone(counts.ByStatus)
	return counts
}

// RefreshesOf returns how many refresh tokens of a user were exchanged.
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

// SetAccessTokenLife changes the life of the access tokens to come.
func (z *Zoom) SetAccessTokenLife(d time.Duration) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.options.AccessTokenLifetime = d
}

// RevokeUser is a user who removes the app: all the user's grants end, and
// codes that were not exchanged yet.
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

// s256 is the challenge of a PKCE verifier (RFC 7636, section 4.2).
func s256(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
