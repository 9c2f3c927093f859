// Package grant is the domain: a user's Zoom grant, its states, and when its
// access token is due to be renewed.
//
// It is pure: no I/O and no clock of its own. Storage, protocol and transport
// packages share these types and sentinels, and nothing else.
package grant

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"time"

	"tokenprovider/internal/secret"
)

// MinTTL is how long an access token must still be good when Recall is given
// it: "at least 120 seconds" (docs.recall.ai, customer-managed OAuth).
const MinTTL = 120 * time.Second

// ConsentMemory is how long it is remembered what came of a user's consent. An
// answer to it that comes later than that is not accepted: nobody knows any more
// whether the user was removed since.
const ConsentMemory = 24 * time.Hour

// Shards is the fixed number of shards that grants are spread over. It is part
// of the storage format.
const Shards = 64

// ID identifies a grant: 26 lower-case base32hex digits, derived from the Zoom
// app and the caller's user id. It is not a secret.
//
// The first 20 digits are 100 bits of SHA-256(app NUL user). IDs therefore
// spread evenly over the shards, and sort by shard. The last 6 digits are the
// app's tag, see [AppTag].
type ID string

const (
	idLength   = 26
	userDigits = 20 // before the app's tag
)

var idEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// NewID returns the ID of user's grant to app. The same pair always has the
// same ID, so no index is needed to find a user, and no second grant can be
// made for one.
func NewID(app, user string) ID {
	sum := sha256.Sum256([]byte(app + "\x00" + user))
	return ID(idEncoding.EncodeToString(sum[:])[:userDigits] + AppTag(app))
}

// AppTag returns the part of an ID that a Zoom app's grants have in common: 6
// base32hex digits, 28 bits of SHA-256("app" NUL app). Tags name the due
// indexes. If two apps had the same tag, they would share their indexes.
func AppTag(app string) string {
	sum := sha256.Sum256([]byte("app\x00" + app))
	sum[3] &= 0xf0 // the last digit has 3 bits, for 128 bits in an ID
	return idEncoding.EncodeToString(sum[:4])[:idLength-userDigits]
}

// ParseID reads an ID from outside, such as from a URL.
func ParseID(text string) (ID, bool) {
	if len(text) != idLength {
		return "", false
	}
	for i := range len(text) {
		if digit(text[i]) < 0 {
			return "", false
		}
	}
	return ID(text), digit(text[idLength-1])&3 == 0 // 26 digits hold 130 bits: the last 2 are zero
}

// AppTag returns the tag of the grant's Zoom app; see [AppTag].
func (id ID) AppTag() string { return string(id[userDigits:]) }

// Shard returns the shard of the grant: the first 6 bits of the ID.
func (id ID) Shard() int { return digit(id[0])<<1 | digit(id[1])>>4 }

// digit is the value of one character of an ID, or -1.
func digit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'v':
		return int(c-'a') + 10
	}
	return -1
}

// State is what a user's grant can do now. It is derived, in this order, from
// what is recorded: being removed, gone at Zoom, not yet at Recall, failing to
// refresh, or none of these. The store derives it in the script that changes
// the record, so it can be indexed.
type State string

// The states, as the contract names them.
const (
	// Pending: accepted, not yet at Recall.
	Pending State = "pending"
	// Active: Recall has a credential, and refreshing works.
	Active State = "active"
	// Degraded: refreshing fails, and will be retried.
	Degraded State = "degraded"
	// ReauthorizationRequired: the grant is gone; only the user can mend it.
	ReauthorizationRequired State = "reauthorization_required"
	// Deleting: being removed.
	Deleting State = "deleting"
)

// States lists every state.
func States() []State {
	return []State{Pending, Active, Degraded, ReauthorizationRequired, Deleting}
}

// Grant is what is known of a user's grant, without its tokens.
type Grant struct {
	ID   ID
	App  string // name of the Zoom app
	User string // the caller's own id of the user

	State  State
	Reason string // why the state is not Active; for people, without secrets

	ZoomUser    string // empty until Zoom has been asked
	ZoomAccount string

	Credential         string // id of the credential at Recall; empty until there is one
	ReplacedCredential string // a credential at Recall that has to be removed; mostly empty
	Consent            string // fingerprint of the code or refresh token it was registered with
	Secrets            []CallbackSecret
	Revoke             bool // revoke at Zoom when it is removed
	OwnerUnverified    bool // whose grant it is has to be asked: the last consent may be another Zoom user's

	// UnrecordedZoomUsers are Zoom users, replaced since, for whom a credential may have been made
	// at Recall that was never recorded. Mostly empty.
	UnrecordedZoomUsers []string

	Health     string    // what Recall finds wrong with the credential; for people, without secrets
	Attempts   int       // of the registrar's, that have failed since it last went on
	ListedTime time.Time // when Recall was last seen to have the credential; zero: not yet

	AccessExpires time.Time
	Refreshed     time.Time // when the access token was issued
	Created       time.Time
	Consented     time.Time // when the consent was given here that the grant comes from
	Updated       time.Time

	Version int64 // grows with every change
}

// CallbackSecret is a callback secret that is accepted, known by its fingerprint.
type CallbackSecret struct {
	Fingerprint Fingerprint
	NotAfter    time.Time // to the millisecond; zero: no end
}

// Fingerprint is what is kept of a callback secret.
type Fingerprint [sha256.Size]byte

// Tokens is Zoom's answer to a code or to a refresh token.
type Tokens struct {
	Access  secret.Text
	Refresh secret.Text
	Issued  time.Time // when the request was sent: the safe side of the issue time
	Expires time.Time
}

// Consent is a user's consent to a Zoom app, and Zoom's answer to it.
type Consent struct {
	App, User   string
	Fingerprint string // of the code or refresh token that it came from
	Tokens      Tokens
	ZoomUser    string // whose grant it is, by Zoom; empty if Zoom has not said
	ZoomAccount string
}

// ReadServingRecord is what the token server needs to answer a callback.
type ServingRecord struct {
	State     State
	Access    secret.Text
	Expires   time.Time
	RenewTime time.Time // when it is to be renewed
	Secrets   []CallbackSecret
}

// HasTTL reports whether the token can be handed out at now to someone who
// needs it for ttl.
func (s *ServingRecord) HasTTL(ttl time.Duration, now time.Time) bool {
	return !s.Access.IsZero() && s.Expires.Sub(now) >= ttl
}

// CheckAlive says whether the grant may be served at all: nil, [ErrReauthorize] or
// [ErrDeleting].
func (s *ServingRecord) CheckAlive() error {
	switch s.State {
	case ReauthorizationRequired:
		return ErrReauthorize
	case Deleting:
		return ErrDeleting
	default:
		return nil
	}
}

// DueGrant is a grant that is due to be renewed, and since when.
type DueGrant struct {
	ID      ID
	Overdue time.Duration
}

// ClaimTerms are what a claim is made on.
type ClaimTerms struct {
	// ValidUntil is until when the access token has to be good, for who needs one
	// now. Zero: the grant is to be renewed by its plan.
	ValidUntil time.Time
	// Lease is how long the claim holds.
	Lease time.Duration
	// LateResponseWait is how long after the end of a lease the answer of its holder,
	// who must have died, is waited for.
	LateResponseWait time.Duration
	// HandOffGuard is for how long a renewal by plan leaves a token alone after it was
	// handed out, while it is good.
	HandOffGuard time.Duration
}

// Claim is the right, for the length of a lease, to spend a refresh token.
type Claim struct {
	ID        ID
	Owner     string
	App       string
	Refresh   secret.Text
	Spent     string // fingerprint of Refresh: the predecessor of what Zoom answers
	Uncertain bool   // an earlier attempt may have spent it already
	Failures  int    // failed attempts since the last success

	Overdue time.Duration // since the plan, which failures do not move; negative: it was claimed before
}

// Outcome says what a failed refresh has done to the refresh token.
type Outcome string

// The outcomes of a refresh that brought no token.
const (
	Unspent   Outcome = "unspent"   // Zoom did not take it
	Uncertain Outcome = "uncertain" // nobody knows whether Zoom took it
	Gone      Outcome = "gone"      // Zoom refuses it: the user must authorize again
	Released  Outcome = "released"  // not the grant's fault: as if it had not been claimed
)

// What a claim, a read or a change can be answered with.
var (
	// ErrNotFound means: there is no such grant.
	ErrNotFound = errors.New("no such grant")
	// ErrFresh means: the access token is good for long enough; nothing to renew.
	ErrFresh = errors.New("access token is fresh")
	// ErrReauthorize means: the grant is gone at Zoom; only the user can mend it.
	ErrReauthorize = errors.New("user must authorize again")
	// ErrDeleting means: the grant is being removed.
	ErrDeleting = errors.New("grant is being removed")
	// ErrConflict means: the record was changed by somebody else meanwhile.
	ErrConflict = errors.New("grant was changed meanwhile")
	// ErrUnreplicated means: stored, but not on as many replicas as it should be.
	ErrUnreplicated = errors.New("not on enough replicas of Redis yet")
	// ErrSuperseded means: the refresh token that was spent is not the stored one any
	// more, or the claim not the newest, so what has come of it is of no use.
	ErrSuperseded = errors.New("refresh token has been superseded")
)

// HeldError says that somebody else holds what was to be claimed.
type HeldError struct{ For time.Duration }

func (e *HeldError) Error() string { return fmt.Sprintf("held by somebody else for %v", e.For) }

// BackoffError says that the last attempt failed and the next one is not due.
type BackoffError struct{ For time.Duration }

func (e *BackoffError) Error() string { return fmt.Sprintf("backing off for %v", e.For) }
