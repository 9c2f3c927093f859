package registrar

import (
	"context"
	"errors"
	"path"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/zoom"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// metrics are the registrar's metrics; see docs/metrics.md.
type metrics struct {
	calls         *prometheus.CounterVec
	durations     *prometheus.HistogramVec
	watchers      prometheus.Gauge
	registrations *prometheus.CounterVec
	active        prometheus.Histogram
	postponed     *prometheus.CounterVec
	passes        *prometheus.CounterVec
	findings      *prometheus.CounterVec

	mu     sync.Mutex
	latest progress // of the last reconciliation that ended, on any replica
}

// Outcomes of a turn of a reconciliation.
const (
	passDone    = "done"
	passStopped = "stopped" // too many discrepancies
	passFailed  = "failed"  // another turn continues it
)

var (
	reconciledDesc = prometheus.NewDesc("tokenprovider_reconciliation_last_success_timestamp_seconds",
		"Time at which the last complete reconciliation with Recall ended.", nil, nil)
	stoppedDesc = prometheus.NewDesc("tokenprovider_reconciliation_stopped",
		"1 if the last reconciliation with Recall stopped, because there were too many discrepancies.", nil, nil)
)

func newMetrics(registerer prometheus.Registerer) *metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tokenprovider_" + name, Help: help}, labels)
	}
	m := &metrics{
		calls: counters("grpc_calls_total", "Calls of the RegistrarService, by method and status code.", "method", "code"),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_grpc_call_duration_seconds",
			Help:                        "Duration of calls of the RegistrarService, except WatchUsers.",
			Buckets:                     []float64{0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"method"}),
		watchers:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "tokenprovider_watchers", Help: "Open calls of WatchUsers."}),
		registrations: counters("registrations_total", "New users, by their state when RegisterUser returned.", "state"),
		active: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:                        "tokenprovider_registration_duration_seconds",
			Help:                        "Time from a new user's consent until Recall had the user's credential.",
			Buckets:                     []float64{0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600},
			NativeHistogramBucketFactor: 1.1,
		}),
		postponed: counters("registrations_postponed_total", "Failed steps of registrations and removals that are retried later, by cause.", "cause"),
		passes:    counters("reconciliations_total", "Reconciliations with Recall, by outcome.", "outcome"),
		findings:  counters("reconciliation_findings_total", "Discrepancies that reconciliations with Recall have found, by kind.", "kind"),
	}
	for _, method := range registrarv1.RegistrarService_ServiceDesc.Methods {
		m.calls.WithLabelValues(method.MethodName, codes.OK.String())
		m.durations.WithLabelValues(method.MethodName)
	}
	for _, state := range []grant.State{grant.StateActive, grant.StatePending} {
		m.registrations.WithLabelValues(string(state))
	}
	for _, cause := range []string{causeLimit, causeKey, causeRecall, causeTaken, causeZoom, causeOther} {
		m.postponed.WithLabelValues(cause)
	}
	for _, outcome := range []string{passDone, passStopped, passFailed} {
		m.passes.WithLabelValues(outcome)
	}
	for _, kind := range []FindingKind{FindingMissing, FindingOrphan, FindingOldBase, FindingStaleSecret, FindingUnhealthy, FindingHealthy} {
		m.findings.WithLabelValues(string(kind))
	}
	if registerer != nil {
		registerer.MustRegister(m.calls, m.durations, m.watchers, m.registrations, m.active, m.postponed, m.passes, m.findings, m)
	}
	return m
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- reconciledDesc
	descriptions <- stoppedDesc
}

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(metrics chan<- prometheus.Metric) {
	m.mu.Lock()
	latest := m.latest
	m.mu.Unlock()
	stopped := 0.0
	switch {
	case latest.Stopped:
		stopped = 1
	case !latest.Ended.IsZero():
		metrics <- prometheus.MustNewConstMetric(reconciledDesc, prometheus.GaugeValue, float64(latest.Ended.Unix()))
	}
	metrics <- prometheus.MustNewConstMetric(stoppedDesc, prometheus.GaugeValue, stopped)
}

// observeCall counts and times a call that has ended.
func (m *metrics) observeCall(method string, began time.Time, err error) {
	name := path.Base(method)
	m.calls.WithLabelValues(name, status.Code(err).String()).Inc()
	m.durations.WithLabelValues(name).Observe(time.Since(began).Seconds())
}

// observeStream counts an open stream until ended is called.
func (m *metrics) observeStream(method string) (ended func(error)) {
	m.watchers.Inc()
	return func(err error) {
		m.watchers.Dec()
		m.calls.WithLabelValues(path.Base(method), status.Code(err).String()).Inc()
	}
}

// observeLinked counts a user who was pending and now has a credential.
func (m *metrics) observeLinked(before, after grant.Grant) {
	if before.State != grant.StatePending || after.Credential == "" {
		return
	}
	if before.Attempts == 0 {
		m.registrations.WithLabelValues(string(grant.StateActive)).Inc()
	}
	m.active.Observe(after.Updated.Sub(after.Consented).Seconds()) // both by Redis's clock
}

// observePending counts a new user who stays pending.
func (m *metrics) observePending(g grant.Grant) {
	if g.State == grant.StatePending && g.Attempts == 0 {
		m.registrations.WithLabelValues(string(grant.StatePending)).Inc()
	}
}

// Causes of a postponed step.
const (
	causeLimit  = "limit"  // of requests to Recall
	causeKey    = "key"    // Recall refuses the API key
	causeRecall = "recall" // Recall fails or does not respond
	causeTaken  = "taken"  // the Zoom user has a credential that is not ours
	causeZoom   = "zoom"
	causeOther  = "other"
)

// observePostponed counts a postponed step.
func (m *metrics) observePostponed(cause error) {
	var taken *takenError
	var refusedByZoom *zoom.RefusedError
	label := causeOther
	switch {
	case errors.Is(cause, ErrOverLimit):
		label = causeLimit
	case errors.Is(cause, ErrVendorKey):
		label = causeKey
	case errors.Is(cause, ErrRejected), errors.Is(cause, ErrNotServed), errors.Is(cause, ErrUncertain):
		label = causeRecall
	case errors.As(cause, &taken):
		label = causeTaken
	case errors.As(cause, &refusedByZoom), errors.Is(cause, zoom.ErrUnsent), errors.Is(cause, zoom.ErrUncertain),
		errors.Is(cause, zoom.ErrInvalidToken), errors.Is(cause, zoom.ErrInvalidClient), errors.Is(cause, zoom.ErrInvalidGrant):
		label = causeZoom
	}
	m.postponed.WithLabelValues(label).Inc()
}

// setLatest exports the last reconciliation, if it has ended.
func (m *metrics) setLatest(p progress) {
	if p.Ended.IsZero() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latest = p
}

// observeTurn counts a turn of a reconciliation.
func (m *metrics) observeTurn(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil: // the process is stopping
	case err == nil:
		m.passes.WithLabelValues(passDone).Inc()
	case errors.Is(err, ErrTooMany):
		m.passes.WithLabelValues(passStopped).Inc()
	default:
		m.passes.WithLabelValues(passFailed).Inc()
	}
}
