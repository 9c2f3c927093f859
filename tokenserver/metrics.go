package tokenserver

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what operators see of callbacks.
type metrics struct {
	outcomes  *prometheus.CounterVec
	durations *prometheus.HistogramVec

	// Of the outcome that matters, found once.
	servedCount prometheus.Counter
	servedTime  prometheus.Observer
	left        prometheus.Histogram
}

func newMetrics(registerer prometheus.Registerer) metrics {
	m := metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_callbacks_total",
			Help: "Callbacks answered, by outcome.",
		}, []string{"outcome"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tokenprovider_callback_duration_seconds",
			Help:    "How long a callback took, by whether it was served.",
			Buckets: []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		}, []string{"served"}),
		left: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tokenprovider_served_token_life_seconds",
			Help:    "How long a token was good yet when it was served. Recall needs 120.",
			Buckets: []float64{120, 130, 150, 180, 300, 600, 1200, 1800, 2700, 3600},
		}),
	}
	registerer.MustRegister(m.outcomes, m.durations, m.left)
	m.servedCount = m.outcomes.WithLabelValues("served")
	m.servedTime = m.durations.WithLabelValues("true")
	return m
}

func (m *metrics) served(expires, began time.Time) {
	m.servedCount.Inc()
	m.servedTime.Observe(time.Since(began).Seconds())
	m.left.Observe(expires.Sub(began).Seconds())
}

func (m *metrics) refused(outcome string, began time.Time) {
	m.outcomes.WithLabelValues(outcome).Inc()
	m.durations.WithLabelValues("false").Observe(time.Since(began).Seconds())
}
