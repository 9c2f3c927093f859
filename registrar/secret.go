package registrar

import (
	"context"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

// rotateSecret gives a user a new callback URL. Vendors cannot change a credential,
// and allow one for each Zoom user. So the old one is deleted before a new one is
// created.
func (s *Service) rotateSecret(ctx context.Context, id grant.ID) (grant.Grant, error) {
	g, err := s.Store.Get(ctx, id)
	if err != nil {
		return grant.Grant{}, err
	}
	if g.State == grant.StateDeleting {
		return grant.Grant{}, grant.ErrDeleting
	}
	if g.Credential == "" { // the credential will have a new secret in any case
		if g, err = s.link(ctx, g); err != nil {
			return s.postpone(ctx, id, err)
		}
		return g, nil
	}
	if g.ReplacedCredential != "" {
		if g, err = s.deleteReplaced(ctx, g); err != nil {
			return grant.Grant{}, err
		}
	}
	if g, err = s.markReplaced(ctx, g, "its callback URL is being replaced"); err != nil {
		return grant.Grant{}, err
	}
	if g, err = s.createCredential(ctx, g); err != nil {
		return s.postpone(ctx, id, err)
	}
	return g, nil
}

// markReplaced stores that a user's credential is to be replaced. createCredential
// replaces it; if that is interrupted, link continues. Until the new secret is in
// use, both secrets are accepted.
func (s *Service) markReplaced(ctx context.Context, g grant.Grant, why string) (grant.Grant, error) {
	none := ""
	return s.change(ctx, g, store.Change{Credential: &none, ReplacedCredential: &g.Credential, Reason: &why})
}
