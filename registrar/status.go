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
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// fieldError is an invalid field of a request.
type fieldError struct {
	field, fault string
	cause        error // may be nil
}

func (e *fieldError) Error() string { return e.field + ": " + e.fault }
func (e *fieldError) Unwrap() error { return e.cause }

// unknownApp returns the error for a Zoom app that is not in the settings.
func unknownApp(name string) error {
	return &fieldError{field: "zoom_app", fault: "must be the name of a Zoom app in the registrar's settings", cause: errUnknownApp(name)}
}

type errUnknownApp string

func (e errUnknownApp) Error() string { return "unknown Zoom app " + string(e) }

// toStatus returns the status of a method's error, and logs what the status leaves
// out.
func (s *Service) toStatus(method string, err error) error {
	st := statusOf(err)
	if _, ok := status.FromError(err); ok {
		return st
	}
	switch status.Code(st) {
	case codes.Internal:
		s.Log.Error("decrypting a record failed; call failed", zap.String("method", method), zap.Error(err))
	case codes.Unavailable:
		s.Log.Warn("call failed; the caller may retry", zap.String("method", method), zap.Error(err))
	default: // a fault of the request
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
		paused  *pausedError
		limit   *VendorError
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
	case errors.Is(err, errNoIdentity):
		return status.Error(codes.Unauthenticated, errNoIdentity.Error())
	case errors.Is(err, errForbidden):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, store.ErrPositionExpired):
		return withDetails(codes.OutOfRange, "changes since the resume_token are no longer kept: watch without one, and list all users",
			&errdetails.ErrorInfo{Reason: "RESUME_TOKEN_EXPIRED", Domain: "tokenprovider"})
	case errors.Is(err, grant.ErrNotFound):
		return status.Error(codes.NotFound, "there is no such user")
	case errors.Is(err, grant.ErrReauthorize):
		return status.Error(codes.FailedPrecondition, "the user must authorize again: Zoom refuses the grant")
	case errors.Is(err, grant.ErrDeleting):
		return status.Error(codes.FailedPrecondition, "the user is being removed")
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the caller has left; the work continues")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the caller's deadline has passed; the work continues, so repeat the call to see its result")
	case errors.Is(err, seal.ErrDecrypt):
		return status.Error(codes.Internal, "internal error: decrypting the user's record failed")
	}
	wait, text := time.Second, "Redis, Zoom or Recall cannot be reached; nothing is lost, try again"
	switch {
	case errors.Is(err, errBusy):
		text = errBusy.Error()
	case errors.Is(err, errStopping):
		text = "this registrar is stopping; continue at another one"
	case errors.As(err, &held):
		wait, text = min(held.For, 2*time.Second), "an earlier call with this code or refresh token may still succeed; try again"
	case errors.As(err, &paused):
		wait, text = paused.wait, "Redis has restarted or failed over, and no code is spent for a moment; nothing is lost, try again"
	case errors.Is(err, ErrOverLimit) && errors.As(err, &limit):
		wait, text = limit.RetryAfter, "the limit of requests to Recall is used up; nothing is lost, try again"
	case errors.As(err, &backoff):
		wait, text = backoff.For, "Zoom issues no token now; a retry is scheduled"
	case errors.As(err, &refused):
		wait, text = max(wait, refused.RetryAfter), "Zoom is not available now; nothing is lost, try again"
	case errors.Is(err, zoom.ErrInvalidClient):
		wait, text = time.Minute, "Zoom refuses the registrar's own client id or secret; the operator has to fix that"
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
