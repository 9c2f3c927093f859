package renewal

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/zoom"
)

// metrics is what operators see of renewals; docs/metrics.md explains each.
type metrics struct {
	outcomes    *prometheus.CounterVec
	duration    prometheus.Histogram
	lateness    prometheus.Histogram
	exposure    prometheus.Histogram
	pauses      *prometheus.CounterVec
	retries     *prometheus.CounterVec
	lost        *prometheus.CounterVec
	breaks      prometheus.Counter
	unjournaled prometheus.Counter
	forgotten   prometheus.Counter
}

// Why a grant is gone.
const (
	refused    = "refused"     // by Zoom: the user has removed the app, or Zoom has ended the grant
	answerLost = "answer_lost" // an answer of Zoom's did not reach us, and the token before it is spent
)

// Why an app is paused.
const (
	pausedByFaults = "faults"  // several in a row
	pausedByZoom   = "asked"   // Zoom has asked for it: Retry-After
	pausedByClient = "refused" // Zoom refuses the app's client id or secret
)

func newMetrics(registerer prometheus.Registerer, r *Renewer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "tokenprovider_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tokenprovider_" + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tokenprovider_" + name, Help: help, Buckets: buckets, NativeHistogramBucketFactor: 1.1,
		})
	}
	m := &metrics{
		outcomes: counters("refreshes_total", "Refreshes of access tokens at Zoom, by outcome.", "outcome"),
		duration: histogram("refresh_duration_seconds", "How long Zoom took to answer a refresh that succeeded.",
			prometheus.ExponentialBuckets(0.025, 2, 10)),
		lateness: histogram("refresh_lateness_seconds", "How long after its plan a grant was claimed to be renewed.",
			[]float64{0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600}),
		exposure: histogram("answer_exposure_seconds", "How long an answer of Zoom's was in memory alone: a process killed then loses the grant.",
			prometheus.ExponentialBuckets(0.0000625, 2, 14)),
		pauses:      counters("zoom_pauses_total", "Pauses of a Zoom app, by why.", "app", "reason"),
		retries:     counters("uncertain_retries_total", "Refresh tokens presented that may have been spent, by outcome.", "outcome"),
		lost:        counters("reauthorizations_total", "Grants that are gone, so that the user must authorize again, by why.", "reason"),
		breaks:      counter("redis_breaks_total", "Times that Redis may have forgotten what it had acknowledged: restarts and take-overs."),
		unjournaled: counter("unjournaled_answers_total", "Answers of Zoom's that the journal could not keep."),
		forgotten:   counter("lost_commits_total", "Answers of Zoom's that Redis had acknowledged and forgotten, and that were committed again."),
	}
	for _, outcome := range []grant.Outcome{"renewed", "superseded", "uncommitted", grant.Unspent, grant.Uncertain, grant.Gone, grant.Released} {
		m.outcomes.WithLabelValues(string(outcome))
	}
	for _, outcome := range []grant.Outcome{"renewed", grant.Gone, grant.Unspent, grant.Uncertain, grant.Released} {
		m.retries.WithLabelValues(string(outcome))
	}
	for _, reason := range []string{refused, answerLost} {
		m.lost.WithLabelValues(reason)
	}
	registerer.MustRegister(m.outcomes, m.duration, m.lateness, m.exposure, m.pauses, m.retries, m.lost, m.breaks, m.unjournaled, m.forgotten,
		&gauges{
			rotator: r,
			paused:  prometheus.NewDesc("tokenprovider_zoom_paused", "1 while no token of a Zoom app is refreshed, because Zoom fails, refuses or has asked for it.", []string{"app"}, nil),
			holding: prometheus.NewDesc("tokenprovider_redis_holding", "1 while no token is spent, because Redis may have forgotten which ones are.", nil, nil),
		})
	return m
}

// gauges tells how things are when it is asked.
type gauges struct {
	rotator         *Renewer
	paused, holding *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (g *gauges) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- g.paused
	descriptions <- g.holding
}

// Collect implements [prometheus.Collector].
func (g *gauges) Collect(metrics chan<- prometheus.Metric) {
	now := time.Now()
	for app, p := range g.rotator.paces() {
		metrics <- prometheus.MustNewConstMetric(g.paused, prometheus.GaugeValue, oneIf(p.paused(now) > 0), app)
	}
	s := &g.rotator.safety
	s.mu.Lock()
	holding := now.Before(s.resume)
	s.mu.Unlock()
	metrics <- prometheus.MustNewConstMetric(g.holding, prometheus.GaugeValue, oneIf(holding))
}

func oneIf(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}

// begin tells of a Zoom app that nothing has happened to it yet.
func (m *metrics) begin(app string) {
	for _, reason := range []string{pausedByFaults, pausedByZoom, pausedByClient} {
		m.pauses.WithLabelValues(app, reason)
	}
}

func (m *metrics) outcome(outcome string) { m.outcomes.WithLabelValues(outcome).Inc() }

// begun tells of a claim.
func (m *metrics) begun(claim grant.Claim) {
	if claim.Overdue >= 0 {
		m.lateness.Observe(claim.Overdue.Seconds())
	}
}

// retried tells what came of a token that may have been spent.
func (m *metrics) retried(claim grant.Claim, outcome string) {
	if claim.Uncertain {
		m.retries.WithLabelValues(outcome).Inc()
	}
}

// gone tells of a grant that is gone, once it is recorded.
func (m *metrics) gone(claim grant.Claim) {
	reason := refused
	if claim.Uncertain {
		reason = answerLost
	}
	m.lost.WithLabelValues(reason).Inc()
}

// paused tells of a pause after err, for which Zoom has asked or not.
func (m *metrics) paused(app string, err error, asked time.Duration) {
	reason := pausedByFaults
	switch {
	case errors.Is(err, zoom.ErrInvalidClient):
		reason = pausedByClient
	case asked > 0:
		reason = pausedByZoom
	}
	m.pauses.WithLabelValues(app, reason).Inc()
}
