package testkit

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// MetricValue returns what a series is worth now, which is named as in PromQL, with all
// its labels in the order of their names: `calls_total{app="a",outcome="ok"}`. Of a
// histogram it is how much was observed. A series that is not there fails the test.
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
				return worth(metric)
			}
			known = append(known, text)
		}
	}
	tb.Fatalf("there is no series %s; of that name: %v", series, known)
	return 0
}

// HasMetric reports whether there is a series.
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

func worth(metric *dto.Metric) float64 {
	switch {
	case metric.GetCounter() != nil:
		return metric.GetCounter().GetValue()
	case metric.GetHistogram() != nil:
		return float64(metric.GetHistogram().GetSampleCount())
	default:
		return metric.GetGauge().GetValue()
	}
}
