package recalltest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// DefaultOAuthApp is the id of the only Zoom OAuth app when
// [Options.OAuthApps] is empty.
const DefaultOAuthApp = "6f1d0b52-7c0e-4a55-9a86-2f4f6c1e9d03"

const (
	credentialsPath = "/api/v2/zoom-oauth-credentials/"
	logsPath        = "/api/v2/zoom-oauth-credential-logs/"
	appsPath        = "/api/v2/zoom-oauth-apps/"

	maxBody = 1 << 20
)

// Options configure a [Recall]. The zero value is ready to use.
type Options struct {
	// APIKey is what requests must carry, as "Authorization: Token <APIKey>".
	// Empty means "recall-key".
	APIKey string

	// OAuthApps are the ids (UUIDs) of the Zoom OAuth apps at Recall.
	// Empty means DefaultOAuthApp alone.
	OAuthApps []string

	// ClientIDs are the client ids at Zoom of these apps, by their ids. Nil means
	// that each has the one of zoomtest's default app.
	ClientIDs map[string]string

	// VerificationSecrets ("whsec_...") sign every callback, as Standard
	// Webhooks has it: webhook-id, webhook-timestamp (by Now) and one signature
	// for each secret, separated by spaces, in webhook-signature. Empty means
	// that callbacks carry none of these headers.
	VerificationSecrets []string

	// Identify returns the Zoom user of a token from a callback, and its remaining
	// lifetime; an error means that Zoom refuses the token. It is called concurrently.
	// Nil: every token is accepted. Its credential then has no Zoom user, so it never
	// conflicts, and its lifetime is not checked.
	Identify func(ctx context.Context, accessToken string) (userID, accountID string, ttl time.Duration, err error)

	// Client makes the callbacks; its Timeout bounds each. Its CheckRedirect is
	// not used: no redirect is followed. Nil means one with a timeout of 5 s.
	Client *http.Client

	// RateLimit is the number of requests per minute for each call except the lists
	// below. More get a 429 with a Retry-After in seconds. 0 means 300; negative means no
	// limit.
	RateLimit int

	// ListRateLimit is the same for the lists of credentials and of apps. 0 means 60.
	ListRateLimit int

	// PageSize is the number of results on a page. 0 means 100.
	PageSize int

	// Latency is the delay before each request is served.
	Latency time.Duration

	// Now is the clock of created_at, of signatures and of rate limits. Nil
	// means time.Now. It is called concurrently and must not use the Recall.
	Now func() time.Time
}

// Credential is a Zoom OAuth credential as Recall stores it. An empty string
// stands for JSON's null.
type Credential struct {
	ID                     string    // a UUID
	OAuthApp               string    // one of Options.OAuthApps
	AccessTokenCallbackURL string    // empty: made from an authorization code
	Status                 string    // "healthy" or "unhealthy", by the last callback
	UserID                 string    // the Zoom user; empty if never identified
	AccountID              string    // the Zoom account; empty if never identified
	CreatedAt              time.Time // UTC, to the microsecond
	MeetingSyncStatus      string    // "not_started" unless added otherwise
}

// Counts are the counts of a [Recall]. A request that a fault ended before it was
// carried out counts in Requests only.
type Counts struct {
	Requests         int // all of them, successful or not
	Creates          int // creates that succeeded (201), even if the response was lost
	CreateAttempts   int // creates with the right key and within the rate limit
	Conflicts        int // creates refused because the Zoom user has a credential
	Deletes          int // deletes that succeeded (204)
	Lists            int // pages of credentials returned
	Callbacks        int // callbacks made, by creates and by Recall.Callback
	CallbackFailures int // those among them that failed
	RateLimited      int // requests over a rate limit (429)
	Unauthorized     int // requests without the right key
}

// Recall is the stand-in: an http.Handler, safe for concurrent use. It starts
// no goroutines and needs no closing.
type Recall struct {
	opts   Options
	client http.Client

	mu          sync.Mutex
	apiKey      string
	signers     []*standardwebhooks.Webhook
	seq         int                    // of the last credential or log entry
	credentials []stored               // by seq
	logs        []logEntry             // by seq
	faults      []*scripted            // in order of Fail
	recent      map[string][]time.Time // requests of the last minute, by kind
	counts      Counts
}

var _ http.Handler = (*Recall)(nil)

// New returns a Recall without credentials. It panics if a verification secret
// is not "whsec_" and base64, which is a mistake of the test's author.
func New(o Options) *Recall {
	o.APIKey = cmp.Or(o.APIKey, "recall-key")
	o.RateLimit = cmp.Or(o.RateLimit, 300)
	o.ListRateLimit = cmp.Or(o.ListRateLimit, 60)
	if o.PageSize <= 0 {
		o.PageSize = 100
	}
	if len(o.OAuthApps) == 0 {
		o.OAuthApps = []string{DefaultOAuthApp}
	}
	o.OAuthApps = slices.Clone(o.OAuthApps)
	if o.ClientIDs == nil {
		o.ClientIDs = map[string]string{}
		for _, id := range o.OAuthApps {
			o.ClientIDs[id] = "zoom-client"
		}
	}
	if o.Client == nil {
		o.Client = &http.Client{Timeout: 5 * time.Second}
	}
	if o.Now == nil {
		o.Now = time.Now
	}

	r := &Recall{opts: o, client: *o.Client, apiKey: o.APIKey, recent: map[string][]time.Time{}}
	r.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r.SetVerificationSecrets(o.VerificationSecrets...)
	return r
}

// SetAPIKey replaces the API key.
func (r *Recall) SetAPIKey(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apiKey = key
}

// SetVerificationSecrets replaces the secrets that callbacks are signed with. It
// panics as [New] does.
func (r *Recall) SetVerificationSecrets(secrets ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signers = nil
	for i, secret := range secrets {
		key, ok := strings.CutPrefix(secret, "whsec_")
		signer, err := standardwebhooks.NewWebhook(secret)
		if !ok || key == "" || err != nil {
			panic(fmt.Sprintf("recalltest: VerificationSecrets[%d] is not whsec_ and base64", i))
		}
		r.signers = append(r.signers, signer)
	}
}

// Counts returns the counts so far.
func (r *Recall) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// Credentials returns the credentials, oldest first.
func (r *Recall) Credentials() []Credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Credential, len(r.credentials))
	for i, c := range r.credentials {
		all[i] = c.Credential
	}
	return all
}

// AddCredential adds a credential as if another system had created it, without a
// callback, a check for conflicts, or a count. Empty fields are filled as by a create,
// except the callback URL and the Zoom user and account. It returns the credential.
func (r *Recall) AddCredential(c Credential) Credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addLocked(c)
}

// SetMeetingSyncStatus sets a credential's meeting_sync_status. It panics if there is
// no such credential.
func (r *Recall) SetMeetingSyncStatus(credentialID, status string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.credentials[r.indexLocked(credentialID)].MeetingSyncStatus = status
}

func (r *Recall) addLocked(c Credential) Credential {
	c.ID = cmp.Or(c.ID, newUUID())
	c.OAuthApp = cmp.Or(c.OAuthApp, r.opts.OAuthApps[0])
	c.Status = cmp.Or(c.Status, "healthy")
	c.MeetingSyncStatus = cmp.Or(c.MeetingSyncStatus, "not_started")
	if c.CreatedAt.IsZero() {
		c.CreatedAt = r.opts.Now()
	}
	c.CreatedAt = c.CreatedAt.UTC().Truncate(time.Microsecond)
	r.seq++
	r.credentials = append(r.credentials, stored{Credential: c, seq: r.seq})
	return c
}

// ServeHTTP serves one request to Recall's API.
func (r *Recall) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	// The server detects that a client has left only once the body is read.
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
	f := r.begin(req)
	wait(req.Context(), r.opts.Latency+f.Delay)

	var a response
	switch {
	case f.DropBefore:
		panic(http.ErrAbortHandler)
	case f.Status != 0 && !f.DropAfter:
		f.write(w)
		return
	case err != nil:
		a = detail(http.StatusBadRequest, "The body could not be read.")
	default:
		a = r.handle(req, body)
	}
	switch {
	case f.DropAfter && f.Status != 0:
		f.write(w)
	case f.DropAfter:
		panic(http.ErrAbortHandler)
	default:
		a.write(w)
	}
}

// wait returns after d or when the client has left, whichever is first.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// response is a response; a nil body means none.
type response struct {
	status int
	header http.Header
	body   any
}

func (a response) write(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	if a.body != nil {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(a.status)
	if a.body != nil {
		_ = json.NewEncoder(w).Encode(a.body) // fails only if the client has left
	}
}

func detail(status int, message string) response {
	return response{status: status, body: map[string]string{"detail": message}}
}

// fieldError returns the response to a request with one invalid field.
func fieldError(field, message string) response {
	return response{status: http.StatusBadRequest, body: map[string][]string{field: {message}}}
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
