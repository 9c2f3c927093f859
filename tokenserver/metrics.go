package tokenserver

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// metrics is what operators see of callbacks; docs/metrics.md explains each. Nil
// measures nothing.
//
// Every callback pays for it, so what can be told from something else is told when
// it is asked for: the served ones are counted by the histogram of their time.
type metrics struct {
	outcomes *tally
	refusals prometheus.Observer
	serving  prometheus.Histogram
	left     prometheus.Histogram
}

// outcomes of a callback, but for "served".
var outcomes = []string{"unknown", "signature", "reauthorize", "unavailable", "crowded", "abandoned", "method", "panic"}

func newMetrics(registerer prometheus.Registerer, waiting func() float64) *metrics {
	if registerer == nil {
		return nil
	}
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:                        "tokenprovider_callback_duration_seconds",
		Help:                        "How long a callback took, by whether it was served.",
		Buckets:                     []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		NativeHistogramBucketFactor: 1.1,
	}, []string{"served"})
	m := &metrics{
		outcomes: &tally{CounterVec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_callbacks_total",
			Help: "Callbacks answered, by outcome.",
		}, []string{"outcome"})},
		left: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tokenprovider_served_token_life_seconds",
			Help:    "How long a token was good yet when it was served. Recall needs 120.",
			Buckets: []float64{120, 130, 150, 180, 300, 600, 1200, 1800, 2700, 3600},
		}),
		refusals: durations.WithLabelValues("false"),
	}
	m.serving, _ = durations.WithLabelValues("true").(prometheus.Histogram) // it is one, as the metric that it is
	m.outcomes.served, m.outcomes.times = m.outcomes.WithLabelValues("served"), m.serving
	for _, outcome := range outcomes {
		m.outcomes.WithLabelValues(outcome)
	}
	registerer.MustRegister(m.outcomes, durations, m.left,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tokenprovider_callbacks_waiting", Help: "Callbacks that wait for a renewal now.",
		}, waiting))
	return m
}

// tally counts outcomes. The served ones are as many as there are times of them.
type tally struct {
	*prometheus.CounterVec
	times prometheus.Metric

	mu     sync.Mutex
	served prometheus.Counter
	told   float64
}

// Collect implements [prometheus.Collector].
func (t *tally) Collect(metrics chan<- prometheus.Metric) {
	var written dto.Metric
	t.mu.Lock()
	if err := t.times.Write(&written); err == nil {
		now := float64(written.GetHistogram().GetSampleCount())
		t.served.Add(now - t.told)
		t.told = now
	}
	t.mu.Unlock()
	t.CounterVec.Collect(metrics)
}

func (m *metrics) served(expires, began time.Time) {
	if m == nil {
		return
	}
	m.serving.Observe(time.Since(began).Seconds())
	m.left.Observe(expires.Sub(began).Seconds())
}

func (m *metrics) refused(outcome string, began time.Time) {
	if m == nil {
		return
	}
	m.outcomes.WithLabelValues(outcome).Inc()
	m.refusals.Observe(time.Since(began).Seconds())
}

// newEventsCounter returns the counter of what Zoom's webhook was asked.
func newEventsCounter(registerer prometheus.Registerer) *prometheus.CounterVec {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenprovider_zoom_events_total",
		Help: "Requests to Zoom's webhook, by kind of event and outcome.",
	}, []string{"event", "outcome"})
	for _, outcome := range []string{"done", "ignored", "refused", "failed"} {
		events.WithLabelValues("app_deauthorized", outcome)
	}
	registerer.MustRegister(events)
	return events
}
