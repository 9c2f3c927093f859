package recallvendor

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/recall"
)

// GateMetrics measures waits for Recall's limits; see docs/metrics.md. Nil measures
// nothing.
type GateMetrics struct {
	waits   *prometheus.HistogramVec
	refused *prometheus.CounterVec

	mu     sync.Mutex
	paused map[recall.Kind]time.Time // ends of pauses
}

var pausedDesc = prometheus.NewDesc("tokenprovider_recall_paused",
	"1 while requests to Recall are paused as Recall has requested, by kind of request.", []string{"kind"}, nil)

// NewGateMetrics returns the metrics of gates.
func NewGateMetrics(registerer prometheus.Registerer) *GateMetrics {
	m := &GateMetrics{
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_recall_limit_wait_seconds",
			Help:                        "Time that a request to Recall waited for its turn within Recall's limits.",
			Buckets:                     []float64{0.01, 0.1, 0.5, 1, 2.5, 10, 60, 600},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"work"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_recall_limit_refusals_total",
			Help: "Requests to Recall that were not sent, because the wait for their turn was too long.",
		}, []string{"work"}),
		paused: map[recall.Kind]time.Time{recall.Lists: {}, recall.Other: {}},
	}
	for _, background := range []bool{false, true} {
		m.waits.WithLabelValues(workOf(background))
		m.refused.WithLabelValues(workOf(background))
	}
	registerer.MustRegister(m.waits, m.refused, m)
	return m
}

func workOf(background bool) string {
	if background {
		return "reconciliation"
	}
	return "registration"
}

// Describe implements [prometheus.Collector].
func (m *GateMetrics) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- pausedDesc }

// Collect implements [prometheus.Collector].
func (m *GateMetrics) Collect(metrics chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for kind, until := range m.paused {
		paused := 0.0
		if time.Now().Before(until) {
			paused = 1
		}
		metrics <- prometheus.MustNewConstMetric(pausedDesc, prometheus.GaugeValue, paused, string(kind))
	}
}

// observeEntry measures a request's wait, or counts its refusal.
func (m *GateMetrics) observeEntry(background bool, began time.Time, err error) {
	if m == nil {
		return
	}
	var limit *recall.LimitError
	switch {
	case err == nil:
		m.waits.WithLabelValues(workOf(background)).Observe(time.Since(began).Seconds())
	case errors.As(err, &limit):
		m.refused.WithLabelValues(workOf(background)).Inc()
	}
}

// observePause records a pause of a kind of request.
func (m *GateMetrics) observePause(kind recall.Kind, d time.Duration) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if until := time.Now().Add(d); until.After(m.paused[kind]) {
		m.paused[kind] = until
	}
}
