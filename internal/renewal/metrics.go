package renewal

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/zoom"
)

// metrics is the metrics of renewals; docs/metrics.md explains each.
type metrics struct {
	outcomes    *prometheus.CounterVec
	duration    prometheus.Histogram
	lateness    prometheus.Histogram
	exposure    prometheus.Histogram
	pauses      *prometheus.CounterVec
	retries     *prometheus.CounterVec
	lost        *prometheus.CounterVec
	failovers   prometheus.Counter
	unjournaled prometheus.Counter
	lostCommits prometheus.Counter
}

// Why a grant is gone.
const (
	refused      = "refused"       // by Zoom: the user has removed the app, or Zoom has ended the grant
	responseLost = "response_lost" // a response from Zoom was lost, and the token before it is spent
)

// Why an app is paused.
const (
	pausedByFaults = "faults"      // consecutive
	pausedByZoom   = "retry_after" // requested by Zoom (Retry-After)
	pausedByClient = "refused"     // Zoom refuses the app's client id or secret
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
		duration: histogram("refresh_duration_seconds", "Duration of successful refreshes at Zoom.",
			prometheus.ExponentialBuckets(0.025, 2, 10)),
		lateness: histogram("refresh_lateness_seconds", "Time from the planned renewal of a grant to its claim.",
			[]float64{0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600}),
		exposure: histogram("response_exposure_seconds", "Time for which a response from Zoom was in memory only. A process killed then loses the grant.",
			prometheus.ExponentialBuckets(0.0000625, 2, 14)),
		pauses:      counters("zoom_pauses_total", "Pauses of a Zoom app, by reason.", "app", "reason"),
		retries:     counters("uncertain_retries_total", "Refreshes with a token that may have been spent, by outcome.", "outcome"),
		lost:        counters("reauthorizations_total", "Grants whose user must authorize again, by reason.", "reason"),
		failovers:   counter("redis_failovers_total", "Restarts and failovers of Redis, after which it may have lost acknowledged writes."),
		unjournaled: counter("unjournaled_responses_total", "Responses from Zoom that could not be journaled."),
		lostCommits: counter("lost_commits_total", "Responses from Zoom that Redis had acknowledged and lost, and that were committed again."),
	}
	for _, outcome := range []grant.Outcome{"renewed", "superseded", "uncommitted", grant.OutcomeUnspent, grant.OutcomeUncertain, grant.OutcomeGone, grant.OutcomeReleased} {
		m.outcomes.WithLabelValues(string(outcome))
	}
	for _, outcome := range []grant.Outcome{"renewed", grant.OutcomeGone, grant.OutcomeUnspent, grant.OutcomeUncertain, grant.OutcomeReleased} {
		m.retries.WithLabelValues(string(outcome))
	}
	for _, reason := range []string{refused, responseLost} {
		m.lost.WithLabelValues(reason)
	}
	registerer.MustRegister(m.outcomes, m.duration, m.lateness, m.exposure, m.pauses, m.retries, m.lost, m.failovers, m.unjournaled, m.lostCommits,
		&gauges{
			renewer:       r,
			paused:        prometheus.NewDesc("tokenprovider_zoom_paused", "1 while a Zoom app is paused: no token of the app is refreshed.", []string{"app"}, nil),
			failoverPause: prometheus.NewDesc("tokenprovider_redis_failover_pause", "1 while renewals are paused after a restart or failover of Redis.", nil, nil),
		})
	return m
}

// gauges collects the present state.
type gauges struct {
	renewer               *Renewer
	paused, failoverPause *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (g *gauges) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- g.paused
	descriptions <- g.failoverPause
}

// Collect implements [prometheus.Collector].
func (g *gauges) Collect(metrics chan<- prometheus.Metric) {
	now := time.Now()
	for app, p := range g.renewer.paces() {
		metrics <- prometheus.MustNewConstMetric(g.paused, prometheus.GaugeValue, oneIf(p.pauseRemaining(now) > 0), app)
	}
	u := &g.renewer.uncommitted
	u.mu.Lock()
	paused := now.Before(u.resumeTime)
	u.mu.Unlock()
	metrics <- prometheus.MustNewConstMetric(g.failoverPause, prometheus.GaugeValue, oneIf(paused))
}

func oneIf(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}

// initApp creates the series of a Zoom app, at 0.
func (m *metrics) initApp(app string) {
	for _, reason := range []string{pausedByFaults, pausedByZoom, pausedByClient} {
		m.pauses.WithLabelValues(app, reason)
	}
}

func (m *metrics) outcome(outcome string) { m.outcomes.WithLabelValues(outcome).Inc() }

// claimed records a claim.
func (m *metrics) claimed(claim grant.Claim) {
	if claim.Overdue >= 0 {
		m.lateness.Observe(claim.Overdue.Seconds())
	}
}

// retried records the outcome of a token that may have been spent.
func (m *metrics) retried(claim grant.Claim, outcome string) {
	if claim.Uncertain {
		m.retries.WithLabelValues(outcome).Inc()
	}
}

// gone records a grant whose loss is in Redis.
func (m *metrics) gone(claim grant.Claim) {
	reason := refused
	if claim.Uncertain {
		reason = responseLost
	}
	m.lost.WithLabelValues(reason).Inc()
}

// paused records a pause after err. retryAfter is 0 if Zoom has requested none.
func (m *metrics) paused(app string, err error, retryAfter time.Duration) {
	reason := pausedByFaults
	switch {
	case errors.Is(err, zoom.ErrInvalidClient):
		reason = pausedByClient
	case retryAfter > 0:
		reason = pausedByZoom
	}
	m.pauses.WithLabelValues(app, reason).Inc()
}
