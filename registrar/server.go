package registrar

import (
	"context"
	"errors"
	"fmt"

	"buf.build/go/protovalidate"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// maxMessage bounds a request: the largest holds a refresh token of 8 KiB.
const maxMessage = 64 << 10

// NewServer returns a gRPC server that offers the service, health and
// reflection. The options add what is the caller's: credentials above all.
func NewServer(s *Service, options ...grpc.ServerOption) (*grpc.Server, *health.Server, error) {
	validator, err := protovalidate.New()
	if err != nil {
		return nil, nil, fmt.Errorf("compiling the field rules: %w", err)
	}
	server := grpc.NewServer(append(options,
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(
			s.statuses,
			recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(s.panicked)),
			validate(validator),
		),
		grpc.ChainStreamInterceptor(recovery.StreamServerInterceptor(recovery.WithRecoveryHandlerContext(s.panicked))),
	)...)
	registrarv1.RegisterRegistrarServiceServer(server, s)
	healthServer := health.NewServer()
	healthpb.RegisterHealthServer(server, healthServer)
	reflection.Register(server)
	return server, healthServer, nil
}

// statuses turns what a method returns into a status.
func (s *Service) statuses(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	response, err := handler(ctx, request)
	return response, s.toStatus(info.FullMethod, err)
}

// panicked keeps a fault of ours from ending the process, and its words, which
// may quote a request, from the caller and the log.
func (s *Service) panicked(_ context.Context, fault any) error {
	s.Log.Error("a call panicked", zap.String("type", fmt.Sprintf("%T", fault)), zap.Stack("stack"))
	return status.Error(codes.Internal, "internal error")
}

// validate checks requests against the field rules of the API.
func validate(validator protovalidate.Validator) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		message, ok := request.(proto.Message)
		if !ok {
			return handler(ctx, request)
		}
		err := validator.Validate(message)
		var invalid *protovalidate.ValidationError
		switch {
		case err == nil:
			return handler(ctx, request)
		case !errors.As(err, &invalid):
			return nil, status.Error(codes.Internal, "internal error: a field rule is wrong")
		}
		faults := make(map[string]string, len(invalid.Violations))
		text := "bad request"
		for i, violation := range invalid.Violations {
			field := protovalidate.FieldPathString(violation.Proto.GetField())
			faults[field] = violation.Proto.GetMessage()
			if i == 0 {
				text = field + ": " + violation.Proto.GetMessage()
			}
		}
		return nil, withDetails(codes.InvalidArgument, text, badRequest(faults))
	}
}
