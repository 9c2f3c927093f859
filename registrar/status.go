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
	"tokenprovider/internal/recall"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/store"
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

// toStatus is what a method's error is answered with. What the caller is not told
// of it, the log is.
func (s *Service) toStatus(method string, err error) error {
	st := statusOf(err)
	if _, told := status.FromError(err); told {
		return st
	}
	switch status.Code(st) {
	case codes.Internal:
		s.Log.Error("a record does not open", zap.String("method", method), zap.Error(err))
	case codes.Unavailable:
		s.Log.Warn("a call failed", zap.String("method", method), zap.Error(err))
	default: // the caller's business
	}
	return st
}

// statusOf is the one place where errors become gRPC statuses.
func statusOf(err error) error {
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
		held    *grant.HeldError
		hold    *holdError
		limit   *recall.LimitError
		over    *overLimitError
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
	case errors.As(err, &over):
		return withDetails(codes.ResourceExhausted, over.Error(), &errdetails.RetryInfo{RetryDelay: durationpb.New(over.wait)})
	case errors.Is(err, errNobody):
		return status.Error(codes.Unauthenticated, errNobody.Error())
	case errors.Is(err, errForbidden):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, store.ErrPositionExpired):
		return withDetails(codes.OutOfRange, "changes since the resume_token are not kept any more: watch anew without one, and list all users",
			&errdetails.ErrorInfo{Reason: "RESUME_TOKEN_EXPIRED", Domain: "tokenprovider"})
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
	case errors.Is(err, seal.ErrDecrypt):
		return status.Error(codes.Internal, "internal error: the user's record does not open")
	}
	wait, text := time.Second, "Redis, Zoom or Recall cannot be reached; nothing is lost, try again"
	switch {
	case errors.Is(err, errBusy):
		text = errBusy.Error()
	case errors.Is(err, errStopping):
		text = "this registrar is stopping: go on at another one"
	case errors.As(err, &held):
		wait, text = min(held.For, 2*time.Second), "an earlier call with this code or refresh token may still bring its answer; try again"
	case errors.As(err, &hold):
		wait, text = hold.wait, "Redis has just restarted, and no code is spent until all is known again; nothing is lost, try again"
	case errors.As(err, &limit):
		wait, text = limit.For, "the limit of requests to Recall is used up; nothing is lost, try again"
	case errors.As(err, &backoff):
		wait, text = backoff.For, "Zoom gives no token now; it will be tried again"
	case errors.As(err, &refused):
		wait, text = max(wait, refused.RetryAfter), "Zoom gives no answer now; nothing is lost, try again"
	case errors.Is(err, zoom.ErrInvalidClient):
		wait, text = time.Minute, "Zoom refuses the registrar's own client id or secret; the operator has to mend that"
	}
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
