package registrar

import (
	"cmp"
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/zoom"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// named is a request that names a user.
type named interface {
	GetUserId() string
	GetZoomApp() string
}

// name returns the Zoom app that a request is about, and the grant's ID.
func (s *Service) name(r named) (app string, id grant.ID, err error) {
	app = r.GetZoomApp()
	if names := s.appNames(); app == "" && len(names) == 1 {
		app = names[0]
	}
	if app == "" {
		return "", "", &fieldError{field: "zoom_app", fault: "there are several Zoom apps: name one"}
	}
	if _, known := s.app(app); !known {
		return "", "", unknownApp(app)
	}
	return app, grant.NewID(app, r.GetUserId()), nil
}

// nameExisting is name, but for a user who is there although its Zoom app has been
// given up: whoever wants to read or remove it may.
func (s *Service) nameExisting(ctx context.Context, r named) (app string, id grant.ID, err error) {
	app, id, err = s.name(r)
	var unknown errUnknownApp
	if !errors.As(err, &unknown) {
		return app, id, err
	}
	app = r.GetZoomApp()
	id = grant.NewID(app, r.GetUserId())
	_, getErr := s.Store.Get(ctx, id)
	switch {
	case errors.Is(getErr, grant.ErrNotFound):
		return "", "", err
	case getErr != nil:
		return "", "", getErr
	}
	return app, id, nil
}

// RegisterUser implements the call of the same name.
func (s *Service) RegisterUser(ctx context.Context, r *registrarv1.RegisterUserRequest) (*registrarv1.RegisterUserResponse, error) {
	app, id, err := s.name(r)
	if err != nil {
		return nil, err
	}
	c := consent{app: app, user: r.GetUserId()}
	if code := r.GetAuthorizationCode(); code != nil {
		c.field = "authorization_code.code"
		c.fingerprint = seal.Fingerprint("code", code.GetCode())
		c.spend = func(ctx context.Context, client *zoom.Client) (zoom.Tokens, error) {
			return client.Exchange(ctx, zoom.Code{
				Code: secret.New(code.GetCode()), RedirectURI: code.GetRedirectUri(), Verifier: secret.New(code.GetCodeVerifier()),
			})
		}
	} else {
		c.field = "refresh_token"
		c.fingerprint = seal.Fingerprint("refresh token", r.GetRefreshToken())
		c.spend = func(ctx context.Context, client *zoom.Client) (zoom.Tokens, error) {
			return client.Refresh(ctx, secret.New(r.GetRefreshToken()))
		}
	}
	if err := s.awaitHold(ctx); err != nil {
		return nil, err
	}
	g, err := s.onUser(ctx, id, func(ctx context.Context) (grant.Grant, error) {
		g, err := s.register(ctx, id, c)
		s.audit(ctx, actRegister, app, c.user, err, g)
		return g, err
	})
	if err != nil {
		return nil, err
	}
	return &registrarv1.RegisterUserResponse{User: toUser(g)}, nil
}

// GetUser implements the call of the same name.
func (s *Service) GetUser(ctx context.Context, r *registrarv1.GetUserRequest) (*registrarv1.GetUserResponse, error) {
	_, id, err := s.nameExisting(ctx, r)
	if err != nil {
		return nil, err
	}
	g, err := s.Store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	return &registrarv1.GetUserResponse{User: toUser(g)}, nil
}

// ListUsers implements the call of the same name. A page token is the last id
// of the page before.
func (s *Service) ListUsers(ctx context.Context, r *registrarv1.ListUsersRequest) (*registrarv1.ListUsersResponse, error) {
	size := int(r.GetPageSize())
	if size == 0 {
		size = 100
	}
	var after grant.ID
	if token := r.GetPageToken(); token != "" {
		id, ok := grant.ParseID(token)
		if !ok {
			return nil, &fieldError{field: "page_token", fault: "not the next_page_token of a page before"}
		}
		after = id
	}
	grants, err := s.Store.List(ctx, fromState(r.GetState()), after, size)
	if err != nil {
		return nil, err
	}
	response := &registrarv1.ListUsersResponse{}
	for _, g := range grants {
		response.Users = append(response.Users, toUser(g))
	}
	if len(grants) == size {
		response.NextPageToken = string(grants[size-1].ID)
	}
	return response, nil
}

// DeregisterUser implements the call of the same name.
func (s *Service) DeregisterUser(ctx context.Context, r *registrarv1.DeregisterUserRequest) (*registrarv1.DeregisterUserResponse, error) {
	app, id, err := s.nameExisting(ctx, r)
	if err != nil {
		return nil, err
	}
	_, err = s.onUser(ctx, id, func(ctx context.Context) (grant.Grant, error) {
		err := s.deregister(ctx, id, r.GetRevokeGrant())
		s.audit(ctx, actDeregister, app, r.GetUserId(), err, grant.Grant{})
		return grant.Grant{}, err
	})
	if err != nil {
		return nil, err
	}
	return &registrarv1.DeregisterUserResponse{}, nil
}

// RotateCallbackSecret implements the call of the same name.
func (s *Service) RotateCallbackSecret(ctx context.Context, r *registrarv1.RotateCallbackSecretRequest) (*registrarv1.RotateCallbackSecretResponse, error) {
	app, id, err := s.name(r)
	if err != nil {
		return nil, err
	}
	g, err := s.onUser(ctx, id, func(ctx context.Context) (grant.Grant, error) {
		g, err := s.rotateSecret(ctx, id)
		s.audit(ctx, actRotateSecret, app, r.GetUserId(), err, g)
		return g, err
	})
	if err != nil {
		return nil, err
	}
	return &registrarv1.RotateCallbackSecretResponse{User: toUser(g)}, nil
}

// GetAccessToken implements the call of the same name.
func (s *Service) GetAccessToken(ctx context.Context, r *registrarv1.GetAccessTokenRequest) (*registrarv1.GetAccessTokenResponse, error) {
	app, id, err := s.name(r)
	if err != nil {
		return nil, err
	}
	response, err := s.accessToken(ctx, id, r)
	s.audit(ctx, actGetAccessToken, app, r.GetUserId(), err, grant.Grant{})
	return response, err
}

func (s *Service) accessToken(ctx context.Context, id grant.ID, r *registrarv1.GetAccessTokenRequest) (*registrarv1.GetAccessTokenResponse, error) {
	ttl := grant.MinTTL
	if r.GetMinTtl() != nil {
		ttl = r.GetMinTtl().AsDuration()
	}
	serving, err := s.Store.ReadServingRecord(ctx, id)
	if err != nil {
		return nil, err
	}
	serving, err = s.Renewer.EnsureFresh(ctx, id, serving, ttl)
	// A token that is not good for so long is the best there is.
	if err != nil && (!errors.Is(err, renewal.ErrTTLTooLong) || !serving.HasTTL(time.Second, time.Now())) {
		return nil, err
	}
	return &registrarv1.GetAccessTokenResponse{
		AccessToken: serving.Access.Reveal(),
		ExpireTime:  timestamppb.New(serving.Expires),
	}, nil
}

// toUser is a grant as callers see it.
func toUser(g grant.Grant) *registrarv1.User {
	return &registrarv1.User{
		UserId:                g.User,
		ZoomApp:               g.App,
		State:                 toState[g.State],
		Reason:                cmp.Or(g.Reason, g.Health),
		ZoomUserId:            g.ZoomUser,
		ZoomAccountId:         g.ZoomAccount,
		RecallCredentialId:    g.Credential,
		AccessTokenExpireTime: toTime(g.AccessExpires),
		LastRefreshTime:       toTime(g.Refreshed),
		CreateTime:            toTime(g.Created),
		UpdateTime:            toTime(g.Updated),
	}
}

func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

var toState = map[grant.State]registrarv1.State{
	grant.Pending:                 registrarv1.State_STATE_PENDING,
	grant.Active:                  registrarv1.State_STATE_ACTIVE,
	grant.Degraded:                registrarv1.State_STATE_DEGRADED,
	grant.ReauthorizationRequired: registrarv1.State_STATE_REAUTHORIZATION_REQUIRED,
	grant.Deleting:                registrarv1.State_STATE_DELETING,
}

// fromState returns "" for an unspecified state.
func fromState(state registrarv1.State) grant.State {
	for own, public := range toState {
		if public == state {
			return own
		}
	}
	return ""
}
