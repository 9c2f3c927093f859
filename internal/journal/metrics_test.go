package journal_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/testkit"
)

func TestMetrics(t *testing.T) {
	keyset, dir := testkit.Keyset(t), t.TempDir()
	j := open(t, dir, keyset, time.Hour)
	registry := prometheus.NewRegistry()
	registry.MustRegister(j)
	want := func(uncommitted, committed float64, oldest int) {
		t.Helper()
		for state, n := range map[string]float64{"uncommitted": uncommitted, "committed": committed} {
			if got := testkit.MetricValue(t, registry, `tokenprovider_journal_entries{state="`+state+`"}`); got != n {
				t.Errorf("%v entries are %s, want %v", got, state, n)
			}
		}
		age := 0.0
		if oldest > 0 {
			age = time.Since(entry(oldest).Tokens.Issued).Seconds()
		}
		if got := testkit.MetricValue(t, registry, "tokenprovider_journal_oldest_uncommitted_seconds"); got > age+5 || got < age {
			t.Errorf("the oldest is %v s old, want %v", got, age)
		}
	}
	want(0, 0, 0)
	one, two := add(t, j, 1), add(t, j, 2)
	want(2, 0, 1)
	j.MarkCommitted(one.ID, one.Spent)
	want(1, 1, 2)
	add(t, j, 1) // repeated: uncommitted again
	want(2, 0, 1)
	j.MarkCommitted(one.ID, one.Spent)
	j.MarkCommitted(two.ID, two.Spent)
	j.MarkCommitted(two.ID, two.Spent)
	want(0, 2, 0)
	if j.CountUncommitted() != 0 {
		t.Errorf("%d pending", j.CountUncommitted())
	}
}
