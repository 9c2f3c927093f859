// Package telemetry starts OpenTelemetry tracing, if the SDK's own variables ask
// for it: OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER
// and the rest (opentelemetry.io, environment variable specification). Otherwise
// there is none, and it costs nothing.
//
// Spans hold ids and outcomes, as the log does. No URL of a callback, token, code
// or secret is an attribute of any.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
)

// Asked reports whether the environment asks for traces.
func Asked(getenv func(string) string) bool {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	if exporter := getenv("OTEL_TRACES_EXPORTER"); exporter != "" {
		return exporter != "none"
	}
	return getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// Start starts tracing for a program, if that is asked for, and returns what ends
// it: it sends what is left.
func Start(ctx context.Context, program, version string) (stop func(context.Context) error, err error) {
	if !Asked(os.Getenv) {
		return func(context.Context) error { return nil }, nil
	}
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER: %w", err)
	}
	// What the environment says of the resource wins.
	own := resource.NewSchemaless(semconv.ServiceName(program), semconv.ServiceVersion(version))
	environment, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err), exporter.Shutdown(ctx))
	}
	all, err := resource.Merge(own, environment)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err), exporter.Shutdown(ctx))
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(all))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	return provider.Shutdown, nil
}

// Tracer makes the spans that are ours.
func Tracer() trace.Tracer { return otel.Tracer("tokenprovider") }

// Transport makes a span of each request to Zoom or Recall, with its host and
// outcome. Their URLs hold ids, and their headers and bodies are not in it.
func Transport(base http.RoundTripper) http.RoundTripper {
	if !Asked(os.Getenv) {
		return base
	}
	return otelhttp.NewTransport(base, otelhttp.WithPropagators(nothing{}))
}

// nothing is sent along: what our traces are called is not Zoom's or Recall's
// business.
type nothing struct{}

func (nothing) Inject(context.Context, propagation.TextMapCarrier) {}
func (nothing) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context {
	return ctx
}
func (nothing) Fields() []string { return nil }

// GRPC makes a span of each call that the server answers, but those that ask for
// its health.
func GRPC() []grpc.ServerOption {
	if !Asked(os.Getenv) {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithFilter(filters.Not(filters.HealthCheck()))))}
}

// Redis makes a span of each command, without its keys and values. The reads of
// callbacks make none: many share one, so it belongs to nobody's trace.
func Redis(client redis.UniversalClient) error {
	if !Asked(os.Getenv) {
		return nil
	}
	if err := redisotel.InstrumentTracing(client, redisotel.WithDBStatement(false), redisotel.WithCallerEnabled(false), redisotel.WithCommandsFilter(shared)); err != nil {
		return fmt.Errorf("tracing Redis: %w", err)
	}
	return nil
}

func shared(commands []redis.Cmder) bool { return len(commands) > 0 && commands[0].Name() == "hmget" }

// End ends a span with its outcome: an error of ours says what was being done, and
// no secret.
func End(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
