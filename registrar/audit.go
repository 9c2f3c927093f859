package registrar

import (
	"context"

	"go.uber.org/zap"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/grant"
)

// action is the action of an audit line.
type action string

const (
	actRegister       action = "register"
	actDeregister     action = "deregister"
	actRemove         action = "remove" // a removal that the registrar has completed later
	actRotateSecret   action = "rotate_callback_secret"
	actGetAccessToken action = "get_access_token"
	actDenied         action = "denied" // a call that the client may not make
)

// audit logs one line: the client, the action, the user and the outcome, a gRPC
// status code. It contains no secret, and no text of an error; the service's own log
// has that.
func (s *Service) audit(ctx context.Context, what action, app, user string, err error, g grant.Grant) {
	fields := []zap.Field{
		zap.String("action", string(what)),
		zap.String("client", clientOf(ctx)),
		zap.String("zoom_app", app),
		zap.String("user_id", user),
		zap.String("grant", string(grant.NewID(app, user))),
		zap.Stringer("outcome", status.Code(statusOf(err))),
	}
	if err == nil && g.Version != 0 {
		fields = append(fields, zap.String("state", string(g.State)),
			zap.String("zoom_user_id", g.ZoomUser), zap.String("recall_credential_id", g.Credential))
	}
	s.Audit.Info("audit", fields...)
}

// noGrant is the grant of an audit line without one.
var noGrant grant.Grant

// names returns the Zoom app and user that a request names.
func names(request any) (app, user string) {
	if r, ok := request.(named); ok {
		return r.GetZoomApp(), r.GetUserId()
	}
	return "", ""
}
