package registrar

import (
	"context"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

// rotateSecret gives a user a new callback URL. Recall cannot change a credential,
// and has one for a Zoom user at a time: the old one has to go before a new one
// can be made.
func (s *Service) rotateSecret(ctx context.Context, id grant.ID) (grant.Grant, error) {
	g, err := s.Store.Get(ctx, id)
	if err != nil {
		return grant.Grant{}, err
	}
	if g.State == grant.Deleting {
		return grant.Grant{}, grant.ErrDeleting
	}
	if g.Credential == "" { // it gets one with a new secret anyway
		if g, err = s.link(ctx, g); err != nil {
			return s.later(ctx, id, err)
		}
		return g, nil
	}
	if g.ReplacedCredential != "" {
		if g, err = s.dropFormer(ctx, g); err != nil {
			return grant.Grant{}, err
		}
	}
	if g, err = s.unlink(ctx, g, "its callback URL is being replaced"); err != nil {
		return grant.Grant{}, err
	}
	if g, err = s.create(ctx, g); err != nil {
		return s.later(ctx, id, err)
	}
	return g, nil
}

// unlink records that a user's credential is to be replaced: create does so, and
// if it does not come to its end, link goes on. Until the new one is in use, both
// secrets are accepted.
func (s *Service) unlink(ctx context.Context, g grant.Grant, why string) (grant.Grant, error) {
	none := ""
	return s.change(ctx, g, store.Change{Credential: &none, ReplacedCredential: &g.Credential, Reason: &why})
}
