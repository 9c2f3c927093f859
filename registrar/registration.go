package registrar

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
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

// takenError: the Zoom user has a credential at Recall that is not ours.
type takenError struct{ zoomUser, zoomAccount string }

func (e *takenError) Error() string {
	return "the Zoom user belongs to a Recall credential that is not ours"
}

// register takes a consent to a user with a credential, or to a pending one.
func (s *Service) register(ctx context.Context, id grant.ID, c consent) (grant.Grant, error) {
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
	g := before
	if g.Version == 0 || g.Consent != c.fingerprint {
		if g, err = s.accept(ctx, id, before, c); err != nil {
			return grant.Grant{}, err
		}
	}
	linked, err := s.link(ctx, g)
	var taken *takenError
	switch {
	case err == nil:
		return linked, nil
	case errors.As(err, &taken) && before.Credential == "" && before.Former == "":
		return grant.Grant{}, errors.Join(err, s.discard(ctx, id))
	case errors.As(err, &taken):
		return grant.Grant{}, err
	}
	// The grant is safe: the rest can wait.
	s.Log.Warn("registered, but not yet at Recall", zap.String("grant", string(id)), zap.Error(err))
	return s.pending(ctx, id, err)
}

// accept spends the consent and stores the grant that comes of it.
func (s *Service) accept(ctx context.Context, id grant.ID, before grant.Grant, c consent) (grant.Grant, error) {
	app := s.Apps[c.app]
	issued := time.Now()
	answer, err := c.spend(ctx, app.Zoom)
	if err != nil {
		return grant.Grant{}, refusedConsent(c.field, err)
	}
	tokens := grant.Tokens{Access: answer.Access, Refresh: answer.Refresh, Issued: issued, Expires: issued.Add(answer.Life)}
	change := store.Change{
		Consent:  &store.Consent{App: c.app, User: c.user, Fingerprint: c.fingerprint, Tokens: tokens, Due: s.Rotator.Plan(tokens)},
		Identity: &store.Identity{}, // somebody else may have consented this time
	}
	// Whose grant it is decides whether the credential can stay; that is worth a
	// question, but not the grant.
	if whose, err := app.Zoom.Me(ctx, tokens.Access); err == nil {
		change.Identity = &store.Identity{ZoomUser: whose.ID, ZoomAccount: whose.AccountID}
		if before.Credential != "" && before.ZoomUser != whose.ID {
			none := ""
			change.Credential, change.Former = &none, &before.Credential
		}
	}
	// From here on there is something to lose.
	before.ID = id
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 20*time.Millisecond, time.Second
	return backoff.Retry(ctx, func() (grant.Grant, error) {
		return s.change(ctx, before, change)
	}, backoff.WithBackOff(pace), backoff.WithMaxElapsedTime(0))
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
	if g.Former != "" {
		if g, err = s.dropFormer(ctx, g); err != nil {
			return g, err
		}
	}
	if g.Credential != "" {
		return g, nil
	}
	if len(g.Keys) > 0 { // an earlier create may have got through
		found, err := s.find(ctx, g)
		if err != nil || found.Credential != "" {
			return found, err
		}
	}
	return s.create(ctx, g)
}

// identify asks Zoom whose grant it is, unless that is known.
func (s *Service) identify(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	if g.ZoomUser != "" {
		return g, nil
	}
	serving, err := s.Store.Serving(ctx, g.ID)
	if err != nil {
		return g, err
	}
	app, known := s.Apps[g.App]
	if !known {
		return g, unknownApp(g.App)
	}
	whose, err := app.Zoom.Me(ctx, serving.Access)
	if err != nil {
		return g, err
	}
	return s.change(ctx, g, store.Change{Identity: &store.Identity{ZoomUser: whose.ID, ZoomAccount: whose.AccountID}})
}

// dropFormer removes the credential of a Zoom user who was replaced.
func (s *Service) dropFormer(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	if err := s.deleteCredential(ctx, g.Former); err != nil {
		return g, err
	}
	none := ""
	return s.change(ctx, g, store.Change{Former: &none})
}

func (s *Service) deleteCredential(ctx context.Context, id string) error {
	if err := s.Recall.Delete(ctx, id); err != nil && !errors.Is(err, recall.ErrNotFound) {
		return err
	}
	return nil
}

// create makes a credential with a new secret. The secret is accepted before
// Recall is told of it, because Recall calls back at once.
func (s *Service) create(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	const attempts = 8 // whose secrets are remembered, to know an old one's credential again
	address := callback.NewAddress(g.ID)
	keys := append(g.Keys[max(0, len(g.Keys)-attempts+1):len(g.Keys):len(g.Keys)], address.Key())
	g, err := s.change(ctx, g, store.Change{Keys: &keys})
	if err != nil {
		return g, err
	}
	created, err := s.Recall.Create(ctx, s.Apps[g.App].OAuthApp, address.URL(s.CallbackBase))
	var conflict *recall.ConflictError
	if errors.As(err, &conflict) {
		if found, err := s.find(ctx, g); err != nil || found.Credential != "" {
			return found, err
		}
		return g, &takenError{conflict.ZoomUser, conflict.ZoomAccount}
	}
	if err != nil {
		return g, err
	}
	return s.record(ctx, g, created.ID, address.Key())
}

// find looks for a credential of this grant at Recall: one whose URL opens is
// adopted, one whose secret is not known any more is removed.
func (s *Service) find(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	var adopted, stale string
	var key grant.CallbackKey
	filter := recall.Filter{OAuthApp: s.Apps[g.App].OAuthApp, ZoomUser: g.ZoomUser}
	err := s.Recall.List(ctx, filter, func(c recall.Credential) bool {
		address, ours := callback.ParseURL(s.CallbackBase, c.CallbackURL.Reveal())
		switch {
		case !ours || address.ID != g.ID:
		case address.Opens(g.Keys, time.Now()):
			adopted, key = c.ID, address.Key()
		default:
			stale = c.ID
		}
		return adopted == ""
	})
	switch {
	case err != nil:
		return g, err
	case adopted != "":
		return s.record(ctx, g, adopted, key)
	case stale != "":
		if err := s.deleteCredential(ctx, stale); err != nil {
			return g, err
		}
		return s.create(ctx, g)
	}
	return g, nil
}

// record ends a registration: the credential is known and its secret is the
// only one.
func (s *Service) record(ctx context.Context, g grant.Grant, credential string, key grant.CallbackKey) (grant.Grant, error) {
	none := ""
	g, err := s.change(ctx, g, store.Change{Credential: &credential, Keys: &[]grant.CallbackKey{key}, Reason: &none})
	if err != nil {
		return g, err
	}
	s.Log.Info("user has a credential at Recall", zap.String("grant", string(g.ID)), zap.String("credential", credential))
	return g, nil
}

// pending says in the grant's reason why it has no credential yet.
func (s *Service) pending(ctx context.Context, id grant.ID, cause error) (grant.Grant, error) {
	g, err := s.Store.Get(ctx, id)
	if err != nil {
		return grant.Grant{}, err
	}
	if g.State != grant.Pending {
		return g, nil
	}
	reason := "not yet at Recall: " + cause.Error()
	if g.Reason == reason {
		return g, nil
	}
	return s.change(ctx, g, store.Change{Reason: &reason})
}

// discard removes a grant that was stored in vain. It stays alive at Zoom,
// where it may serve the caller's own use.
func (s *Service) discard(ctx context.Context, id grant.ID) error {
	for {
		g, err := s.Store.Get(ctx, id)
		if err == nil {
			err = s.Store.Remove(ctx, id, g.Version)
		}
		switch {
		case err == nil, errors.Is(err, grant.ErrNotFound):
			return nil
		case !errors.Is(err, grant.ErrConflict):
			return fmt.Errorf("discarding the grant: %w", err)
		}
	}
}
