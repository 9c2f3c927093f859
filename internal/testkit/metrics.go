package testkit

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// MetricValue returns the value of a series, or the number of observations of a
// histogram. The series is named as in PromQL, with all its labels sorted by name:
// `calls_total{app="a",outcome="ok"}`. A missing series fails the test.
func MetricValue(tb testing.TB, gatherer prometheus.Gatherer, series string) float64 {
	tb.Helper()
	name, _, _ := strings.Cut(series, "{")
	families, err := gatherer.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	var known []string
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			text := name + labels(metric)
			if text == series {
				return value(metric)
			}
			known = append(known, text)
		}
	}
	tb.Fatalf("no series %s; series of that metric: %v", series, known)
	return 0
}

// HasMetric reports whether a series exists. It is named as in [MetricValue].
func HasMetric(tb testing.TB, gatherer prometheus.Gatherer, series string) bool {
	tb.Helper()
	families, err := gatherer.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, family := range families {
		if slices.ContainsFunc(family.GetMetric(), func(m *dto.Metric) bool { return family.GetName()+labels(m) == series }) {
			return true
		}
	}
	return false
}

func labels(metric *dto.Metric) string {
	var pairs []string
	for _, l := range metric.GetLabel() {
		pairs = append(pairs, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	if len(pairs) == 0 {
		return ""
	}
	return "{" + strings.Join(pairs, ",") + "}"
}

func value(metric *dto.Metric) float64 {
	switch {
	case metric.GetCounter() != nil:
		return metric.GetCounter().GetValue()
	case metric.GetHistogram() != nil:
		return float64(metric.GetHistogram().GetSampleCount())
	default:
		return metric.GetGauge().GetValue()
	}
}
