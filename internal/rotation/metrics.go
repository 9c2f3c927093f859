package rotation

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what operators see of renewals.
type metrics struct {
	outcomes    *prometheus.CounterVec
	duration    prometheus.Histogram
	exposure    prometheus.Histogram
	pauses      prometheus.Counter
	breaks      prometheus.Counter
	unjournaled prometheus.Counter
	lost        prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "tokenprovider_" + name, Help: help})
	}
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_refreshes_total",
			Help: "Refreshes of access tokens at Zoom, by outcome.",
		}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tokenprovider_refresh_duration_seconds",
			Help:    "How long Zoom took to answer a refresh that succeeded.",
			Buckets: prometheus.ExponentialBuckets(0.025, 2, 10),
		}),
		exposure: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tokenprovider_answer_exposure_seconds",
			Help:    "How long an answer of Zoom's was in memory alone: a process killed then loses the grant.",
			Buckets: prometheus.ExponentialBuckets(0.0000625, 2, 14),
		}),
		pauses:      counter("zoom_pauses_total", "Pauses of a Zoom app after faults of Zoom's or of the app's settings."),
		breaks:      counter("redis_breaks_total", "Times that Redis may have forgotten what it had acknowledged: restarts and take-overs."),
		unjournaled: counter("unjournaled_answers_total", "Answers of Zoom's that the journal could not keep."),
		lost:        counter("lost_answers_total", "Grants lost because an answer of Zoom's was: the user must authorize again."),
	}
	registerer.MustRegister(m.outcomes, m.duration, m.exposure, m.pauses, m.breaks, m.unjournaled, m.lost)
	return m
}

func (m *metrics) outcome(outcome string) { m.outcomes.WithLabelValues(outcome).Inc() }
