package registrar

import (
	"context"
	"errors"

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
		return nil
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
	for _, credential := range []string{g.Credential, g.Former} {
		if credential == "" {
			continue
		}
		if err := s.deleteCredential(ctx, credential); err != nil {
			return err
		}
	}
	if g.Credential == "" && len(g.Keys) > 0 && g.ZoomUser != "" { // a create may have got through
		if err := s.removeUnrecorded(ctx, g); err != nil {
			return err
		}
	}
	if g.Revoke {
		if err := s.revoke(ctx, g); err != nil {
			return err
		}
	}
	if err := s.discard(ctx, g.ID); err != nil {
		return err
	}
	s.Log.Info("user removed", zap.String("grant", string(g.ID)), zap.Bool("revoked", g.Revoke))
	return nil
}

// removeUnrecorded removes credentials of the grant's that only Recall knows.
func (s *Service) removeUnrecorded(ctx context.Context, g grant.Grant) error {
	var found []string
	filter := recall.Filter{OAuthApp: s.Apps[g.App].OAuthApp, ZoomUser: g.ZoomUser}
	err := s.Recall.List(ctx, filter, func(c recall.Credential) bool {
		if address, ours := callback.ParseURL(s.CallbackBase, c.CallbackURL.Reveal()); ours && address.ID == g.ID {
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
	app, known := s.Apps[g.App]
	if !known {
		return unknownApp(g.App)
	}
	token, err := s.Store.Refresh(ctx, g.ID)
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
