package journal

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	entriesTold = prometheus.NewDesc("tokenprovider_journal_entries",
		"Answers of Zoom's in the journal, by whether they are safe in Redis (settled) or not (open).", []string{"state"}, nil)
	oldestTold = prometheus.NewDesc("tokenprovider_journal_oldest_open_seconds",
		"How long the oldest answer has waited in the journal that is not safe in Redis; 0: none waits.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (j *Journal) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- entriesTold
	descriptions <- oldestTold
}

// Collect implements [prometheus.Collector].
func (j *Journal) Collect(metrics chan<- prometheus.Metric) {
	open, settled, oldest := j.census()
	metrics <- prometheus.MustNewConstMetric(entriesTold, prometheus.GaugeValue, float64(open), "open")
	metrics <- prometheus.MustNewConstMetric(entriesTold, prometheus.GaugeValue, float64(settled), "settled")
	waited := 0.0
	if !oldest.IsZero() {
		waited = max(0, time.Since(oldest).Seconds())
	}
	metrics <- prometheus.MustNewConstMetric(oldestTold, prometheus.GaugeValue, waited)
}

// census counts the entries, and looks for the oldest that is not settled: in the
// oldest file that has one, so that nobody waits for long.
func (j *Journal) census() (open, settled int, oldest time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range j.files {
		settled += len(f.entries) - f.open
		if f.open == 0 || !oldest.IsZero() {
			continue
		}
		for _, e := range f.entries {
			if !e.settled && (oldest.IsZero() || e.Tokens.Issued.Before(oldest)) {
				oldest = e.Tokens.Issued
			}
		}
	}
	return j.pending, settled, oldest
}
