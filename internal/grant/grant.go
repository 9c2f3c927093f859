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

// MinTTL is the minimum remaining lifetime of an access token that is served to Recall: "at least 120 seconds" (docs.recall.ai, customer-managed OAuth).
const MinTTL = 120 * time.Second

// ConsentMemory is the time for which the outcome of a user's consent is stored. A
// response that arrives later is not accepted, because it is then unknown whether the
// user has been removed.
const ConsentMemory = 24 * time.Hour

// Shards is the fixed number of shards of the grants. It is part
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

// State is the state of a user's grant. It is derived from the record, in this order:
// being removed, ended at Zoom, not yet at Recall, failing to refresh, or none of these.
// The store derives it in the script that changes the record, which also indexes it.
type State string

// The states, as the contract names them.
const (
	// Pending: accepted, not yet at Recall.
	Pending State = "pending"
	// Active: Recall has a credential, and refreshing works.
	Active State = "active"
	// Degraded: refreshing fails, and will be retried.
	Degraded State = "degraded"
	// ReauthorizationRequired: the grant has ended; the user must consent again.
	ReauthorizationRequired State = "reauthorization_required"
	// Deleting: being removed.
	Deleting State = "deleting"
)

// States lists every state.
func States() []State {
	return []State{Pending, Active, Degraded, ReauthorizationRequired, Deleting}
}

// Grant is the record of a user's grant, without its tokens.
type Grant struct {
	ID   ID
	App  string // name of the Zoom app
	User string // the caller's own id of the user

	State  State
	Reason string // why the state is not Active; for people, without secrets

	ZoomUser    string // empty until Zoom has returned it
	ZoomAccount string

	Credential         string // id of the credential at Recall; empty until there is one
	ReplacedCredential string // a credential at Recall that has to be removed; mostly empty
	Consent            string // fingerprint of the code or refresh token of its registration
	Secrets            []CallbackSecret
	Revoke             bool // revoke at Zoom when it is removed
	OwnerUnverified    bool // the last consent may be another Zoom user's; Zoom must confirm the owner

	// UnrecordedZoomUsers lists replaced Zoom users for whom Recall may have a
	// credential that was never recorded. Mostly empty.
	UnrecordedZoomUsers []string

	Status      string // of the credential, as the vendor reports it; empty without a credential
	MeetingSync string // of the user's meetings, as the vendor reports it; empty without a credential

	Health     string    // the defect of the credential that Recall reports; for people, without secrets
	Attempts   int       // failed attempts of the registrar since its last completed step
	ListedTime time.Time // when Recall was last seen to have the credential; zero: not yet

	AccessExpires time.Time
	Refreshed     time.Time // when the access token was issued
	Created       time.Time
	Consented     time.Time // when the grant's consent was registered
	Updated       time.Time

	Version int64 // grows with every change
}

// CallbackSecret is an accepted callback secret, by its fingerprint.
type CallbackSecret struct {
	Fingerprint Fingerprint
	NotAfter    time.Time // to the millisecond; zero: unlimited
}

// Fingerprint identifies a callback secret without revealing it.
type Fingerprint [sha256.Size]byte

// Tokens is Zoom's response to a code or a refresh token.
type Tokens struct {
	Access  secret.Text
	Refresh secret.Text
	Issued  time.Time // when the request was sent: the safe side of the issue time
	Expires time.Time
}

// Consent is a user's consent to a Zoom app, with Zoom's response to it.
type Consent struct {
	App, User   string
	Fingerprint string // of its code or refresh token
	Tokens      Tokens
	ZoomUser    string // the owner according to Zoom; empty if unknown
	ZoomAccount string
}

// ServingRecord is the part of a grant that the token server needs for a callback.
type ServingRecord struct {
	State     State
	Access    secret.Text
	Expires   time.Time
	RenewTime time.Time // when the token is due for renewal
	Secrets   []CallbackSecret
}

// HasTTL reports whether the token is valid for at least ttl from now on.
func (s *ServingRecord) HasTTL(ttl time.Duration, now time.Time) bool {
	return !s.Access.IsZero() && s.Expires.Sub(now) >= ttl
}

// CheckAlive returns nil if the grant may be served, otherwise [ErrReauthorize] or
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

// DueGrant is a grant that is due for renewal, and since when.
type DueGrant struct {
	ID      ID
	Overdue time.Duration
}

// ClaimTerms are the conditions of a claim.
type ClaimTerms struct {
	// ValidUntil is the required validity of the access token, for a caller that needs
	// one now. Zero: a renewal by its due time.
	ValidUntil time.Time
	// Lease is the duration of the claim.
	Lease time.Duration
	// LateResponseWait is the time after the end of a lease during which the response
	// of its holder may still be committed by a replay.
	LateResponseWait time.Duration
	// HandOffGuard is the time after a token was served during which it is not renewed
	// by its due time, while it is valid.
	HandOffGuard time.Duration
}

// Claim is the right, for the length of a lease, to spend a refresh token.
type Claim struct {
	ID        ID
	Owner     string
	App       string
	Refresh   secret.Text
	Spent     string // fingerprint of Refresh, the predecessor of the token in Zoom's response
	Uncertain bool   // an earlier attempt may have spent it already
	Failures  int    // failed attempts since the last success

	Overdue time.Duration // since the due time, which failures do not move; negative: claimed early
}

// Outcome is the effect of a failed refresh on the refresh token.
type Outcome string

// The outcomes of a refresh without a token.
const (
	Unspent   Outcome = "unspent"   // Zoom did not take it
	Uncertain Outcome = "uncertain" // unknown whether Zoom took it
	Gone      Outcome = "gone"      // Zoom refuses it: the user must authorize again
	Released  Outcome = "released"  // not the grant's fault: the claim is undone
)

// Errors of claims, reads and changes.
var (
	// ErrNotFound means: there is no such grant.
	ErrNotFound = errors.New("no such grant")
	// ErrFresh means: the access token is valid for long enough; nothing to renew.
	ErrFresh = errors.New("access token is fresh")
	// ErrReauthorize means: the grant has ended at Zoom; the user must consent again.
	ErrReauthorize = errors.New("user must authorize again")
	// ErrDeleting means: the grant is being removed.
	ErrDeleting = errors.New("grant is being removed")
	// ErrConflict means: the record was changed concurrently.
	ErrConflict = errors.New("grant was changed meanwhile")
	// ErrUnreplicated means: stored, but not on the required number of replicas.
	ErrUnreplicated = errors.New("not on enough replicas of Redis yet")
	// ErrSuperseded means: the spent refresh token is no longer the stored one, or the
	// claim is not the newest. The response must not be committed.
	ErrSuperseded = errors.New("refresh token has been superseded")
)

// HeldError reports that another caller holds the lease.
type HeldError struct{ For time.Duration }

func (e *HeldError) Error() string { return fmt.Sprintf("held by another caller for %v", e.For) }

// BackoffError reports that the last attempt failed and the next one is not due.
type BackoffError struct{ For time.Duration }

func (e *BackoffError) Error() string { return fmt.Sprintf("backing off for %v", e.For) }
