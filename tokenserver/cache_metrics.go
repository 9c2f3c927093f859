package tokenserver

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/grant"
)

// Why a callback reads Redis.
const (
	missed      = "miss"       // the record was not in memory
	unverified  = "unverified" // it was, but its change may not have been told
	otherSecret = "secret"     // the URL's secret is not one that is in memory
)

// cacheMetrics is what operators see of a [Cache]; docs/metrics.md explains each.
// Nil measures nothing. What is found in memory is not counted, as every callback
// would pay for it: it is all callbacks less the reads.
type cacheMetrics struct {
	reads         *prometheus.CounterVec
	unverified    prometheus.Counter
	invalidations prometheus.Counter
	ended         prometheus.Counter
	looks         chan struct{} // as many as look at whether a token has ended
}

// Measure tells of the cache from now on. It is to be called before the cache is
// used.
func (c *Cache) Measure(registerer prometheus.Registerer) {
	m := &cacheMetrics{
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_cache_reads_total",
			Help: "Reads of Redis that callbacks had to make, by reason.",
		}, []string{"reason"}),
		unverified: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenprovider_cache_unverified_total",
			Help: "Records used as they were in memory, because Redis could not be read.",
		}),
		invalidations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenprovider_cache_invalidations_total",
			Help: "Records dropped from memory because they have changed.",
		}),
		ended: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenprovider_tokens_ended_in_use_total",
			Help: "Tokens that a renewal has ended less than 3 s after they were handed out here.",
		}),
		looks: make(chan struct{}, 64),
	}
	for _, reason := range []string{missed, unverified, otherSecret} {
		m.reads.WithLabelValues(reason)
	}
	c.metrics = m
	registerer.MustRegister(m.reads, m.unverified, m.invalidations, m.ended,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tokenprovider_cache_records", Help: "Records in memory.",
		}, func() float64 { return float64(c.records.EstimatedSize()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tokenprovider_cache_following", Help: "1 while every change of a record is told; 0: each is read before it is used.",
		}, func() float64 { return float64(min(c.era.Load(), 1)) }))
}

func (m *cacheMetrics) read(reason string) {
	if m != nil {
		m.reads.WithLabelValues(reason).Inc()
	}
}

func (m *cacheMetrics) madeDo() {
	if m != nil {
		m.unverified.Inc()
	}
}

// inUse is for how long after its hand-off a token should live: Recall joins a
// meeting with it.
const inUse = 3 * time.Second

// dropped looks at a record that has changed and was dropped. If its token was
// handed out a moment ago, somebody has to read whether it was renewed: a change
// does not say.
func (m *cacheMetrics) dropped(grants Grants, id grant.ID, before *record) {
	if m == nil {
		return
	}
	m.invalidations.Inc()
	if time.Since(time.Unix(0, before.handed.Load())) >= inUse {
		return
	}
	select {
	case m.looks <- struct{}{}:
	default: // so many at once that some go uncounted
		return
	}
	go func() {
		defer func() { <-m.looks }()
		ctx, cancel := context.WithTimeout(context.Background(), inUse)
		defer cancel()
		if now, err := grants.ReadServingRecord(ctx, id); err == nil && !now.Access.Equal(before.Access) {
			m.ended.Inc()
		}
	}()
}
