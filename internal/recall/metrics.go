package recall

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts and times requests to Recall; see docs/metrics.md. Nil measures
// nothing.
type Metrics struct {
	calls     *prometheus.CounterVec
	durations *prometheus.HistogramVec
}

// Outcomes of a request.
const (
	outcomeOK           = "ok"
	outcomeNotFound     = "not_found"
	outcomeUnauthorized = "unauthorized" // the operator has to fix the API key
	outcomeConflict     = "conflict"
	outcomeLimited      = "limited" // 429
	outcomeRefused      = "refused" // any other response that rejects the request
	outcomeFault        = "fault"   // 5xx
	outcomeUncertain    = "uncertain"
)

// NewMetrics returns the metrics of requests to Recall.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_recall_calls_total", Help: "Requests to Recall, by call and outcome.",
		}, []string{"call", "outcome"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_recall_call_duration_seconds",
			Help:                        "Duration of requests to Recall, successful or not.",
			Buckets:                     []float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"call"}),
	}
	for _, call := range []string{"create", "list", "get", "delete"} {
		for _, outcome := range []string{outcomeOK, outcomeUnauthorized, outcomeLimited, outcomeFault, outcomeUncertain} {
			m.calls.WithLabelValues(call, outcome)
		}
	}
	registerer.MustRegister(m.calls, m.durations)
	return m
}

func (m *Metrics) observe(call string, began time.Time, err error) {
	if m == nil {
		return
	}
	m.calls.WithLabelValues(call, outcomeOf(err)).Inc()
	m.durations.WithLabelValues(call).Observe(time.Since(began).Seconds())
}

// callOf returns the name of a call for metrics.
func (c *Client) callOf(kind Kind, method, path string) string {
	switch {
	case method == http.MethodPost:
		return "create"
	case method == http.MethodDelete:
		return "delete"
	case kind == Lists:
		return "list"
	case strings.HasPrefix(path, c.logs.Path):
		return "logs"
	}
	return "get"
}

func outcomeOf(err error) string {
	var conflict *ConflictError
	var refused *RefusedError
	switch {
	case err == nil:
		return outcomeOK
	case errors.Is(err, ErrNotFound):
		return outcomeNotFound
	case errors.Is(err, ErrUnauthorized):
		return outcomeUnauthorized
	case errors.As(err, &conflict):
		return outcomeConflict
	case !errors.As(err, &refused):
		return outcomeUncertain
	case refused.Status == http.StatusTooManyRequests:
		return outcomeLimited
	case refused.Status >= http.StatusInternalServerError:
		return outcomeFault
	}
	return outcomeRefused
}
