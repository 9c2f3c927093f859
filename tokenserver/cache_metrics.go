package tokenserver

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/grant"
)

// The reasons to read Redis for a request.
const (
	missed      = "miss"       // the record was not in memory
	unverified  = "unverified" // its state is unverified
	otherSecret = "secret"     // the cached record does not have the URL's secret
)

// cacheMetrics holds the metrics of a [Cache]; docs/metrics.md explains each. Nil
// measures nothing. Hits are not counted, because every request would pay for it:
// they are all requests less the reads.
type cacheMetrics struct {
	reads         *prometheus.CounterVec
	unverified    prometheus.Counter
	invalidations prometheus.Counter
	ended         prometheus.Counter
	comparisons   chan struct{} // one element for each comparison in progress
}

// RegisterMetrics registers the cache's metrics. It must be called before the
// cache is used.
func (c *Cache) RegisterMetrics(registerer prometheus.Registerer) {
	m := &cacheMetrics{
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_cache_reads_total",
			Help: "Reads of Redis for requests, by reason.",
		}, []string{"reason"}),
		unverified: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenprovider_cache_unverified_total",
			Help: "Uses of a cached record that could not be revalidated against Redis.",
		}),
		invalidations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenprovider_cache_invalidations_total",
			Help: "Records removed from the cache because they changed.",
		}),
		ended: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenprovider_tokens_ended_in_use_total",
			Help: "Tokens that a renewal ended less than 3 s after this replica served them.",
		}),
		comparisons: make(chan struct{}, 64),
	}
	for _, reason := range []string{missed, unverified, otherSecret} {
		m.reads.WithLabelValues(reason)
	}
	c.metrics = m
	registerer.MustRegister(m.reads, m.unverified, m.invalidations, m.ended,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tokenprovider_cache_records", Help: "Records in the cache.",
		}, func() float64 { return float64(c.records.EstimatedSize()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tokenprovider_cache_synced", Help: "1: every change is reported. 0: each record is revalidated before use.",
		}, func() float64 { return float64(min(c.epoch.Load(), 1)) }))
}

func (m *cacheMetrics) read(reason string) {
	if m != nil {
		m.reads.WithLabelValues(reason).Inc()
	}
}

func (m *cacheMetrics) fellBack() {
	if m != nil {
		m.unverified.Inc()
	}
}

// handOffTime is how long a token should live after it was served: Recall joins a
// meeting with it.
const handOffTime = 3 * time.Second

// invalidated counts a record that was invalidated. If its token was served a
// moment ago, it reads the new record to see whether the token was renewed: the
// message of a change does not state it.
func (m *cacheMetrics) invalidated(grants Grants, id grant.ID, before *Record) {
	if m == nil {
		return
	}
	m.invalidations.Inc()
	if time.Since(time.Unix(0, before.served.Load())) >= handOffTime {
		return
	}
	select {
	case m.comparisons <- struct{}{}:
	default: // too many at once: some are not counted
		return
	}
	go func() {
		defer func() { <-m.comparisons }()
		ctx, cancel := context.WithTimeout(context.Background(), handOffTime)
		defer cancel()
		if now, err := grants.ReadServingRecord(ctx, id); err == nil && !now.Access.Equal(before.Access) {
			m.ended.Inc()
		}
	}()
}
