// Package instrument starts OpenTelemetry, and traces gRPC, HTTP and Redis, if the
// SDK's own variables enable it: OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_ENDPOINT,
// OTEL_TRACES_SAMPLER and the others (opentelemetry.io, environment variable
// specification). It links all exporters, so only programs that export import it.
package instrument

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
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"google.golang.org/grpc"
)

// isEnabled reports whether the environment enables traces.
func isEnabled() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	if exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter != "" {
		return exporter != "none"
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// Start starts tracing for a program, if it is enabled. The returned function sends
// the remaining spans and ends tracing.
func Start(ctx context.Context, program, version string) (stop func(context.Context) error, err error) {
	if !isEnabled() {
		return func(context.Context) error { return nil }, nil
	}
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER: %w", err)
	}
	// The environment's resource attributes override the program's.
	own := resource.NewSchemaless(semconv.ServiceName(program), semconv.ServiceVersion(version))
	environment, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err), exporter.Shutdown(ctx))
	}
	merged, err := resource.Merge(own, environment)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err), exporter.Shutdown(ctx))
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(merged))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	return provider.Shutdown, nil
}

// Client returns a client whose requests to Zoom and Recall each make a span, with
// host and outcome. Paths, headers and bodies are not recorded: paths contain ids.
func Client(client *http.Client) *http.Client {
	if !isEnabled() {
		return client
	}
	traced := *client
	traced.Transport = otelhttp.NewTransport(client.Transport, otelhttp.WithPropagators(noPropagation{}))
	return &traced
}

// noPropagation sends no trace ids to other companies.
type noPropagation struct{}

func (noPropagation) Inject(context.Context, propagation.TextMapCarrier) {}
func (noPropagation) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context {
	return ctx
}
func (noPropagation) Fields() []string { return nil }

// GRPC returns options of a server that make a span of each call, except health
// checks.
func GRPC() []grpc.ServerOption {
	if !isEnabled() {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithFilter(filters.Not(filters.HealthCheck()))))}
}

// Redis makes a span of each command, without its keys and values. The batched
// reads of callbacks make none: each belongs to many traces.
func Redis(client redis.UniversalClient) error {
	if !isEnabled() {
		return nil
	}
	if err := redisotel.InstrumentTracing(client, redisotel.WithDBStatement(false), redisotel.WithCallerEnabled(false), redisotel.WithCommandsFilter(isBatchedRead)); err != nil {
		return fmt.Errorf("tracing Redis: %w", err)
	}
	return nil
}

func isBatchedRead(commands []redis.Cmder) bool {
	return len(commands) > 0 && commands[0].Name() == "hmget"
}
