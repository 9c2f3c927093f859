package journal

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	entriesDesc = prometheus.NewDesc("tokenprovider_journal_entries",
		"Responses from Zoom in the journal, by state: uncommitted, or committed to Redis.", []string{"state"}, nil)
	oldestDesc = prometheus.NewDesc("tokenprovider_journal_oldest_uncommitted_seconds",
		"Age of the oldest uncommitted response in the journal. 0: none.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (j *Journal) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- entriesDesc
	descriptions <- oldestDesc
}

// Collect implements [prometheus.Collector].
func (j *Journal) Collect(metrics chan<- prometheus.Metric) {
	uncommitted, committed, oldest := j.index.count()
	metrics <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(uncommitted), "uncommitted")
	metrics <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(committed), "committed")
	age := 0.0
	if !oldest.IsZero() {
		age = max(0, time.Since(oldest).Seconds())
	}
	metrics <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, age)
}
