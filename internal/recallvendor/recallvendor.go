// Package recallvendor implements [registrar.Vendor] for Recall.ai, with a [Gate] that
// keeps Recall's limits for all replicas together.
package recallvendor

import (
	"context"
	"errors"
	"net/http"
	"time"

	"tokenprovider/internal/recall"
	"tokenprovider/registrar"
)

// Vendor implements [registrar.Vendor].
type Vendor struct{ client *recall.Client }

// New returns the vendor of a client, whose gate sets the limits.
func New(client *recall.Client) *Vendor { return &Vendor{client} }

// Create implements [registrar.Vendor].
func (v *Vendor) Create(ctx context.Context, n registrar.NewCredential) (registrar.Credential, error) {
	var made recall.Credential
	var err error
	if n.Replaces == "" {
		made, err = v.client.Create(ctx, n.App, n.CallbackURL)
	} else {
		made, err = v.client.Replace(ctx, n.Replaces, n.App, n.CallbackURL)
	}
	return credential(made), vendorError(err)
}

// Delete implements [registrar.Vendor].
func (v *Vendor) Delete(ctx context.Context, id string) error {
	return vendorError(v.client.Delete(ctx, id))
}

// Get implements [registrar.Vendor].
func (v *Vendor) Get(ctx context.Context, id string) (registrar.Credential, error) {
	found, err := v.client.Get(ctx, id)
	return credential(found), vendorError(err)
}

// List implements [registrar.Vendor].
func (v *Vendor) List(ctx context.Context, f registrar.CredentialFilter, cursor string) ([]registrar.Credential, string, error) {
	found, next, err := v.client.Page(ctx, recall.Filter{OAuthApp: f.App, ZoomUser: f.ZoomUser}, cursor)
	page := make([]registrar.Credential, len(found))
	for i, c := range found {
		page[i] = credential(c)
	}
	return page, next, vendorError(err)
}

// ListProblems implements [registrar.Vendor].
func (v *Vendor) ListProblems(ctx context.Context, id string, since time.Time) ([]registrar.Problem, error) {
	entries, err := v.client.ListLogs(ctx, id, since)
	problems := make([]registrar.Problem, len(entries))
	for i, entry := range entries {
		problems[i] = registrar.Problem{Message: entry.Message, Time: entry.At}
	}
	return problems, vendorError(err)
}

// WaitForQuota implements [registrar.Vendor].
func (v *Vendor) WaitForQuota(ctx context.Context) error {
	return vendorError(v.client.WaitForQuota(ctx))
}

// credential returns a credential in the registrar's terms.
func credential(c recall.Credential) registrar.Credential {
	defect := ""
	switch {
	case c.Status == "unhealthy":
		defect = "Recall reports the credential as unhealthy"
	case c.MeetingSync == "failed":
		defect = "Recall cannot sync the user's meetings"
	}
	return registrar.Credential{
		ID: c.ID, CallbackURL: c.CallbackURL, ZoomUser: c.ZoomUser, ZoomAccount: c.ZoomAccount, Created: c.CreatedAt,
		Status: c.Status, MeetingSync: c.MeetingSync, Defect: defect,
	}
}

// vendorError returns a client's error as one that the registrar branches on. Other
// errors, such as Redis's, stay as they are.
func vendorError(err error) error {
	var limit *recall.LimitError
	var refused *recall.RefusedError
	var conflict *recall.ConflictError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &conflict):
		return &registrar.ConflictError{ZoomUser: conflict.ZoomUser, ZoomAccount: conflict.ZoomAccount}
	case errors.As(err, &limit):
		return &registrar.VendorError{Kind: registrar.ErrOverLimit, RetryAfter: limit.For, Err: err}
	case errors.As(err, &refused):
		return &registrar.VendorError{Kind: kindOf(refused.Status), RetryAfter: refused.RetryAfter, Err: err}
	case errors.Is(err, recall.ErrNotFound):
		return &registrar.VendorError{Kind: registrar.ErrNoCredential, Err: err}
	case errors.Is(err, recall.ErrUnauthorized):
		return &registrar.VendorError{Kind: registrar.ErrVendorKey, Err: err}
	case errors.Is(err, recall.ErrUncertain):
		return &registrar.VendorError{Kind: registrar.ErrUncertain, Err: err}
	}
	return err
}

// kindOf returns what a status means. A server error may come after the work is
// done; anything below it does not.
func kindOf(status int) error {
	switch {
	case status == http.StatusBadRequest:
		return registrar.ErrRejected
	case status >= http.StatusInternalServerError:
		return registrar.ErrUncertain
	}
	return registrar.ErrNotServed
}
