package registrar

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

// createCredential creates a credential with a new secret, and deletes the replaced
// one first if there is one. The secret is stored before, because the vendor calls
// the URL at once.
func (s *Service) createCredential(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	const maxSecrets = 8 // of earlier attempts, kept to recognize their credentials
	app, known := s.app(g.App)
	if !known {
		return g, unknownApp(g.App)
	}
	address, before := callback.NewAddress(g.ID), g.Secrets
	secrets := append(g.Secrets[max(0, len(g.Secrets)-maxSecrets+1):len(g.Secrets):len(g.Secrets)], address.CallbackSecret())
	g, err := s.change(ctx, g, store.Change{Secrets: &secrets})
	if err != nil {
		return g, err
	}
	created, err := s.Vendor.Create(ctx, NewCredential{
		App: app.OAuthApp, CallbackURL: address.URL(s.CallbackBase), Replaces: g.ReplacedCredential,
	})
	var conflict *ConflictError
	switch {
	case err == nil:
		return s.storeCredential(ctx, g, created, address.CallbackSecret(), true)
	case errors.As(err, &conflict):
		found, err := s.findCredential(ctx, g)
		if err != nil || found.Credential != "" {
			return found, err
		}
		return found, &takenError{conflict.ZoomUser, conflict.ZoomAccount}
	case hasNoEffect(err):
		// Nothing was created. If the secret stays stored, the next attempt only looks for a
		// credential in vain.
		if restored, changeErr := s.change(ctx, g, store.Change{Secrets: &before}); changeErr == nil {
			g = restored
		}
	}
	return g, err
}

// findCredential looks for a credential of this grant at the vendor, and returns
// the grant unchanged if there is none. It adopts one whose URL works. It replaces
// one of ours whose URL does not work: its secret is no longer known, its base is
// an earlier one, or its user was removed.
func (s *Service) findCredential(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	app, known := s.app(g.App)
	if !known {
		return g, unknownApp(g.App)
	}
	var adopted Credential
	var adoptedSecret grant.CallbackSecret
	stale := ""
	others := map[string]grant.ID{} // credentials under our bases, of other users
	filter := CredentialFilter{App: app.OAuthApp, ZoomUser: g.ZoomUser}
	err := eachCredential(ctx, s.Vendor, filter, func(c Credential) bool {
		base, address, ok := callback.ParseURL(c.CallbackURL.Reveal())
		works := ok && address.ID == g.ID && address.Matches(g.Secrets, time.Now())
		switch {
		case !ok || c.ID == g.ReplacedCredential:
		case works && s.isCurrent(base):
			adopted, adoptedSecret = c, address.CallbackSecret()
		case works, address.ID == g.ID && s.isOurs(base):
			stale = c.ID
		case s.isOurs(base):
			others[c.ID] = address.ID
		}
		return adopted.ID == ""
	})
	if err != nil {
		return g, err
	}
	if adopted.ID != "" {
		if g, err = s.storeCredential(ctx, g, adopted, adoptedSecret, false); err != nil || g.ReplacedCredential == "" {
			return g, err
		}
		return s.deleteReplaced(ctx, g)
	}
	for credential, id := range others {
		// A grant is stored before its credential is created, so this user was removed.
		if _, err := s.Store.Get(ctx, id); errors.Is(err, grant.ErrNotFound) {
			stale = credential
		}
	}
	switch {
	case stale == "":
		return g, nil
	case g.ReplacedCredential != "" && g.ReplacedCredential != stale:
		if g, err = s.deleteReplaced(ctx, g); err != nil {
			return g, err
		}
	}
	if g, err = s.change(ctx, g, store.Change{ReplacedCredential: &stale}); err != nil {
		return g, err
	}
	return s.createCredential(ctx, g)
}

// secretGrace is the time for which earlier secrets are still accepted, for callbacks
// that the vendor has already started.
const secretGrace = time.Minute

// storeCredential ends a registration: it stores the id of a credential that was
// created or found, and lets all secrets but the credential's own expire.
func (s *Service) storeCredential(ctx context.Context, g grant.Grant, c Credential, secret grant.CallbackSecret, created bool) (grant.Grant, error) {
	none, now := "", time.Now().UTC().Truncate(time.Millisecond)
	secret.NotAfter = time.Time{}
	secrets := []grant.CallbackSecret{secret}
	for _, old := range g.Secrets {
		if old.NotAfter.IsZero() {
			old.NotAfter = now.Add(secretGrace)
		}
		if old.Fingerprint != secret.Fingerprint && now.Before(old.NotAfter) {
			secrets = append(secrets, old)
		}
	}
	change := store.Change{Credential: &c.ID, Secrets: &secrets, Reason: &none}
	setReport(&change, g, c, "")
	if created { // the replaced one is deleted
		change.ReplacedCredential = &none
	}
	g, err := s.change(ctx, g, change)
	if err != nil {
		return g, err
	}
	s.Log.Info("credential stored; user is registered at Recall", zap.String("grant", string(g.ID)), zap.String("credential", c.ID))
	return g, nil
}

// setReport adds to a change what the vendor reports about a grant's credential, and
// reports whether that differs from what is stored. The health is the credential's
// defect for people, "" if it has none.
func setReport(change *store.Change, g grant.Grant, c Credential, health string) (differs bool) {
	change.Health, change.Status, change.MeetingSync = &health, &c.Status, &c.MeetingSync
	return health != g.Health || c.Status != g.Status || c.MeetingSync != g.MeetingSync
}

// deleteReplaced deletes a credential that was replaced.
func (s *Service) deleteReplaced(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	if err := deleteCredential(ctx, s.Vendor, g.ReplacedCredential); err != nil {
		return g, err
	}
	none := ""
	return s.change(ctx, g, store.Change{ReplacedCredential: &none})
}

// deleteUnrecorded deletes credentials that were created for this grant as a Zoom
// user's, and whose ids were never stored.
func (s *Service) deleteUnrecorded(ctx context.Context, g grant.Grant, zoomUser string) error {
	app, _ := s.app(g.App) // an app that was removed from the settings: no filter
	var found []string
	filter := CredentialFilter{App: app.OAuthApp, ZoomUser: zoomUser}
	err := eachCredential(ctx, s.Vendor, filter, func(c Credential) bool {
		base, address, ok := callback.ParseURL(c.CallbackURL.Reveal())
		if ok && address.ID == g.ID && c.ID != g.Credential && (s.isOurs(base) || address.Matches(g.Secrets, time.Now())) {
			found = append(found, c.ID)
		}
		return true
	})
	if err != nil {
		return err
	}
	for _, credential := range found {
		if err := deleteCredential(ctx, s.Vendor, credential); err != nil {
			return err
		}
	}
	return nil
}
