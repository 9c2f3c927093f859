package renewal_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/zoom"
)

// putFor stores a due grant of another Zoom app.
func (b *bench) putFor(app, user string) grant.ID {
	id := b.put(user, 57*time.Minute)
	b.mu.Lock()
	defer b.mu.Unlock()
	rec := b.records[id]
	rec.app = app
	b.records[id] = rec
	return id
}

// TestPauseOfOneApp: the pause of one Zoom app does not stop another.
func TestPauseOfOneApp(t *testing.T) {
	bubble(t, func(b *bench) {
		r, other := b.replica(), &script{takes: 200 * time.Millisecond}
		r.SetApps(map[string]renewal.App{"default": {Zoom: b.zoom}, "other": {Zoom: other}})
		time.Sleep(2 * time.Second)
		other.say(always(&zoom.RefusedError{Status: 429, RetryAfter: time.Minute}))
		done := make(chan error, 1)
		if !r.RenewDue("other", b.putFor("other", "ann"), func(err error) { done <- err }) {
			t.Fatal("not started")
		}
		var backoff *grant.BackoffError
		if err := <-done; !errors.As(err, &backoff) {
			t.Fatal(err)
		}
		if r.Capacity("other") != 0 || r.Capacity("default") != 10 || r.Capacity("absent") != 0 {
			t.Errorf("capacities %d, %d and %d, want 0 while paused, 10 and 0", r.Capacity("other"), r.Capacity("default"), r.Capacity("absent"))
		}
		if err := b.renewDue(r, b.put("bob", 57*time.Minute)); err != nil {
			t.Errorf("a renewal of another app: %v", err)
		}
		before := b.calls
		if r.RenewDue("other", b.putFor("other", "cid"), func(err error) { done <- err }); !errors.As(<-done, &backoff) {
			t.Error("a scheduled renewal of the paused app did not wait")
		}
		if b.calls != before || other.count() != 1 {
			t.Errorf("%d Redis calls and %d calls to Zoom for a paused app", b.calls-before, other.count()-1)
		}
		if r.RenewDue("absent", b.put("dan", 57*time.Minute), func(error) {}) {
			t.Error("started a renewal of an unknown app")
		}
	})
}

// TestBacklogOfOneApp: the queue of one Zoom app does not use another's capacity.
func TestBacklogOfOneApp(t *testing.T) {
	bubble(t, func(b *bench) {
		r, other := b.replica(), &script{takes: 5 * time.Second}
		r.SetApps(map[string]renewal.App{"default": {Zoom: b.zoom}, "other": {Zoom: other}})
		time.Sleep(2 * time.Second)
		done := make(chan error, 10)
		for i := range 10 {
			r.RenewDue("other", b.putFor("other", fmt.Sprint("user-", i)), func(err error) { done <- err })
		}
		if r.Capacity("other") != 0 || r.Capacity("default") != 10 {
			t.Errorf("capacities %d and %d, want 0 and 10", r.Capacity("other"), r.Capacity("default"))
		}
		for range 10 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := r.Capacity("other"); n != 14 { // the window grew while it was at least half used
			t.Errorf("capacity %d after the backlog, want 14", n)
		}
	})
}

// TestLimitsFollowSetApps: changed limits of an app apply to its next renewals.
func TestLimitsFollowSetApps(t *testing.T) {
	bubble(t, func(b *bench) {
		r := b.replica()
		time.Sleep(2 * time.Second)
		set := func(maxInFlight, perSecond int) {
			r.SetApps(map[string]renewal.App{"default": {Zoom: b.zoom, MaxInFlight: maxInFlight, MaxPerSecond: perSecond}})
		}
		set(3, 0)
		if n := r.Capacity("default"); n != 3 {
			t.Errorf("capacity %d, want the limit of 3", n)
		}
		set(0, 0)
		if n := r.Capacity("default"); n != 10 {
			t.Errorf("capacity %d, want 10 once the limit is the default", n)
		}
		started := func() (n int) {
			done := make(chan struct{}, 10)
			asked := b.zoom.count()
			for i := range 8 {
				if !r.RenewDue("default", b.put(fmt.Sprint("user-", i), 57*time.Minute), func(error) { done <- struct{}{} }) {
					t.Fatal("not started")
				}
			}
			for range 8 {
				<-done
			}
			return b.zoom.count() - asked
		}
		set(0, 4) // a burst of 1
		if n := started(); n != 1 {
			t.Errorf("%d renewals at once, want 1 at 4 a second", n)
		}
		set(0, 1000)
		time.Sleep(2 * time.Second)
		if n := started(); n != 8 {
			t.Errorf("%d renewals at once, want 8 at 1000 a second", n)
		}
	})
}
