// Package grant defines a user's Zoom grant: its states, its claims, and the time at
// which its access token is due to be renewed.
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

// MinTTL is the remaining lifetime that an access token must have when it is
// served: "at least 120 seconds" (docs.recall.ai, customer-managed OAuth).
const MinTTL = 120 * time.Second

// HandOffTTL is the lifetime that a token must have left after the hand-off guard
// for the guard to postpone a renewal: [MinTTL] and time for the renewal.
const HandOffTTL = MinTTL + 10*time.Second

// ConsentMemory is the time for which the outcome of a consent is stored. A later
// response to it is rejected, because the user may have been removed since.
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

// State is the state of a grant. The store derives it from the record, in the
// script that changes the record. The first condition that holds decides:
//
//	condition of the record             state
//	marked for removal                  Deleting
//	gone at Zoom                        ReauthorizationRequired
//	no credential at Recall             Pending
//	failures since the last renewal     Degraded
//	none of these                       Active
//
// Transitions, and who causes them:
//
//	none → Pending                      AcceptConsent: the registrar, or a journal's replay
//	Pending → Active, Degraded          Change: the registrar has created the credential
//	Active → Degraded                   Fail: a renewal failed
//	Degraded → Active                   Commit: a renewal succeeded
//	any but Deleting → Reauth.Required  Fail with Gone: Zoom refused the refresh token
//	ReauthorizationRequired → others    AcceptConsent: the user consented again; or a
//	                                    late Commit: a success overrides a failure
//	Active, Degraded → Pending          AcceptConsent for another Zoom user
//	any → Deleting                      Change: the registrar; Deauthorize: Zoom's event
//	Deleting → none                     Remove: the registrar
//	none → Degraded                     Restore: a backup
//
// No transition leaves Deleting except the removal.
type State string

// The states, as the contract names them.
const (
	// Pending: accepted, without a credential at Recall.
	StatePending State = "pending"
	// StateActive: Recall has a credential, and renewals succeed.
	StateActive State = "active"
	// StateDegraded: the last renewal failed, and will be retried.
	StateDegraded State = "degraded"
	// StateReauthorizationRequired: Zoom refuses the grant; the user must consent again.
	StateReauthorizationRequired State = "reauthorization_required"
	// StateDeleting: marked for removal.
	StateDeleting State = "deleting"
)

// States lists every state.
func States() []State {
	return []State{StatePending, StateActive, StateDegraded, StateReauthorizationRequired, StateDeleting}
}

// Grant is the record of a grant, without its tokens.
type Grant struct {
	ID   ID
	App  string // name of the Zoom app
	User string // the caller's own id of the user

	State  State
	Reason string // why the state is not Active; for people, without secrets

	ZoomUser    string // empty until Zoom has reported it
	ZoomAccount string

	Credential         string // id of the credential at Recall; empty until there is one
	ReplacedCredential string // id of a credential at Recall to remove; mostly empty
	Consent            string // fingerprint of the code or refresh token it was registered with
	Secrets            []CallbackSecret
	Revoke             bool // revoke at Zoom when it is removed
	OwnerUnverified    bool // the Zoom user must be looked up: the last consent may be another Zoom user's

	// UnrecordedZoomUsers are earlier Zoom users of the grant, for whom a credential may
	// have been created at Recall that was never recorded. Mostly empty.
	UnrecordedZoomUsers []string

	Status      string // of the credential, as the vendor reports it; empty without a credential
	MeetingSync string // of the user's meetings, as the vendor reports it; empty without a credential

	Health     string    // the defect of the credential that Recall reports; for people, without secrets
	Attempts   int       // failed attempts of the registrar since its last completed step
	ListedTime time.Time // when Recall was last seen to have the credential; zero: not yet

	AccessExpires time.Time
	Refreshed     time.Time // when the access token was issued
	Created       time.Time
	Consented     time.Time // time of the consent, by Redis's clock if known
	Updated       time.Time

	Version int64 // grows with every change
}

// CallbackSecret is the fingerprint of a valid callback secret, and its end.
type CallbackSecret struct {
	Fingerprint Fingerprint
	NotAfter    time.Time // to the millisecond; zero: no end
}

// Fingerprint is a hash of a callback secret.
type Fingerprint [sha256.Size]byte

// Tokens is Zoom's response to a code or a refresh token.
type Tokens struct {
	Access  secret.Text
	Refresh secret.Text
	Issued  time.Time // when the request was sent, by the process's clock: not after the issue
	Expires time.Time
}

// Consent is a user's consent to a Zoom app, and Zoom's response to it.
type Consent struct {
	App, User   string
	Fingerprint string // of the code or refresh token that it came from
	Tokens      Tokens
	ZoomUser    string // Zoom user of the grant; empty if unknown
	ZoomAccount string
}

// ServingRecord is what the token server needs to respond to a callback.
type ServingRecord struct {
	State     State
	Access    secret.Text
	Expires   time.Time
	RenewTime time.Time // when it is to be renewed
	Secrets   []CallbackSecret
}

// HasTTL reports whether the token is valid for at least ttl from now.
func (s *ServingRecord) HasTTL(ttl time.Duration, now time.Time) bool {
	return !s.Access.IsZero() && s.Expires.Sub(now) >= ttl
}

// CheckAlive returns nil if the grant may be served, else [ErrReauthorize] or
// [ErrDeleting].
func (s *ServingRecord) CheckAlive() error {
	switch s.State {
	case StateReauthorizationRequired:
		return ErrReauthorize
	case StateDeleting:
		return ErrDeleting
	default:
		return nil
	}
}

// DueGrant is a due grant, and for how long it has been due.
type DueGrant struct {
	ID      ID
	Overdue time.Duration
}

// ClaimTerms are the conditions and durations of a claim.
type ClaimTerms struct {
	// ValidUntil is the time until which the access token must be valid, for a
	// renewal on demand. Zero: a scheduled renewal, which needs a due grant.
	ValidUntil time.Time
	// Lease is the duration of the claim.
	Lease time.Duration
	// LateResponseWait is the time after the end of a lease in which a response may
	// still be replayed: its owner must have crashed.
	LateResponseWait time.Duration
	// HandOffGuard is the time after a token was served in which no scheduled renewal
	// replaces it, while it has [HandOffTTL] left.
	HandOffGuard time.Duration
}

// Claim is the right, for the length of a lease, to spend a refresh token.
type Claim struct {
	ID        ID
	Owner     string
	App       string
	Refresh   secret.Text
	Spent     string // fingerprint of Refresh: the predecessor in Zoom's response
	Uncertain bool   // an earlier attempt may have spent it already
	Failures  int    // failed attempts since the last success

	Overdue time.Duration // since the renewal time, which failures do not move; negative: claimed earlier
}

// Outcome is the effect of a failed refresh on the refresh token.
type Outcome string

// The outcomes of a refresh without tokens.
const (
	OutcomeUnspent   Outcome = "unspent"   // Zoom did not accept it
	OutcomeUncertain Outcome = "uncertain" // it is unknown whether Zoom accepted it
	OutcomeGone      Outcome = "gone"      // Zoom refuses it: the user must authorize again
	OutcomeReleased  Outcome = "released"  // unrelated to the grant: as if it had not been claimed
)

// Errors of claims, reads and changes.
var (
	// ErrNotFound means that there is no such grant.
	ErrNotFound = errors.New("no such grant")
	// ErrFresh means that the access token is valid for long enough.
	ErrFresh = errors.New("access token is fresh")
	// ErrReauthorize means that Zoom refuses the grant; the user must consent again.
	ErrReauthorize = errors.New("user must authorize again")
	// ErrDeleting means that the grant is marked for removal.
	ErrDeleting = errors.New("grant is being removed")
	// ErrConflict means that the record has changed since it was read.
	ErrConflict = errors.New("grant was changed meanwhile")
	// ErrUnreplicated means stored, but on fewer replicas than required.
	ErrUnreplicated = errors.New("not on enough replicas of Redis yet")
	// ErrSuperseded means that the spent refresh token is no longer the stored one, or
	// the claim is not the newest: the result is invalid.
	ErrSuperseded = errors.New("refresh token has been superseded")
)

// HeldError means that another replica holds the claim.
type HeldError struct{ For time.Duration }

func (e *HeldError) Error() string { return fmt.Sprintf("held by another caller for %v", e.For) }

// BackoffError means that the last attempt failed and the next one is not due.
type BackoffError struct{ For time.Duration }

func (e *BackoffError) Error() string { return fmt.Sprintf("backing off for %v", e.For) }
