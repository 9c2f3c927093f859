package registrar

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// deregister removes a user. The URL returns 404 as soon as removal starts.
func (s *Service) deregister(ctx context.Context, id grant.ID, revoke bool) error {
	g, err := s.Store.Get(ctx, id)
	if errors.Is(err, grant.ErrNotFound) {
		// The response to a code may be in the journal of a dead replica. Its replay must
		// not restore the user.
		return ignore(s.Store.Remove(ctx, id, g.Version, store.ConsentOutcome{}), grant.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if g.State != grant.StateDeleting || revoke && !g.Revoke {
		if g, err = s.change(ctx, g, store.Change{Deleting: true, Revoke: revoke}); err != nil {
			return err
		}
	}
	return s.remove(ctx, g)
}

// remove deletes a user's credentials, then revokes the grant if requested, then removes
// the record: as long as a credential exists, the record names it. Every step can be
// repeated.
func (s *Service) remove(ctx context.Context, g grant.Grant) error {
	for _, credential := range []string{g.Credential, g.ReplacedCredential} {
		if credential == "" {
			continue
		}
		if err := deleteCredential(ctx, s.Vendor, credential); err != nil {
			return err
		}
	}
	unrecorded := g.UnrecordedZoomUsers
	if g.Credential == "" && len(g.Secrets) > 0 && g.ZoomUser != "" { // a create may have succeeded
		unrecorded = append(slices.Clone(unrecorded), g.ZoomUser)
	}
	for _, zoomUser := range unrecorded {
		if err := s.deleteUnrecorded(ctx, g, zoomUser); err != nil {
			return err
		}
	}
	if g.Revoke {
		if err := s.revoke(ctx, g); err != nil {
			return err
		}
	}
	if err := s.removeRecord(ctx, g.ID, store.ConsentOutcome{}); err != nil {
		return err
	}
	s.Log.Info("user removed", zap.String("grant", string(g.ID)), zap.Bool("revoked", g.Revoke))
	return nil
}

// removeRecord removes a record at any version. It does not revoke the grant,
// which may serve the caller's own use of the Zoom API.
func (s *Service) removeRecord(ctx context.Context, id grant.ID, outcome store.ConsentOutcome) error {
	for {
		g, err := s.Store.Get(ctx, id)
		if err == nil {
			err = s.Store.Remove(ctx, id, g.Version, outcome)
		}
		switch {
		case err == nil, errors.Is(err, grant.ErrNotFound):
			return nil
		case !errors.Is(err, grant.ErrConflict):
			return fmt.Errorf("removing the record: %w", err)
		}
	}
}

// revoke revokes the grant at Zoom. A grant that is unknown to Zoom counts as revoked.
func (s *Service) revoke(ctx context.Context, g grant.Grant) error {
	app, known := s.app(g.App)
	if !known { // removed from ZOOM_APPS_FILE
		s.Log.Warn("Zoom app not configured; grant not revoked", zap.String("grant", string(g.ID)), zap.String("app", g.App))
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
