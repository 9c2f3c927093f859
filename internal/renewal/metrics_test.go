package renewal_test

import (
	"testing"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoom"
)

// measured starts a replica, and returns it with a check of its metrics.
func (b *bench) measured() (*renewal.Renewer, func(series string, value float64)) {
	registry := b.metrics
	r := b.replica()
	return r, func(series string, value float64) {
		b.t.Helper()
		if got := testkit.MetricValue(b.t, registry, "tokenprovider_"+series); got != value {
			b.t.Errorf("%s is %v, want %v", series, got, value)
		}
	}
}

// renewDue runs a scheduled renewal.
func (b *bench) renewDue(r *renewal.Renewer, id grant.ID) error {
	b.t.Helper()
	done := make(chan error, 1)
	if !r.RenewDue("default", id, func(err error) { done <- err }) {
		b.t.Fatal("not started")
	}
	return <-done
}

func TestRefreshesAreCounted(t *testing.T) {
	bubble(t, func(b *bench) {
		r, want := b.measured()
		time.Sleep(2 * time.Second)
		want(`refreshes_total{outcome="renewed"}`, 0) // there from the start, for increase()
		late, early := b.put("ann", 57*time.Minute), b.put("bob", 55*time.Minute-2*time.Second)
		if err := b.renewDue(r, late); err != nil {
			t.Fatal(err)
		}
		want(`refreshes_total{outcome="renewed"}`, 1)
		want(`refresh_duration_seconds`, 1)
		want(`refresh_lateness_seconds`, 1)
		b.wantToken(r, early, "plain-access-2") // renewed for a caller before its plan: not late
		want(`refreshes_total{outcome="renewed"}`, 2)
		want(`refresh_lateness_seconds`, 1)
		want(`uncertain_retries_total{outcome="renewed"}`, 0)
	})
}

// TestLateness: lateness is measured from the plan, which a failure does not move.
func TestLateness(t *testing.T) {
	bubble(t, func(b *bench) {
		registry := b.metrics
		r := b.replica()
		time.Sleep(2 * time.Second)
		id := b.put("ann", 56*time.Minute)
		b.zoom.say(always(&zoom.RefusedError{Status: 503}))
		_ = b.renewDue(r, id)
		time.Sleep(40 * time.Second)
		b.zoom.say(nil)
		if err := b.renewDue(r, id); err != nil {
			t.Fatal(err)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "tokenprovider_refresh_lateness_seconds" {
				if sum := family.GetMetric()[0].GetHistogram().GetSampleSum(); sum < 160 || sum > 165 {
					t.Errorf("late by %v s in all, want 60 s and 100 s", sum)
				}
			}
		}
	})
}

func TestLostGrantsAreCountedOnce(t *testing.T) {
	bubble(t, func(b *bench) {
		r, want := b.measured()
		time.Sleep(2 * time.Second)
		gone, lost := b.put("ann", 59*time.Minute), b.put("bob", 59*time.Minute)
		b.zoom.say(always(zoom.ErrUncertain))
		_ = b.renewDue(r, lost)
		want(`refreshes_total{outcome="uncertain"}`, 1)
		want(`uncertain_retries_total{outcome="gone"}`, 0)
		time.Sleep(20 * time.Second)
		b.zoom.say(always(zoom.ErrInvalidGrant))
		for range 3 {
			for _, id := range []grant.ID{gone, lost} {
				_ = b.renewDue(r, id)
			}
			time.Sleep(20 * time.Second)
		}
		want(`reauthorizations_total{reason="refused"}`, 1)
		want(`reauthorizations_total{reason="response_lost"}`, 1)
		want(`uncertain_retries_total{outcome="gone"}`, 1)
	})
}

// TestLostCommitsAreCounted: Redis loses a response that it has acknowledged.
func TestLostCommitsAreCounted(t *testing.T) {
	bubble(t, func(b *bench) {
		r, want := b.measured()
		time.Sleep(2 * time.Second)
		id, other := b.put("ann", 56*time.Minute), b.put("bob", 56*time.Minute)
		if err := b.renewDue(r, other); err != nil {
			t.Fatal(err)
		}
		before := b.snapshot()
		if err := b.renewDue(r, id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // both are verified
		want(`lost_commits_total`, 0)
		want(`redis_failover_pause`, 0)
		b.restore(before)
		time.Sleep(2 * time.Second)
		want(`redis_failovers_total`, 1)
		want(`redis_failover_pause`, 1)
		want(`lost_commits_total`, 1) // bob's is still there
		time.Sleep(20 * time.Second)
		want(`lost_commits_total`, 1)
		want(`redis_failover_pause`, 0)
		if b.record(id).tokens.Access.Reveal() != "plain-access-2" {
			t.Error("the response was not committed again")
		}
	})
}

func TestPausesAreCounted(t *testing.T) {
	for reason, fault := range map[string]error{
		"refused":     zoom.ErrInvalidClient,
		"retry_after": &zoom.RefusedError{Status: 429, RetryAfter: 10 * time.Second},
		"faults":      zoom.ErrUnsent,
	} {
		bubble(t, func(b *bench) {
			r, want := b.measured()
			time.Sleep(2 * time.Second)
			want(`zoom_paused{app="default"}`, 0)
			want(`zoom_pauses_total{app="default",reason="`+reason+`"}`, 0)
			b.zoom.say(always(fault))
			for _, user := range []string{"ann", "bob", "cid"} {
				_ = b.renewDue(r, b.put(user, 59*time.Minute))
			}
			want(`zoom_paused{app="default"}`, 1)
			want(`zoom_pauses_total{app="default",reason="`+reason+`"}`, 1)
			if got := b.pauses["default"]; got.IsZero() {
				t.Error("the pause was not published")
			}
			b.zoom.say(nil)
			time.Sleep(30 * time.Second)
			want(`zoom_paused{app="default"}`, 0)
		})
	}
}
