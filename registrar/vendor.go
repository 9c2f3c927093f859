package registrar

import (
	"context"
	"errors"
	"time"

	"tokenprovider/internal/secret"
)

// Vendor keeps users' credentials at a bot vendor. A credential is a callback URL
// from which the vendor fetches a user's access token. Package recallvendor
// implements Vendor for Recall.ai; another vendor needs another implementation.
//
// A Vendor is safe for concurrent use. It keeps the vendor's limits for all replicas
// together: a method waits for its turn, or returns [ErrOverLimit] and sends nothing.
//
// Get, List, ListProblems and Delete may be repeated. Create may not: vendors have
// no idempotency key. After an error for which [hasNoEffect] is false, a credential
// may exist: list the Zoom user's credentials and compare their URLs before
// creating again.
//
// Times are by the vendor's clock. Errors contain neither URLs nor API keys.
type Vendor interface {
	// Create creates a credential. The vendor may call the URL before Create returns.
	// With Replaces, it deletes that credential first, if it still exists, and sends
	// neither request if its limits have no room for both. A failure may leave the
	// old credential deleted and no new one. Create returns a [*ConflictError] if
	// the Zoom user already has a credential for the app.
	Create(ctx context.Context, n NewCredential) (Credential, error)
	// Delete deletes a credential. It returns [ErrNoCredential] if there is none.
	Delete(ctx context.Context, id string) error
	// Get returns a credential, or [ErrNoCredential].
	Get(ctx context.Context, id string) (Credential, error)
	// List returns one page of credentials: the page of a cursor, or the first if
	// cursor is "". next is "" after the last page. A credential that exists all the
	// time is listed, even if others are created or deleted meanwhile.
	List(ctx context.Context, f CredentialFilter, cursor string) (page []Credential, next string, err error)
	// ListProblems returns what the vendor has logged about a credential since a time,
	// in no order.
	ListProblems(ctx context.Context, id string, since time.Time) ([]Problem, error)
	// WaitForQuota waits until the limits have room for a request. It reserves nothing.
	WaitForQuota(ctx context.Context) error
}

// NewCredential is a credential to create.
type NewCredential struct {
	App         string // the vendor's id of the Zoom app
	CallbackURL secret.Text
	Replaces    string // id of a credential to delete first; may be empty
}

// CredentialFilter selects credentials. An empty field selects all.
type CredentialFilter struct{ App, ZoomUser string }

// Credential is a credential at a vendor.
type Credential struct {
	ID          string
	CallbackURL secret.Text
	ZoomUser    string
	ZoomAccount string
	Created     time.Time
	Status      string // as the vendor reports it
	MeetingSync string // as the vendor reports it
	Defect      string // what the vendor finds wrong, for people; empty: nothing
}

// Problem is an entry of a credential's log at a vendor.
type Problem struct {
	Message string // the vendor's text; it may quote secrets
	Time    time.Time
}

// Kinds of a [VendorError].
var (
	// ErrNoCredential means that there is no such credential.
	ErrNoCredential = errors.New("no such credential")
	// ErrOverLimit means that nothing was sent: it would exceed the vendor's limits.
	// Other users' requests fail too. RetryAfter is set.
	ErrOverLimit = errors.New("over the vendor's limit")
	// ErrVendorKey means that the vendor refuses our API key, and did nothing. Every
	// request fails until the operator fixes the key.
	ErrVendorKey = errors.New("vendor refuses the API key")
	// ErrRejected means that the vendor rejects this request, and did nothing. Other
	// users' requests may succeed.
	ErrRejected = errors.New("vendor rejects the request")
	// ErrNotServed means that the vendor serves no requests now, and did nothing.
	ErrNotServed = errors.New("vendor serves no requests")
	// ErrUncertain means that no usable response came. The vendor may have carried out
	// the request.
	ErrUncertain = errors.New("vendor's response is unknown")
)

// VendorError is a failed call at a vendor.
type VendorError struct {
	Kind       error         // one of the errors above
	RetryAfter time.Duration // 0: unknown
	Err        error         // the client's error
}

// Error returns the text of the client's error.
func (e *VendorError) Error() string { return e.Err.Error() }

// Unwrap returns the kind and the client's error.
func (e *VendorError) Unwrap() []error { return []error{e.Kind, e.Err} }

// ConflictError means that the Zoom user already has a credential at the vendor, and
// that none was created.
type ConflictError struct{ ZoomUser, ZoomAccount string }

func (e *ConflictError) Error() string { return "the Zoom user already has a credential at the vendor" }

// hasNoEffect reports whether err proves that the vendor has created nothing.
func hasNoEffect(err error) bool {
	return errors.Is(err, ErrOverLimit) || errors.Is(err, ErrVendorKey) || errors.Is(err, ErrRejected) || errors.Is(err, ErrNotServed)
}

// failsForAll reports whether err is likely to meet every user's requests.
func failsForAll(err error) bool {
	return errors.Is(err, ErrOverLimit) || errors.Is(err, ErrVendorKey) || errors.Is(err, ErrNotServed) || errors.Is(err, ErrUncertain)
}

// eachCredential calls each with every credential that a filter selects, page by
// page, until each returns false.
func eachCredential(ctx context.Context, v Vendor, f CredentialFilter, each func(Credential) bool) error {
	for cursor := ""; ; {
		page, next, err := v.List(ctx, f, cursor)
		if err != nil {
			return err
		}
		for _, credential := range page {
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

// deleteCredential deletes a credential, if it exists.
func deleteCredential(ctx context.Context, v Vendor, id string) error {
	return ignore(v.Delete(ctx, id), ErrNoCredential)
}

// ignore returns nil if err is the harmless error.
func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
