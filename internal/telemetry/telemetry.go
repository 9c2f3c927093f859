// Package telemetry creates OpenTelemetry spans. They cost nothing unless the
// program has started OpenTelemetry (package instrument).
//
// Spans contain ids and outcomes, as the log does. No attribute contains a callback
// URL, token, code or secret.
package telemetry

import (
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Tracer returns the tracer of all spans of this project.
func Tracer() trace.Tracer { return otel.Tracer("tokenprovider") }

// End ends a span with its outcome. The project's errors contain no secrets.
func End(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
