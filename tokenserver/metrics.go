package tokenserver

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// metrics holds the metrics of all protocols; docs/metrics.md explains each. A nil
// pointer, or a nil [protocolMetrics], measures nothing.
//
// Every request pays for them. So the served requests have no counter of their
// own: it is derived from the histogram of their durations when it is collected.
type metrics struct {
	outcomes  *outcomeCounter
	durations *prometheus.HistogramVec
	ttl       prometheus.Histogram
}

// protocolMetrics holds the metrics of one protocol.
type protocolMetrics struct {
	outcomes *prometheus.CounterVec
	served   prometheus.Observer
	refused  prometheus.Observer
}

func newMetrics(registerer prometheus.Registerer, lookup *Lookup) *metrics {
	if registerer == nil {
		return nil
	}
	m := &metrics{
		outcomes: &outcomeCounter{CounterVec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_callbacks_total",
			Help: "Requests for a token, by protocol and outcome.",
		}, []string{"protocol", "outcome"})},
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_callback_duration_seconds",
			Help:                        "Duration of a request for a token, by protocol and whether it was served.",
			Buckets:                     []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"protocol", "served"}),
		ttl: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tokenprovider_served_token_life_seconds",
			Help:    "Remaining lifetime of an access token when it was served. Recall needs 120 s.",
			Buckets: []float64{120, 130, 150, 180, 300, 600, 1200, 1800, 2700, 3600},
		}),
	}
	registerer.MustRegister(m.outcomes, m.durations, m.ttl,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tokenprovider_callbacks_waiting", Help: "Requests that wait for a renewal.",
		}, func() float64 { return float64(len(lookup.waiting)) }))
	return m
}

// of returns the metrics of a protocol, each outcome at 0: increase() needs the
// first sample.
func (m *metrics) of(protocol string) *protocolMetrics {
	if m == nil {
		return nil
	}
	p := &protocolMetrics{
		outcomes: m.outcomes.MustCurryWith(prometheus.Labels{"protocol": protocol}),
		served:   m.durations.WithLabelValues(protocol, "true"),
		refused:  m.durations.WithLabelValues(protocol, "false"),
	}
	for _, outcome := range []Outcome{OutcomeUnknown, OutcomeSignature, OutcomeReauthorize, OutcomeUnavailable, OutcomeOverloaded, OutcomeAbandoned, OutcomeMethod, OutcomePanic} {
		p.outcomes.WithLabelValues(string(outcome))
	}
	if histogram, ok := p.served.(prometheus.Metric); ok {
		m.outcomes.derive(p.outcomes.WithLabelValues(string(OutcomeServed)), histogram)
	}
	return p
}

func (m *metrics) observeTTL(ttl time.Duration) {
	if m != nil {
		m.ttl.Observe(ttl.Seconds())
	}
}

func (p *protocolMetrics) observe(outcome Outcome, began time.Time) {
	switch {
	case p == nil || outcome == OutcomeUncounted:
	case outcome == OutcomeServed:
		p.served.Observe(time.Since(began).Seconds())
	default:
		p.outcomes.WithLabelValues(string(outcome)).Inc()
		p.refused.Observe(time.Since(began).Seconds())
	}
}

// outcomeCounter counts outcomes. It derives the served ones of each protocol
// from the histogram of their durations.
type outcomeCounter struct {
	*prometheus.CounterVec
	mu      sync.Mutex
	derived []derivedCounter
}

type derivedCounter struct {
	counter   prometheus.Counter
	histogram prometheus.Metric
	counted   float64 // samples of histogram that counter has
}

func (c *outcomeCounter) derive(counter prometheus.Counter, histogram prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.derived = append(c.derived, derivedCounter{counter: counter, histogram: histogram})
}

// Collect implements [prometheus.Collector].
func (c *outcomeCounter) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	for i := range c.derived {
		d := &c.derived[i]
		var written dto.Metric
		if err := d.histogram.Write(&written); err == nil {
			samples := float64(written.GetHistogram().GetSampleCount())
			d.counter.Add(samples - d.counted)
			d.counted = samples
		}
	}
	c.mu.Unlock()
	c.CounterVec.Collect(metrics)
}
