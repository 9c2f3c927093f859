package registrar

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

const (
	maxRequest  = 64 << 10 // bytes: the largest holds a refresh token of 8 KiB
	maxResponse = 4 << 20  // bytes: a page of 1,000 users has less than 1 MiB
	maxStreams  = 250      // calls at once on a connection
	callTime    = 30 * time.Second
)

// NewServer returns a gRPC server with the service, health and reflection. Access
// decides who may call the service. The options add the transport credentials.
func NewServer(s *Service, access *Access, options ...grpc.ServerOption) (*grpc.Server, *health.Server, error) {
	validator, err := protovalidate.New()
	if err != nil {
		return nil, nil, fmt.Errorf("compiling the field rules: %w", err)
	}
	g := &guard{s, access, validator}
	server := grpc.NewServer(append(options,
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxResponse),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10*time.Second),
		// Connections have a maximum age, so that clients find new replicas, and
		// certificates are verified again.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: 30 * time.Minute, MaxConnectionAgeGrace: time.Minute,
			Time: time.Minute, Timeout: 20 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(
			g.call,
			recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(s.panicked)),
		),
		grpc.ChainStreamInterceptor(
			g.stream,
			recovery.StreamServerInterceptor(recovery.WithRecoveryHandlerContext(s.panicked)),
		),
	)...)
	registrarv1.RegisterRegistrarServiceServer(server, s)
	healthServer := health.NewServer()
	healthpb.RegisterHealthServer(server, healthServer)
	reflection.Register(server)
	return server, healthServer, nil
}

// guard authorizes each call, validates its request, and returns its error as a
// status.
type guard struct {
	service   *Service
	access    *Access
	validator protovalidate.Validator
}

func (g *guard) call(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if !isRegistrar(info.FullMethod) {
		return handler(ctx, request)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	response, err := func() (any, error) {
		ctx, err := g.admit(ctx, info.FullMethod, request)
		if err != nil {
			return nil, err
		}
		if err := g.validate(request); err != nil {
			return nil, err
		}
		return handler(ctx, request)
	}()
	err = g.service.toStatus(info.FullMethod, err)
	g.service.metrics.observeCall(info.FullMethod, began, err)
	return response, err
}

func (g *guard) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if !isRegistrar(info.FullMethod) {
		return handler(service, stream)
	}
	ended := g.service.metrics.observeStream(info.FullMethod)
	ctx, err := g.admit(stream.Context(), info.FullMethod, nil)
	if err == nil {
		err = handler(service, &guardedStream{stream, ctx, g})
	}
	err = g.service.toStatus(info.FullMethod, err)
	ended(err)
	return err
}

// guardedStream is a stream that validates each request.
type guardedStream struct {
	grpc.ServerStream
	ctx   context.Context //nolint:containedctx // a stream's context is the stream's
	guard *guard
}

func (s *guardedStream) Context() context.Context { return s.ctx }

func (s *guardedStream) RecvMsg(request any) error {
	if err := s.ServerStream.RecvMsg(request); err != nil {
		return err
	}
	return s.guard.validate(request)
}

// isRegistrar reports whether a method is one of the service's. Any client with a
// connection may call the others: health and reflection.
func isRegistrar(method string) bool {
	return strings.HasPrefix(method, "/"+registrarv1.RegistrarService_ServiceDesc.ServiceName+"/")
}

// admit authorizes a call. The returned context has the client's name.
func (g *guard) admit(ctx context.Context, method string, request any) (context.Context, error) {
	name, err := g.access.admit(ctx, path.Base(method))
	ctx = context.WithValue(ctx, clientKey{}, name)
	if errors.Is(err, errForbidden) || errors.Is(err, errNoIdentity) {
		app, user := names(request)
		g.service.audit(ctx, actDenied, app, user, err, noGrant)
		g.service.Log.Warn("call denied", zap.String("method", method), zap.String("client", name), zap.Error(err))
	}
	return ctx, err
}

// panicked turns a panic into a status. The panic's text is neither returned nor
// logged: it may quote a request.
func (s *Service) panicked(_ context.Context, fault any) error {
	s.Log.Error("call panicked; call failed", zap.String("type", fmt.Sprintf("%T", fault)), zap.Stack("stack"))
	return status.Error(codes.Internal, "internal error")
}

// validate checks a request against the field rules of the API.
func (g *guard) validate(request any) error {
	message, ok := request.(proto.Message)
	if !ok {
		return nil
	}
	err := g.validator.Validate(message)
	var invalid *protovalidate.ValidationError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &invalid):
		return status.Error(codes.Internal, "internal error: evaluating a field rule failed")
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
	return withDetails(codes.InvalidArgument, text, badRequest(faults))
}
