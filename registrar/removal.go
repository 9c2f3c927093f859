package registrar

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// deregister removes a user. From its first step on the URL answers 404.
func (s *Service) deregister(ctx context.Context, id grant.ID, revoke bool) error {
	g, err := s.Store.Get(ctx, id)
	if errors.Is(err, grant.ErrNotFound) {
		// A call that has died may have left the answer to a code in a journal: it
		// must not bring the user back.
		return ignore(s.Store.Remove(ctx, id, g.Version, store.ConsentOutcome{}), grant.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if g.State != grant.Deleting || revoke && !g.Revoke {
		if g, err = s.change(ctx, g, store.Change{Deleting: true, Revoke: revoke}); err != nil {
			return err
		}
	}
	return s.remove(ctx, g)
}

// remove takes away what a user has, the credential first: as long as Recall
// has one, the record says so. Every step can be repeated.
func (s *Service) remove(ctx context.Context, g grant.Grant) error {
	for _, credential := range []string{g.Credential, g.ReplacedCredential} {
		if credential == "" {
			continue
		}
		if err := s.deleteCredential(ctx, credential); err != nil {
			return err
		}
	}
	unrecorded := g.UnrecordedZoomUsers
	if g.Credential == "" && len(g.Secrets) > 0 && g.ZoomUser != "" { // a create may have got through
		unrecorded = append(slices.Clone(unrecorded), g.ZoomUser)
	}
	for _, zoomUser := range unrecorded {
		if err := s.removeUnrecorded(ctx, g, zoomUser); err != nil {
			return err
		}
	}
	if g.Revoke {
		if err := s.revoke(ctx, g); err != nil {
			return err
		}
	}
	if err := s.discard(ctx, g.ID, store.ConsentOutcome{}); err != nil {
		return err
	}
	s.Log.Info("user removed", zap.String("grant", string(g.ID)), zap.Bool("revoked", g.Revoke))
	return nil
}

// removeUnrecorded removes credentials that were made for a user as a Zoom user,
// and that only Recall knows.
func (s *Service) removeUnrecorded(ctx context.Context, g grant.Grant, zoomUser string) error {
	app, _ := s.app(g.App) // of an app that is gone, any credential of the Zoom user's is looked at
	var found []string
	filter := recall.Filter{OAuthApp: app.OAuthApp, ZoomUser: zoomUser}
	err := s.Recall.List(ctx, filter, func(c recall.Credential) bool {
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
		if err := s.deleteCredential(ctx, credential); err != nil {
			return err
		}
	}
	return nil
}

// revoke ends the grant at Zoom. A grant that Zoom does not know is ended.
func (s *Service) revoke(ctx context.Context, g grant.Grant) error {
	app, known := s.app(g.App)
	if !known { // given up by the operator: see ZOOM_APPS_FILE
		s.Log.Warn("a grant is not revoked: its Zoom app is not in the settings any more", zap.String("grant", string(g.ID)), zap.String("app", g.App))
		return nil
	}
	token, err := s.Store.ReadRefreshToken(ctx, g.ID)
	if err != nil {
		return err
	}
	err = app.Zoom.Revoke(ctx, token)
	var refused *zoom.RefusedError
	if errors.Is(err, zoom.ErrInvalidGrant) || errors.Is(err, zoom.ErrInvalidToken) || errors.As(err, &refused) && !refused.Temporary() {
		return nil
	}
	return err
}
