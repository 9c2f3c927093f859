package zoom

import (
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/clock"
)

// Metrics is what operators see of calls to Zoom, by all apps; docs/metrics.md
// explains each. Nil measures nothing.
type Metrics struct {
	calls     *prometheus.CounterVec
	durations *prometheus.HistogramVec
	skew      skew
}

// What can come of a call.
const (
	outcomeOK            = "ok"
	outcomeInvalidGrant  = "invalid_grant"
	outcomeInvalidClient = "invalid_client" // the operator has to mend it
	outcomeInvalidToken  = "invalid_token"
	outcomeLimited       = "limited" // 429
	outcomeRefused       = "refused" // any other answer that blames the request
	outcomeFault         = "fault"   // 5xx
	outcomeUnsent        = "unsent"
	outcomeUncertain     = "uncertain"
)

// NewMetrics returns the metrics of calls to Zoom.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_zoom_calls_total", Help: "Calls to Zoom, by app, call and outcome.",
		}, []string{"app", "call", "outcome"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_zoom_call_duration_seconds",
			Help:                        "How long a call to Zoom took, whatever came of it.",
			Buckets:                     []float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"call"}),
		skew: skew{desc: prometheus.NewDesc("tokenprovider_zoom_clock_offset_seconds",
			"By how much Zoom's clock was before this process's, in Zoom's last answer.", nil, nil)},
	}
	registerer.MustRegister(m.calls, m.durations, &m.skew)
	return m
}

// begin tells of an app that nothing has come of its calls yet.
func (m *Metrics) begin(app string) {
	if m == nil {
		return
	}
	for _, call := range []string{"exchange", "refresh"} {
		for _, outcome := range []string{
			outcomeOK, outcomeInvalidGrant, outcomeInvalidClient, outcomeLimited, outcomeRefused, outcomeFault, outcomeUnsent, outcomeUncertain,
		} {
			m.calls.WithLabelValues(app, call, outcome)
		}
	}
}

func (m *Metrics) ended(app, call string, began time.Time, err error) {
	if m == nil {
		return
	}
	m.calls.WithLabelValues(app, call, outcomeOf(err)).Inc()
	m.durations.WithLabelValues(call).Observe(time.Since(began).Seconds())
}

func outcomeOf(err error) string {
	var refused *RefusedError
	switch {
	case err == nil:
		return outcomeOK
	case errors.Is(err, ErrInvalidGrant):
		return outcomeInvalidGrant
	case errors.Is(err, ErrInvalidClient):
		return outcomeInvalidClient
	case errors.Is(err, ErrInvalidToken):
		return outcomeInvalidToken
	case errors.Is(err, ErrUnsent):
		return outcomeUnsent
	case !errors.As(err, &refused):
		return outcomeUncertain
	case refused.Status == http.StatusTooManyRequests:
		return outcomeLimited
	case refused.Status >= http.StatusInternalServerError:
		return outcomeFault
	}
	return outcomeRefused
}

// skew compares the clock of whoever answers with our own.
type skew struct {
	desc   *prometheus.Desc
	offset atomic.Int64 // in ms
	seen   atomic.Int64 // when, in ms since 1970; 0: never
}

// clockAge is how long an answer tells of the other's clock.
const clockAge = 15 * time.Minute

// Describe implements [prometheus.Collector].
func (c *skew) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- c.desc }

// Collect implements [prometheus.Collector].
func (c *skew) Collect(metrics chan<- prometheus.Metric) {
	if time.Since(time.UnixMilli(c.seen.Load())) < clockAge {
		metrics <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(c.offset.Load())/1000)
	}
}

// watched is a transport that looks at the clock in each answer.
type watched struct {
	http.RoundTripper
	metrics *Metrics
}

// RoundTrip implements [http.RoundTripper].
func (w watched) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := w.RoundTripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if theirs, ok := clock.HeaderTime(response.Header); ok {
		now := time.Now()
		w.metrics.skew.offset.Store(theirs.Sub(now).Milliseconds())
		w.metrics.skew.seen.Store(now.UnixMilli())
	}
	return response, nil
}
