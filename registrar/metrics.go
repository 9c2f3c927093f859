package registrar

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"path"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/reload"
	"tokenprovider/internal/zoom"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// metrics is what operators see of the registrar; docs/metrics.md explains each.
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
	latest progress // of the last reconciliation that has ended, as far as is known here
}

// How a reconciliation ends.
const (
	passDone    = "done"
	passStopped = "stopped" // too much was amiss
	passFailed  = "failed"  // another turn goes on with it
)

var (
	reconciledTold = prometheus.NewDesc("tokenprovider_reconciliation_last_success_timestamp_seconds",
		"When a comparison with all that Recall has was last brought to its end.", nil, nil)
	stoppedTold = prometheus.NewDesc("tokenprovider_reconciliation_stopped",
		"1 if the last comparison with Recall has stopped, because too much was amiss.", nil, nil)
)

func newMetrics(registerer prometheus.Registerer) *metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tokenprovider_" + name, Help: help}, labels)
	}
	m := &metrics{
		calls: counters("grpc_calls_total", "Calls of the RegistrarService, by method and status code.", "method", "code"),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_grpc_call_duration_seconds",
			Help:                        "How long a call of the RegistrarService took, but for WatchUsers.",
			Buckets:                     []float64{0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"method"}),
		watchers:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "tokenprovider_watchers", Help: "Calls of WatchUsers that are open."}),
		registrations: counters("registrations_total", "Users that are new, by whether they were active at once or are pending at first.", "state"),
		active: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:                        "tokenprovider_registration_duration_seconds",
			Help:                        "How long it took from a new user's consent until Recall had the user's credential.",
			Buckets:                     []float64{0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600},
			NativeHistogramBucketFactor: 1.1,
		}),
		postponed: counters("registrations_postponed_total", "Steps of registrations and removals that failed and are tried again later, by cause.", "cause"),
		passes:    counters("reconciliations_total", "Comparisons with all that Recall has, by how they ended.", "outcome"),
		findings:  counters("reconciliation_findings_total", "What comparisons with Recall have found, by kind.", "kind"),
	}
	for _, method := range registrarv1.RegistrarService_ServiceDesc.Methods {
		m.calls.WithLabelValues(method.MethodName, codes.OK.String())
		m.durations.WithLabelValues(method.MethodName)
	}
	for _, state := range []grant.State{grant.Active, grant.Pending} {
		m.registrations.WithLabelValues(string(state))
	}
	for _, cause := range []string{causeLimit, causeKey, causeRecall, causeTaken, causeZoom, causeOther} {
		m.postponed.WithLabelValues(cause)
	}
	for _, outcome := range []string{passDone, passStopped, passFailed} {
		m.passes.WithLabelValues(outcome)
	}
	for _, kind := range []FindingKind{Missing, Orphan, OldBase, StaleSecret, Unhealthy, Healthy} {
		m.findings.WithLabelValues(string(kind))
	}
	if registerer != nil {
		registerer.MustRegister(m.calls, m.durations, m.watchers, m.registrations, m.active, m.postponed, m.passes, m.findings, m)
	}
	return m
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- reconciledTold
	descriptions <- stoppedTold
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
		metrics <- prometheus.MustNewConstMetric(reconciledTold, prometheus.GaugeValue, float64(latest.Ended.Unix()))
	}
	metrics <- prometheus.MustNewConstMetric(stoppedTold, prometheus.GaugeValue, stopped)
}

// called tells of a call that has ended.
func (m *metrics) called(method string, began time.Time, err error) {
	name := path.Base(method)
	m.calls.WithLabelValues(name, status.Code(err).String()).Inc()
	m.durations.WithLabelValues(name).Observe(time.Since(began).Seconds())
}

// watched tells of a stream from its begin to its end.
func (m *metrics) watched(method string) (ended func(error)) {
	m.watchers.Inc()
	return func(err error) {
		m.watchers.Dec()
		m.calls.WithLabelValues(path.Base(method), status.Code(err).String()).Inc()
	}
}

// linked tells of a user who was pending before, and has a credential after.
func (m *metrics) linked(before, after grant.Grant) {
	if before.State != grant.Pending || after.Credential == "" {
		return
	}
	if before.Attempts == 0 {
		m.registrations.WithLabelValues(string(grant.Active)).Inc()
	}
	m.active.Observe(after.Updated.Sub(after.Consented).Seconds()) // both by Redis's clock
}

// waits tells of a user who goes on being pending, the first time.
func (m *metrics) waits(g grant.Grant) {
	if g.State == grant.Pending && g.Attempts == 0 {
		m.registrations.WithLabelValues(string(grant.Pending)).Inc()
	}
}

// Why a step of a registration or a removal is tried again later.
const (
	causeLimit  = "limit"  // of requests to Recall
	causeKey    = "key"    // Recall refuses the API key
	causeRecall = "recall" // it fails, or does not answer
	causeTaken  = "taken"  // the Zoom user has a credential that is not ours
	causeZoom   = "zoom"
	causeOther  = "other"
)

// put tells that a step was put back.
func (m *metrics) put(cause error) {
	var limit *recall.LimitError
	var refused *recall.RefusedError
	var taken *takenError
	var refusedByZoom *zoom.RefusedError
	label := causeOther
	switch {
	case errors.As(cause, &limit):
		label = causeLimit
	case errors.Is(cause, recall.ErrUnauthorized):
		label = causeKey
	case errors.As(cause, &refused), errors.Is(cause, recall.ErrUncertain):
		label = causeRecall
	case errors.As(cause, &taken):
		label = causeTaken
	case errors.As(cause, &refusedByZoom), errors.Is(cause, zoom.ErrUnsent), errors.Is(cause, zoom.ErrUncertain),
		errors.Is(cause, zoom.ErrInvalidToken), errors.Is(cause, zoom.ErrInvalidClient), errors.Is(cause, zoom.ErrInvalidGrant):
		label = causeZoom
	}
	m.postponed.WithLabelValues(label).Inc()
}

// reconciled takes over how the last reconciliation has ended, here or elsewhere.
func (m *metrics) reconciled(p progress) {
	if p.Ended.IsZero() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latest = p
}

// passed tells how a turn of a reconciliation has ended here.
func (m *metrics) passed(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil: // told to stop
	case err == nil:
		m.passes.WithLabelValues(passDone).Inc()
	case errors.Is(err, ErrTooMany):
		m.passes.WithLabelValues(passStopped).Inc()
	default:
		m.passes.WithLabelValues(passFailed).Inc()
	}
}

// GateMetrics is what operators see of Recall's limits. Nil measures nothing.
type GateMetrics struct {
	waits   *prometheus.HistogramVec
	refused *prometheus.CounterVec

	mu    sync.Mutex
	rests map[recall.Kind]time.Time // until when Recall wants to be left alone
}

var restingTold = prometheus.NewDesc("tokenprovider_recall_paused",
	"1 while Recall is left alone because it has asked for it, by kind of request.", []string{"kind"}, nil)

// NewGateMetrics returns the metrics of gates.
func NewGateMetrics(registerer prometheus.Registerer) *GateMetrics {
	m := &GateMetrics{
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_recall_limit_wait_seconds",
			Help:                        "How long a request to Recall waited for its turn within Recall's limits.",
			Buckets:                     []float64{0.01, 0.1, 0.5, 1, 2.5, 10, 60, 600},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"work"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_recall_limit_refusals_total",
			Help: "Requests to Recall that were not sent, because their turn was too far off.",
		}, []string{"work"}),
		rests: map[recall.Kind]time.Time{recall.Lists: {}, recall.Other: {}},
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
func (m *GateMetrics) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- restingTold }

// Collect implements [prometheus.Collector].
func (m *GateMetrics) Collect(metrics chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for kind, until := range m.rests {
		resting := 0.0
		if time.Now().Before(until) {
			resting = 1
		}
		metrics <- prometheus.MustNewConstMetric(restingTold, prometheus.GaugeValue, resting, string(kind))
	}
}

// entered tells of a request that has had its turn, or was not let in.
func (m *GateMetrics) entered(background bool, began time.Time, err error) {
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

// rest tells for how long Recall is left alone.
func (m *GateMetrics) rest(kind recall.Kind, d time.Duration) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if until := time.Now().Add(d); until.After(m.rests[kind]) {
		m.rests[kind] = until
	}
}

var expiryTold = prometheus.NewDesc("tokenprovider_certificate_expiry_timestamp_seconds",
	"When a certificate of the gRPC server ends: its own, or the longest-lived of its clients' authorities.", []string{"certificate"}, nil)

// certificateMetrics tells when certificates end, as they are now.
type certificateMetrics struct {
	*reload.Value[*Certificates]
}

// MeasureCertificates tells when the server's certificates end; nil has none.
func MeasureCertificates(certificates *reload.Value[*Certificates], registerer prometheus.Registerer) {
	if certificates != nil {
		registerer.MustRegister(certificateMetrics{certificates})
	}
}

// Describe implements [prometheus.Collector].
func (certificateMetrics) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- expiryTold }

// Collect implements [prometheus.Collector].
func (m certificateMetrics) Collect(metrics chan<- prometheus.Metric) {
	now := m.Get()
	tell := func(certificate string, ends time.Time) {
		metrics <- prometheus.MustNewConstMetric(expiryTold, prometheus.GaugeValue, float64(ends.Unix()), certificate)
	}
	tell("server", now.own.Leaf.NotAfter)
	tell("client_ca", now.clientsEnd)
}

// lastEnd is when the last of the certificates in PEM ends.
func lastEnd(text []byte) (end time.Time) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil && certificate.NotAfter.After(end) {
			end = certificate.NotAfter
		}
	}
	return end
}
