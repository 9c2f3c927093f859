package registrar

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// consent is what a caller brings: something to spend at Zoom.
type consent struct {
	app, user   string
	fingerprint string
	field       string // of the request, for errors
	spend       func(context.Context, *zoom.Client) (zoom.Tokens, error)
}

// takenError: the Zoom user has a credential at Recall that is not this user's.
type takenError struct{ zoomUser, zoomAccount string }

func (e *takenError) Error() string {
	return "the Zoom user belongs to a Recall credential that is not this user's"
}

// holdError: Redis may have forgotten which codes are spent; soon it will have been
// told.
type holdError struct{ wait time.Duration }

func (e *holdError) Error() string {
	return fmt.Sprintf("no code is spent for %v: Redis has restarted or another server has taken over", e.wait)
}

// awaitHold waits until codes may be spent, or answers a [*holdError] if the
// caller does not wait for so long.
func (s *Service) awaitHold(ctx context.Context) error {
	for {
		hold := s.Renewer.PauseRemaining()
		if hold == 0 {
			return nil
		}
		if end, bounded := ctx.Deadline(); bounded && time.Until(end) < hold {
			return &holdError{hold}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(hold):
		}
	}
}

const (
	spendTime = 15 * time.Second // for Zoom to answer a code; less than LateAnswer
	askTime   = 5 * time.Second  // for Zoom to say whose grant it is
)

// register takes a consent to a user with a credential, or to a pending one.
func (s *Service) register(ctx context.Context, id grant.ID, c consent) (grant.Grant, error) {
	g, err := s.accept(ctx, id, c)
	if err != nil {
		return grant.Grant{}, err
	}
	linked, err := s.link(ctx, g)
	var taken *takenError
	switch {
	case err == nil:
		s.metrics.linked(g, linked)
		return linked, nil
	case errors.As(err, &taken) && linked.Credential == "" && linked.ReplacedCredential == "":
		outcome := store.ConsentOutcome{Conflict: true, ConflictUser: taken.zoomUser, ConflictAccount: taken.zoomAccount}
		return grant.Grant{}, errors.Join(err, s.discard(ctx, id, outcome))
	}
	s.metrics.waits(g)
	return s.later(ctx, id, err)
}

// accept makes the grant that comes of a consent the user's: once, however often
// it is asked for.
func (s *Service) accept(ctx context.Context, id grant.ID, c consent) (grant.Grant, error) {
	before, err := s.Store.Get(ctx, id)
	if err != nil && !errors.Is(err, grant.ErrNotFound) {
		return grant.Grant{}, err
	}
	if before.State == grant.Deleting {
		if err := s.remove(ctx, before); err != nil {
			return grant.Grant{}, err
		}
		before = grant.Grant{}
	}
	if err := s.awaitHold(ctx); err != nil { // what is spent may have been forgotten
		return grant.Grant{}, err
	}
	outcome, err := s.Store.ClaimConsent(ctx, id, c.fingerprint, s.LateResponseWait)
	switch {
	case errors.Is(err, store.ErrConsentUsed) && outcome.Conflict:
		return grant.Grant{}, &takenError{outcome.ConflictUser, outcome.ConflictAccount}
	case errors.Is(err, store.ErrConsentUsed) && outcome.Stored && before.Version != 0:
		return before, nil
	case errors.Is(err, store.ErrConsentUsed):
		return grant.Grant{}, &fieldError{c.field, "it was spent, and the user was removed since; get a new one by the user's consent", err}
	case err != nil:
		return grant.Grant{}, err
	}
	answer, err := s.spend(ctx, id, c)
	if err != nil {
		return grant.Grant{}, err
	}
	whose, err := s.whose(ctx, before, answer)
	var taken *takenError
	if errors.As(err, &taken) {
		// The user goes on with the grant it has.
		outcome := store.ConsentOutcome{Conflict: true, ConflictUser: taken.zoomUser, ConflictAccount: taken.zoomAccount}
		if err := s.Store.ReleaseConsent(ctx, id, c.fingerprint, &outcome); err != nil {
			return grant.Grant{}, err
		}
		s.Renewer.DiscardConsent(answer)
		return grant.Grant{}, taken
	}
	switch err := s.Renewer.CommitConsent(ctx, answer, whose.ID, whose.AccountID); {
	case errors.Is(err, grant.ErrSuperseded):
		return grant.Grant{}, errOvertaken
	case err != nil:
		return grant.Grant{}, err
	}
	return s.Store.Get(ctx, id)
}

// spend presents the consent to Zoom. The answer is in the journal when it
// returns.
func (s *Service) spend(ctx context.Context, id grant.ID, c consent) (journal.Entry, error) {
	app, known := s.app(c.app)
	if !known {
		return journal.Entry{}, unknownApp(c.app)
	}
	callCtx, cancel := context.WithTimeout(ctx, spendTime)
	defer cancel()
	issued := time.Now()
	answer, err := c.spend(callCtx, app.Zoom)
	if err != nil {
		// There is no answer that anybody could bring. If that cannot be written,
		// others wait for one in vain, and then try.
		if err := s.Store.ReleaseConsent(ctx, id, c.fingerprint, nil); err != nil {
			s.Log.Warn("a consent that brought no grant stays claimed for a while", zap.String("grant", string(id)), zap.Error(err))
		}
		return journal.Entry{}, refusedConsent(c.field, err)
	}
	e := journal.Entry{ID: id, Spent: c.fingerprint, App: c.app, User: c.user, Tokens: grant.Tokens{
		Access: answer.Access, Refresh: answer.Refresh, Issued: issued, Expires: issued.Add(answer.Life),
	}}
	s.Renewer.JournalConsent(e, time.Now())
	return e, nil
}

// whose asks Zoom whose grant has come of a consent, where it matters before the
// grant takes the place of another: a credential at Recall is its Zoom user's. It
// answers a [*takenError] if it cannot take it. If Zoom or Recall do not answer,
// that is found out later.
func (s *Service) whose(ctx context.Context, before grant.Grant, answer journal.Entry) (zoom.User, error) {
	app, known := s.app(answer.App)
	if before.Credential == "" || !known {
		return zoom.User{}, nil
	}
	askCtx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	whose, err := app.Zoom.Me(askCtx, answer.Tokens.Access)
	if err != nil || whose.ID == before.ZoomUser {
		return whose, nil //nolint:nilerr // it is asked again
	}
	var taken *takenError
	err = s.Recall.List(ctx, recall.Filter{OAuthApp: app.OAuthApp, ZoomUser: whose.ID}, func(c recall.Credential) bool {
		if _, address, ours := callback.ParseURL(c.CallbackURL.Reveal()); !ours || address.ID != before.ID {
			taken = &takenError{c.ZoomUser, c.ZoomAccount}
		}
		return taken == nil
	})
	if err == nil && taken != nil {
		return zoom.User{}, taken
	}
	return whose, nil
}

// refusedConsent names the request's field if it is the consent that Zoom does
// not like, and not the app or the moment.
func refusedConsent(field string, err error) error {
	var refused *zoom.RefusedError
	switch {
	case errors.Is(err, zoom.ErrInvalidGrant):
		return &fieldError{field, "Zoom refuses it: it was spent, has expired, or is not of this app; get a new one by the user's consent", err}
	case errors.As(err, &refused) && !refused.Temporary():
		return &fieldError{field, "Zoom refuses it: " + refused.Error(), err}
	}
	return err
}

// link gives a grant its credential at Recall. Every step is recorded before
// the next, and can be repeated.
func (s *Service) link(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	g, err := s.identify(ctx, g)
	if err != nil {
		return g, err
	}
	if len(g.UnrecordedZoomUsers) > 0 {
		for _, zoomUser := range g.UnrecordedZoomUsers {
			if err := s.removeUnrecorded(ctx, g, zoomUser); err != nil {
				return g, err
			}
		}
		if g, err = s.change(ctx, g, store.Change{UnrecordedZoomUsers: &[]string{}}); err != nil {
			return g, err
		}
	}
	switch {
	case g.Credential != "" && g.ReplacedCredential != "":
		return s.dropFormer(ctx, g)
	case g.Credential != "":
		return g, nil
	case len(g.Secrets) > 0: // an earlier create may have got through
		found, err := s.find(ctx, g)
		if err != nil || found.Credential != "" {
			return found, err
		}
		g = found
	}
	return s.create(ctx, g)
}

// identify asks Zoom whose grant it is, unless that is known.
func (s *Service) identify(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	if g.ZoomUser != "" && !g.OwnerUnverified {
		return g, nil
	}
	serving, err := s.Store.ReadServingRecord(ctx, g.ID)
	if err != nil {
		return g, err
	}
	app, known := s.app(g.App)
	if !known {
		return g, unknownApp(g.App)
	}
	askCtx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	whose, err := app.Zoom.Me(askCtx, serving.Access)
	if errors.Is(err, zoom.ErrInvalidToken) { // renewed meanwhile, or the grant is gone: a renewal tells
		_, err = s.Renewer.EnsureFresh(ctx, g.ID, serving, time.Until(serving.Expires)+time.Second)
		return g, errors.Join(zoom.ErrInvalidToken, err)
	}
	if err != nil {
		return g, err
	}
	change := store.Change{Identity: &store.Identity{ZoomUser: whose.ID, ZoomAccount: whose.AccountID}}
	switch { // another Zoom user's: see accept.lua
	case g.ZoomUser == "" || g.ZoomUser == whose.ID:
	case g.Credential != "":
		none := ""
		change.Credential, change.ReplacedCredential, change.Health, change.Secrets = &none, &g.Credential, &none, &[]grant.CallbackSecret{}
	case len(g.Secrets) > 0:
		strays := append(slices.Clone(g.UnrecordedZoomUsers), g.ZoomUser)
		change.UnrecordedZoomUsers = &strays
	}
	return s.change(ctx, g, change)
}

// dropFormer removes a credential that was replaced.
func (s *Service) dropFormer(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	if err := s.deleteCredential(ctx, g.ReplacedCredential); err != nil {
		return g, err
	}
	none := ""
	return s.change(ctx, g, store.Change{ReplacedCredential: &none})
}

func (s *Service) deleteCredential(ctx context.Context, id string) error {
	if err := s.Recall.Delete(ctx, id); err != nil && !errors.Is(err, recall.ErrNotFound) {
		return err
	}
	return nil
}

// create makes a credential with a new secret, in the place of the former one if
// there is one. The secret is accepted before Recall is told of it, because Recall
// calls back at once.
func (s *Service) create(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	const attempts = 8 // whose secrets are remembered, to know an old one's credential again
	app, known := s.app(g.App)
	if !known {
		return g, unknownApp(g.App)
	}
	address, before := callback.NewAddress(g.ID), g.Secrets
	keys := append(g.Secrets[max(0, len(g.Secrets)-attempts+1):len(g.Secrets):len(g.Secrets)], address.CallbackSecret())
	g, err := s.change(ctx, g, store.Change{Secrets: &keys})
	if err != nil {
		return g, err
	}
	var created recall.Credential
	if g.ReplacedCredential == "" {
		created, err = s.Recall.Create(ctx, app.OAuthApp, address.URL(s.CallbackBase))
	} else {
		created, err = s.Recall.Replace(ctx, g.ReplacedCredential, app.OAuthApp, address.URL(s.CallbackBase))
	}
	var conflict *recall.ConflictError
	switch {
	case err == nil:
		return s.record(ctx, g, created.ID, address.CallbackSecret(), true)
	case errors.As(err, &conflict):
		found, err := s.find(ctx, g)
		if err != nil || found.Credential != "" {
			return found, err
		}
		return found, &takenError{conflict.ZoomUser, conflict.ZoomAccount}
	case unmade(err):
		// Nobody has to look for this one. If that cannot be written, somebody does.
		if forgotten, changeErr := s.change(ctx, g, store.Change{Secrets: &before}); changeErr == nil {
			g = forgotten
		}
	}
	return g, err
}

// unmade reports whether an error says that Recall has made no credential.
func unmade(err error) bool {
	var limit *recall.LimitError
	var refused *recall.RefusedError
	return errors.As(err, &limit) || errors.Is(err, recall.ErrUnauthorized) ||
		errors.As(err, &refused) && refused.Status < http.StatusInternalServerError
}

// find looks for a credential of this grant at Recall: one whose URL opens is
// adopted. One that is ours and of no use, because its secret is not known any
// more, its base is an old one, or its user was removed, is replaced. If there is
// none, the grant is returned as it is.
func (s *Service) find(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	app, known := s.app(g.App)
	if !known {
		return g, unknownApp(g.App)
	}
	var adopted, stale string
	var key grant.CallbackSecret
	strangers := map[string]grant.ID{} // under our bases, of other users
	filter := recall.Filter{OAuthApp: app.OAuthApp, ZoomUser: g.ZoomUser}
	err := s.Recall.List(ctx, filter, func(c recall.Credential) bool {
		base, address, ok := callback.ParseURL(c.CallbackURL.Reveal())
		opens := ok && address.ID == g.ID && address.Matches(g.Secrets, time.Now())
		switch {
		case !ok || c.ID == g.ReplacedCredential:
		case opens && s.isCurrent(base):
			adopted, key = c.ID, address.CallbackSecret()
		case opens, address.ID == g.ID && s.isOurs(base):
			stale = c.ID
		case s.isOurs(base):
			strangers[c.ID] = address.ID
		}
		return adopted == ""
	})
	if err != nil {
		return g, err
	}
	if adopted != "" {
		if g, err = s.record(ctx, g, adopted, key, false); err != nil || g.ReplacedCredential == "" {
			return g, err
		}
		return s.dropFormer(ctx, g)
	}
	for credential, id := range strangers {
		// A grant is stored before it gets a credential, so this is nobody's.
		if _, err := s.Store.Get(ctx, id); errors.Is(err, grant.ErrNotFound) {
			stale = credential
		}
	}
	switch {
	case stale == "":
		return g, nil
	case g.ReplacedCredential != "" && g.ReplacedCredential != stale:
		if g, err = s.dropFormer(ctx, g); err != nil {
			return g, err
		}
	}
	if g, err = s.change(ctx, g, store.Change{ReplacedCredential: &stale}); err != nil {
		return g, err
	}
	return s.create(ctx, g)
}

// keyGrace is how long the secrets before the one in use are accepted: for calls
// of Recall's that are on their way.
const keyGrace = time.Minute

// record ends a registration: the credential, made just now or found, is known and
// its secret is the only one that stays.
func (s *Service) record(ctx context.Context, g grant.Grant, credential string, key grant.CallbackSecret, made bool) (grant.Grant, error) {
	none, now := "", time.Now().UTC().Truncate(time.Millisecond)
	key.NotAfter = time.Time{}
	keys := []grant.CallbackSecret{key}
	for _, old := range g.Secrets {
		if old.NotAfter.IsZero() {
			old.NotAfter = now.Add(keyGrace)
		}
		if old.Fingerprint != key.Fingerprint && now.Before(old.NotAfter) {
			keys = append(keys, old)
		}
	}
	change := store.Change{Credential: &credential, Secrets: &keys, Reason: &none, Health: &none}
	if made { // Recall had to let go of the former one first
		change.ReplacedCredential = &none
	}
	g, err := s.change(ctx, g, change)
	if err != nil {
		return g, err
	}
	s.Log.Info("user has a credential at Recall", zap.String("grant", string(g.ID)), zap.String("credential", credential))
	return g, nil
}

// later leaves the rest of a registration to the finisher, after a while, and says
// in the grant's reason why it is not at Recall yet. The grant itself is safe. It
// returns cause only if it is for the caller to know.
func (s *Service) later(ctx context.Context, id grant.ID, cause error) (grant.Grant, error) {
	g, err := s.Store.Get(ctx, id)
	if err != nil {
		return grant.Grant{}, err
	}
	s.Log.Warn("a user is not finished yet", zap.String("grant", string(id)), zap.String("state", string(g.State)), zap.Error(cause))
	s.metrics.put(cause)
	wait := grant.Backoff(g.Attempts+1, rand.Float64(), asked(cause)) //nolint:gosec // jitter is no secret
	var taken *takenError
	if errors.As(cause, &taken) { // costs a create and a list each time
		wait = max(wait, 15*time.Minute)
	}
	if err := s.Store.Postpone(ctx, id, wait); err != nil {
		return grant.Grant{}, err
	}
	if g.State == grant.Pending {
		if why := reason(cause); g.Reason != why {
			if g, err = s.change(ctx, g, store.Change{Reason: &why}); err != nil {
				return grant.Grant{}, err
			}
		}
	}
	if taken != nil {
		return g, taken
	}
	return g, nil
}

// asked is how long Recall or Zoom want to be left alone.
func asked(cause error) time.Duration {
	var limit *recall.LimitError
	var refused *recall.RefusedError
	var refusedByZoom *zoom.RefusedError
	switch {
	case errors.As(cause, &limit):
		return limit.For
	case errors.As(cause, &refused):
		return refused.RetryAfter
	case errors.As(cause, &refusedByZoom):
		return refusedByZoom.RetryAfter
	}
	return 0
}

// reason is a cause in words for people, the same each time.
func reason(cause error) string {
	var limit *recall.LimitError
	if errors.As(cause, &limit) {
		return "not yet at Recall: the limit of requests to Recall is used up"
	}
	return "not yet at Recall: " + cause.Error()
}

// discard removes a grant that was stored in vain. It stays alive at Zoom,
// where it may serve the caller's own use.
func (s *Service) discard(ctx context.Context, id grant.ID, outcome store.ConsentOutcome) error {
	for {
		g, err := s.Store.Get(ctx, id)
		if err == nil {
			err = s.Store.Remove(ctx, id, g.Version, outcome)
		}
		switch {
		case err == nil, errors.Is(err, grant.ErrNotFound):
			return nil
		case !errors.Is(err, grant.ErrConflict):
			return fmt.Errorf("discarding the grant: %w", err)
		}
	}
}
