package registrar

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// ConsentStore claims consents: codes and refresh tokens, which Zoom accepts once.
type ConsentStore interface {
	// ClaimConsent claims a consent by its fingerprint, before it is sent to Zoom. It
	// returns [store.ErrConsentUsed] and the outcome if Zoom has responded before, and a
	// [*grant.HeldError] until lateResponse after another call's claim, by Redis's
	// clock: a journal may have the response. A claim whose reply is lost ends likewise.
	ClaimConsent(ctx context.Context, id grant.ID, consent string, lateResponse time.Duration) (store.ConsentOutcome, error)
	// ReleaseConsent ends a claim without a grant. Later claims return the outcome; nil
	// allows the consent to be tried again.
	ReleaseConsent(ctx context.Context, id grant.ID, consent string, outcome *store.ConsentOutcome) error
}

// consent is a code or refresh token from a caller.
type consent struct {
	app, user   string
	fingerprint string
	field       string // of the request, for errors
	spend       func(context.Context, *zoom.Client) (zoom.Tokens, error)
}

// takenError means that the Zoom user has a credential that is not this user's.
type takenError struct{ zoomUser, zoomAccount string }

func (e *takenError) Error() string {
	return "the Zoom user belongs to a Recall credential that is not this user's"
}

func (e *takenError) outcome() store.ConsentOutcome {
	return store.ConsentOutcome{Conflict: true, ConflictUser: e.zoomUser, ConflictAccount: e.zoomAccount}
}

// pausedError means that Redis may have lost which codes are spent, and that the
// journals have not been replayed yet.
type pausedError struct{ wait time.Duration }

func (e *pausedError) Error() string {
	return fmt.Sprintf("Redis restarted or failed over; no code is spent for %v", e.wait)
}

// awaitPause waits until codes may be spent. It returns a [*pausedError] at once if
// the caller's deadline is earlier.
func (s *Service) awaitPause(ctx context.Context) error {
	for {
		wait := s.Renewer.PauseRemaining()
		if wait == 0 {
			return nil
		}
		if end, bounded := ctx.Deadline(); bounded && time.Until(end) < wait {
			return &pausedError{wait}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

const (
	exchangeTimeout = 15 * time.Second // for Zoom's response to a code; less than LateResponseWait
	identifyTimeout = 5 * time.Second  // for Zoom to report the owner of a grant
)

// accept stores the grant of a consent as the user's. For a consent that was
// accepted before, it returns the grant that is stored.
func (s *Service) accept(ctx context.Context, id grant.ID, c consent) (grant.Grant, error) {
	before, err := s.Store.Get(ctx, id)
	if err != nil && !errors.Is(err, grant.ErrNotFound) {
		return grant.Grant{}, err
	}
	if before.State == grant.StateDeleting {
		if err := s.remove(ctx, before); err != nil {
			return grant.Grant{}, err
		}
		before = grant.Grant{}
	}
	if err := s.awaitPause(ctx); err != nil {
		return grant.Grant{}, err
	}
	outcome, err := s.Store.ClaimConsent(ctx, id, c.fingerprint, s.LateResponseWait)
	switch {
	case errors.Is(err, store.ErrConsentUsed) && outcome.Conflict:
		return grant.Grant{}, &takenError{outcome.ConflictUser, outcome.ConflictAccount}
	case errors.Is(err, store.ErrConsentUsed) && outcome.Stored && before.Version != 0:
		return before, nil
	case errors.Is(err, store.ErrConsentUsed):
		return grant.Grant{}, &fieldError{c.field, "was used before, and the user was removed since; get a new one by the user's consent", err}
	case err != nil:
		return grant.Grant{}, err
	}
	entry, err := s.exchange(ctx, id, c)
	if err != nil {
		return grant.Grant{}, err
	}
	owner, err := s.checkOwner(ctx, before, entry)
	var taken *takenError
	if errors.As(err, &taken) {
		// The user keeps the grant that is stored.
		outcome := taken.outcome()
		if err := s.Store.ReleaseConsent(ctx, id, c.fingerprint, &outcome); err != nil {
			return grant.Grant{}, err
		}
		s.Renewer.DiscardConsent(entry)
		return grant.Grant{}, taken
	}
	switch err := s.Renewer.CommitConsent(ctx, entry, owner.ID, owner.AccountID); {
	case errors.Is(err, grant.ErrSuperseded):
		return grant.Grant{}, errLostLock
	case err != nil:
		return grant.Grant{}, err
	}
	return s.Store.Get(ctx, id)
}

// exchange sends a consent to Zoom, and journals the response.
func (s *Service) exchange(ctx context.Context, id grant.ID, c consent) (journal.Entry, error) {
	app, known := s.app(c.app)
	if !known {
		return journal.Entry{}, unknownApp(c.app)
	}
	callCtx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	issued := time.Now()
	tokens, err := c.spend(callCtx, app.Zoom)
	if err != nil {
		// No journal has a response. If the release fails, other calls wait for one until
		// the claim expires.
		if err := s.Store.ReleaseConsent(ctx, id, c.fingerprint, nil); err != nil {
			s.Log.Warn("consent not released; it stays claimed until the claim expires", zap.String("grant", string(id)), zap.Error(err))
		}
		return journal.Entry{}, consentError(c.field, err)
	}
	e := journal.Entry{ID: id, Spent: c.fingerprint, App: c.app, User: c.user, Tokens: grant.Tokens{
		Access: tokens.Access, Refresh: tokens.Refresh, Issued: issued, Expires: issued.Add(tokens.Lifetime),
	}}
	s.Renewer.JournalConsent(ctx, e, time.Now())
	return e, nil
}

// checkOwner reads from Zoom the owner of a new grant that is to replace one with a
// credential: a credential belongs to one Zoom user. It returns a
// [*takenError] if the new Zoom user has a credential that is not this user's. If
// Zoom or the vendor fails, the check is left to [Service.identify].
func (s *Service) checkOwner(ctx context.Context, before grant.Grant, e journal.Entry) (zoom.User, error) {
	app, known := s.app(e.App)
	if before.Credential == "" || !known {
		return zoom.User{}, nil
	}
	callCtx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	owner, err := app.Zoom.Me(callCtx, e.Tokens.Access)
	if err != nil || owner.ID == before.ZoomUser {
		return owner, nil //nolint:nilerr // identify reads it again
	}
	var taken *takenError
	filter := CredentialFilter{App: app.OAuthApp, ZoomUser: owner.ID}
	err = eachCredential(ctx, s.Vendor, filter, func(c Credential) bool {
		if _, address, ours := callback.ParseURL(c.CallbackURL.Reveal()); !ours || address.ID != before.ID {
			taken = &takenError{c.ZoomUser, c.ZoomAccount}
		}
		return taken == nil
	})
	if err == nil && taken != nil {
		return zoom.User{}, taken
	}
	return owner, nil
}

// consentError names the request's field if Zoom rejects the consent itself, and
// not the app or the moment.
func consentError(field string, err error) error {
	var refused *zoom.RefusedError
	switch {
	case errors.Is(err, zoom.ErrInvalidGrant):
		return &fieldError{field, "Zoom refuses it: it was used before, has expired, or belongs to another app; get a new one by the user's consent", err}
	case errors.As(err, &refused) && !refused.Temporary():
		return &fieldError{field, "Zoom refuses it: " + refused.Error(), err}
	}
	return err
}
