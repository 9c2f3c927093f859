package journal_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/testkit"
)

func TestJournalTellsOfWhatWaits(t *testing.T) {
	keyset, folder := testkit.Keyset(t), t.TempDir()
	j := open(t, folder, keyset, time.Hour)
	registry := prometheus.NewRegistry()
	registry.MustRegister(j)
	want := func(open, settled float64, oldest int) {
		t.Helper()
		for state, n := range map[string]float64{"open": open, "settled": settled} {
			if got := testkit.MetricValue(t, registry, `tokenprovider_journal_entries{state="`+state+`"}`); got != n {
				t.Errorf("%v entries are %s, want %v", got, state, n)
			}
		}
		waits := 0.0
		if oldest > 0 {
			waits = time.Since(entry(oldest).Tokens.Issued).Seconds()
		}
		if got := testkit.MetricValue(t, registry, "tokenprovider_journal_oldest_open_seconds"); got > waits+5 || got < waits {
			t.Errorf("the oldest waits for %v s, want %v", got, waits)
		}
	}
	want(0, 0, 0)
	one, two := add(t, j, 1), add(t, j, 2)
	want(2, 0, 1)
	j.MarkCommitted(one.ID, one.Spent)
	want(1, 1, 2)
	add(t, j, 1) // again: it has to be committed again
	want(2, 0, 1)
	j.MarkCommitted(one.ID, one.Spent)
	j.MarkCommitted(two.ID, two.Spent)
	j.MarkCommitted(two.ID, two.Spent)
	want(0, 2, 0)
	if j.Pending() != 0 {
		t.Errorf("%d pending", j.Pending())
	}
}
