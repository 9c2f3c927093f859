package zoom

import (
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/clock"
)

// Metrics measures the calls of all apps to Zoom; docs/metrics.md explains each
// metric. A nil *Metrics measures nothing.
type Metrics struct {
	calls     *prometheus.CounterVec
	durations *prometheus.HistogramVec
	clock     clockOffset
}

// The outcomes of a call.
const (
	outcomeOK            = "ok"
	outcomeInvalidGrant  = "invalid_grant"
	outcomeInvalidClient = "invalid_client" // only an operator can fix it
	outcomeInvalidToken  = "invalid_token"
	outcomeLimited       = "limited" // 429
	outcomeRefused       = "refused" // any other 3xx or 4xx
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
			Help:                        "Duration of a call to Zoom, of any outcome.",
			Buckets:                     []float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"call"}),
		clock: clockOffset{desc: prometheus.NewDesc("tokenprovider_zoom_clock_offset_seconds",
			"Zoom's clock minus this process's, in Zoom's last response of the last 15 minutes.", nil, nil)},
	}
	registerer.MustRegister(m.calls, m.durations, &m.clock)
	return m
}

// initApp creates an app's counters at 0, so that increase() sees the first call.
func (m *Metrics) initApp(app string) {
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

// observe records a call that has ended.
func (m *Metrics) observe(app, call string, start time.Time, err error) {
	if m == nil {
		return
	}
	m.calls.WithLabelValues(app, call, outcomeOf(err)).Inc()
	m.durations.WithLabelValues(call).Observe(time.Since(start).Seconds())
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

// clockOffset exports how far Zoom's clock is ahead of this process's.
type clockOffset struct {
	desc       *prometheus.Desc
	offset     atomic.Int64 // in ms
	measuredAt atomic.Int64 // this process's clock, in ms since 1970; 0: never
}

// maxClockAge is the age from which a measurement is no longer exported.
const maxClockAge = 15 * time.Minute

// Describe implements [prometheus.Collector].
func (c *clockOffset) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- c.desc }

// Collect implements [prometheus.Collector].
func (c *clockOffset) Collect(metrics chan<- prometheus.Metric) {
	if time.Since(time.UnixMilli(c.measuredAt.Load())) < maxClockAge {
		metrics <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(c.offset.Load())/1000)
	}
}

// clockTransport measures the clock offset with the Date of each response.
type clockTransport struct {
	http.RoundTripper
	metrics *Metrics
}

// RoundTrip implements [http.RoundTripper].
func (t clockTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.RoundTripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if zoomTime, ok := clock.HeaderTime(response.Header); ok {
		now := time.Now()
		t.metrics.clock.offset.Store(zoomTime.Sub(now).Milliseconds())
		t.metrics.clock.measuredAt.Store(now.UnixMilli())
	}
	return response, nil
}
