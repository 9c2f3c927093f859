package registrar

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/zoom"
)

// fieldError is a fault in a field of the request.
type fieldError struct {
	field, fault string
	cause        error // may be nil
}

func (e *fieldError) Error() string { return e.field + ": " + e.fault }
func (e *fieldError) Unwrap() error { return e.cause }

// unknownAppError: a Zoom app that is not in the settings.
func unknownApp(name string) error {
	return &fieldError{field: "zoom_app", fault: "there is no Zoom app of this name in the registrar's settings", cause: errUnknownApp(name)}
}

type errUnknownApp string

func (e errUnknownApp) Error() string { return "unknown Zoom app " + string(e) }

// toStatus is the one place where errors become gRPC statuses. What it does not
// know is told to the log and not to the caller.
func (s *Service) toStatus(method string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	var (
		field   *fieldError
		taken   *takenError
		backoff *grant.BackoffError
		refused *zoom.RefusedError
	)
	switch {
	case errors.As(err, &field):
		return withDetails(codes.InvalidArgument, field.Error(), badRequest(map[string]string{field.field: field.fault}))
	case errors.As(err, &taken):
		return withDetails(codes.AlreadyExists, taken.Error(), &errdetails.ErrorInfo{
			Reason: "ZOOM_USER_TAKEN", Domain: "tokenprovider",
			Metadata: map[string]string{
				"conflicting_zoom_user_id":    taken.zoomUser,
				"conflicting_zoom_account_id": taken.zoomAccount,
			},
		})
	case errors.Is(err, grant.ErrNotFound):
		return status.Error(codes.NotFound, "there is no such user")
	case errors.Is(err, grant.ErrReauthorize):
		return status.Error(codes.FailedPrecondition, "the user must authorize again: Zoom refuses the grant")
	case errors.Is(err, grant.ErrDeleting):
		return status.Error(codes.FailedPrecondition, "the user is being removed")
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the caller has left; the work goes on")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the caller's deadline has passed; the work goes on, so repeat the call to see what came of it")
	case errors.Is(err, seal.ErrOpen):
		s.Log.Error("a record does not open", zap.String("method", method), zap.Error(err))
		return status.Error(codes.Internal, "internal error: the user's record does not open")
	}
	wait, text := time.Second, "Redis, Zoom or Recall cannot be reached; nothing is lost, try again"
	switch {
	case errors.Is(err, errBusy):
		text = errBusy.Error()
	case errors.As(err, &backoff):
		wait, text = backoff.For, "Zoom gives no token now; it will be tried again"
	case errors.As(err, &refused):
		wait, text = max(wait, refused.RetryAfter), "Zoom gives no answer now; nothing is lost, try again"
	case errors.Is(err, zoom.ErrInvalidClient):
		wait, text = time.Minute, "Zoom refuses the registrar's own client id or secret; the operator has to mend that"
	}
	s.Log.Warn("a call failed", zap.String("method", method), zap.Error(err))
	return withDetails(codes.Unavailable, text, &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
}

func badRequest(faults map[string]string) *errdetails.BadRequest {
	detail := &errdetails.BadRequest{}
	for field, fault := range faults {
		detail.FieldViolations = append(detail.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: field, Description: fault})
	}
	return detail
}

func withDetails(code codes.Code, text string, details ...protoadapt.MessageV1) error {
	st, err := status.New(code, text).WithDetails(details...)
	if err != nil {
		return status.Error(code, text)
	}
	return st.Err()
}
