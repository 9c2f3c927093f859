package registrar

import (
	"context"
	"errors"
	"slices"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// register stores the grant of a consent and gives it a credential. If only the
// credential is missing, the user is pending, and [Service.RunUnfinished] continues.
func (s *Service) register(ctx context.Context, id grant.ID, c consent) (grant.Grant, error) {
	g, err := s.accept(ctx, id, c)
	if err != nil {
		return grant.Grant{}, err
	}
	linked, err := s.link(ctx, g)
	var taken *takenError
	switch {
	case err == nil:
		s.metrics.observeLinked(g, linked)
		return linked, nil
	case errors.As(err, &taken) && linked.Credential == "" && linked.ReplacedCredential == "":
		return grant.Grant{}, errors.Join(err, s.removeRecord(ctx, id, taken.outcome()))
	}
	s.metrics.observePending(g)
	return s.postpone(ctx, id, err)
}

// link gives a grant its credential. Every step is stored before the next, and can
// be repeated.
func (s *Service) link(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	g, err := s.identify(ctx, g)
	if err != nil {
		return g, err
	}
	if len(g.UnrecordedZoomUsers) > 0 {
		for _, zoomUser := range g.UnrecordedZoomUsers {
			if err := s.deleteUnrecorded(ctx, g, zoomUser); err != nil {
				return g, err
			}
		}
		if g, err = s.change(ctx, g, store.Change{UnrecordedZoomUsers: &[]string{}}); err != nil {
			return g, err
		}
	}
	switch {
	case g.Credential != "" && g.ReplacedCredential != "":
		return s.deleteReplaced(ctx, g)
	case g.Credential != "":
		return g, nil
	case len(g.Secrets) > 0: // an earlier create may have succeeded
		found, err := s.findCredential(ctx, g)
		if err != nil || found.Credential != "" {
			return found, err
		}
		g = found
	}
	return s.createCredential(ctx, g)
}

// identify stores the Zoom user of a grant, as Zoom reports it, unless it is known.
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
	callCtx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	owner, err := app.Zoom.Me(callCtx, serving.Access)
	if errors.Is(err, zoom.ErrInvalidToken) { // renewed meanwhile, or the grant is gone: a renewal finds out
		_, err = s.Renewer.EnsureFresh(ctx, g.ID, serving, time.Until(serving.Expires)+time.Second)
		return g, errors.Join(zoom.ErrInvalidToken, err)
	}
	if err != nil {
		return g, err
	}
	change := store.Change{Identity: &store.Identity{ZoomUser: owner.ID, ZoomAccount: owner.AccountID}}
	switch { // the rest is for another Zoom user than before: see accept_consent.lua
	case g.ZoomUser == "" || g.ZoomUser == owner.ID:
	case g.Credential != "":
		none := ""
		change.Credential, change.ReplacedCredential, change.Secrets = &none, &g.Credential, &[]grant.CallbackSecret{}
	case len(g.Secrets) > 0:
		unrecorded := append(slices.Clone(g.UnrecordedZoomUsers), g.ZoomUser)
		change.UnrecordedZoomUsers = &unrecorded
	}
	return s.change(ctx, g, change)
}
