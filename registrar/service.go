package registrar

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/zoom"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// named is a request with a user.
type named interface {
	GetUserId() string
	GetZoomApp() string
}

// name returns the Zoom app and the grant ID of a request.
func (s *Service) name(r named) (app string, id grant.ID, err error) {
	app = r.GetZoomApp()
	if names := s.appNames(); app == "" && len(names) == 1 {
		app = names[0]
	}
	if app == "" {
		return "", "", &fieldError{field: "zoom_app", fault: "is required, because there are several Zoom apps"}
	}
	if _, known := s.app(app); !known {
		return "", "", unknownApp(app)
	}
	return app, grant.NewID(app, r.GetUserId()), nil
}

// nameExisting is name for calls that read or remove a user: they also accept a Zoom
// app that was removed from the settings, if the user still exists.
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
	if err := s.awaitPause(ctx); err != nil {
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
	user, err := s.users.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	return &registrarv1.GetUserResponse{User: user}, nil
}

// ListUsers implements the call of the same name.
func (s *Service) ListUsers(ctx context.Context, r *registrarv1.ListUsersRequest) (*registrarv1.ListUsersResponse, error) {
	return s.users.List(ctx, r)
}

// WatchUsers implements the call of the same name.
func (s *Service) WatchUsers(r *registrarv1.WatchUsersRequest, stream grpc.ServerStreamingServer[registrarv1.WatchUsersResponse]) error {
	return s.users.Watch(stream.Context(), r, stream.Send)
}

// EndWatches ends every watch at a position from which the caller can continue at
// another replica.
func (s *Service) EndWatches() { s.users.EndWatches() }

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
	// A token with a shorter lifetime than requested is served: Zoom has no better one.
	if err != nil && (!errors.Is(err, renewal.ErrTTLTooLong) || !serving.HasTTL(time.Second, time.Now())) {
		return nil, err
	}
	return &registrarv1.GetAccessTokenResponse{
		AccessToken: serving.Access.Reveal(),
		ExpireTime:  timestamppb.New(serving.Expires),
	}, nil
}
