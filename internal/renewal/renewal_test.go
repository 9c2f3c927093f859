package renewal_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/zoom"
)

// script is a Zoom with scripted responses.
type script struct {
	mu      sync.Mutex
	calls   []time.Time
	takes   time.Duration
	respond func(n int) (zoom.Tokens, error) // nil: always the next tokens
}

func (s *script) Refresh(ctx context.Context, _ secret.Text) (zoom.Tokens, error) {
	s.mu.Lock()
	s.calls = append(s.calls, time.Now())
	n, respond := len(s.calls), s.respond
	s.mu.Unlock()
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return zoom.Tokens{}, zoom.ErrUncertain
	}
	if respond != nil {
		return respond(n)
	}
	return next(n), nil
}

func (s *script) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func (s *script) say(respond func(n int) (zoom.Tokens, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.respond = respond
}

func next(n int) zoom.Tokens {
	return zoom.Tokens{Access: secret.New(fmt.Sprint("plain-access-", n)), Refresh: secret.New(fmt.Sprint("plain-refresh-", n)), Lifetime: time.Hour}
}

func always(err error) func(int) (zoom.Tokens, error) {
	return func(int) (zoom.Tokens, error) { return zoom.Tokens{}, err }
}

// bench is replicas on one store and one Zoom.
type bench struct {
	*memory
	t       *testing.T
	zoom    *script
	logs    *observer.ObservedLogs
	metrics *prometheus.Registry
	suspend func() error // SuspendReason of replicas that are started later
}

// bubble runs a test on virtual time.
func bubble(t *testing.T, test func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{memory: newMemory(), t: t, zoom: &script{takes: 200 * time.Millisecond}, metrics: prometheus.NewRegistry()}
		test(b)
		if b.logs == nil {
			return
		}
		for _, entry := range b.logs.All() {
			if strings.Contains(entry.Message+fmt.Sprint(entry.ContextMap()), "plain") {
				t.Errorf("%q logs a token", entry.Message)
			}
		}
	})
}

// replica starts a renewer, and ends it with the test.
func (b *bench) replica() *renewal.Renewer {
	core, logs := observer.New(zap.DebugLevel)
	b.logs = logs
	r := renewal.New(renewal.Config{
		Store: b.memory, Journal: newMemoryJournal(), Apps: map[string]renewal.App{"default": {Zoom: b.zoom}},
		Log: zap.New(core), Metrics: b.metrics, RefreshBefore: 5 * time.Minute, SuspendReason: b.suspend,
	})
	b.metrics = prometheus.NewRegistry()
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	b.t.Cleanup(func() {
		cancel()
		<-ended
		end, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.Close(end); err != nil {
			b.t.Error(err)
		}
	})
	return r
}

// put stores a grant whose token was issued some time ago, for an hour.
func (b *bench) put(user string, age time.Duration) grant.ID {
	id := grant.NewID("default", user)
	issued := time.Now().Add(-age)
	plan := issued.Add(55 * time.Minute)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records[id] = record{app: "default", plan: plan, due: plan, planned: true, tokens: grant.Tokens{
		Access: secret.New("plain-access-of-" + user), Refresh: secret.New("plain-refresh-of-" + user),
		Issued: issued, Expires: issued.Add(time.Hour),
	}}
	return id
}

func (b *bench) record(id grant.ID) record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.records[id]
}

// ensureFresh requests a token as a callback does.
func (b *bench) ensureFresh(r *renewal.Renewer, id grant.ID, ttl time.Duration) (grant.ServingRecord, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), 4500*time.Millisecond)
	defer cancel()
	serving, err := b.ReadServingRecord(ctx, id)
	if err != nil {
		return serving, err
	}
	return r.EnsureFresh(ctx, id, serving, ttl)
}

func (b *bench) wantToken(r *renewal.Renewer, id grant.ID, want string) {
	b.t.Helper()
	got, err := b.ensureFresh(r, id, grant.MinTTL)
	if err != nil || got.Access.Reveal() != want {
		b.t.Errorf("served another token than %s, %v", want, err)
	}
}

func TestValidTokenIsServed(t *testing.T) {
	bubble(t, func(b *bench) {
		r, id := b.replica(), b.put("ann", 30*time.Minute)
		b.wantToken(r, id, "plain-access-of-ann")
		if b.zoom.count() != 0 {
			t.Error("it was renewed")
		}
	})
}

func TestDueTokenIsRenewedBeforeItIsServed(t *testing.T) {
	bubble(t, func(b *bench) {
		one, two := b.replica(), b.replica()
		id := b.put("ann", 55*time.Minute-4*time.Second) // due within moments
		var wg sync.WaitGroup
		for _, r := range []*renewal.Renewer{one, two, one, two, one} {
			wg.Go(func() { b.wantToken(r, id, "plain-access-1") })
		}
		wg.Wait()
		if b.zoom.count() != 1 {
			t.Errorf("%d renewals, want 1 for all callers", b.zoom.count())
		}
	})
}

func TestOldTokenIsServedWhileZoomIsDownAndThenGuarded(t *testing.T) {
	bubble(t, func(b *bench) {
		r, id := b.replica(), b.put("ann", 56*time.Minute-10*time.Second)
		b.zoom.say(always(zoom.ErrUnsent))
		b.wantToken(r, id, "plain-access-of-ann")
		b.zoom.say(nil)
		served := time.Now()
		for b.zoom.count() < 2 { // the renewal by plan
			r.RenewDue("default", id, func(error) {})
			time.Sleep(100 * time.Millisecond)
		}
		if since := time.Since(served); since < 5*time.Second || since > 7*time.Second {
			t.Errorf("renewed %v after it was served, want 5s", since)
		}
	})
}

func TestExpiringTokenIsNotServed(t *testing.T) {
	bubble(t, func(b *bench) {
		r, id := b.replica(), b.put("ann", 59*time.Minute)
		b.zoom.say(always(&zoom.RefusedError{Status: 429, RetryAfter: 20 * time.Second}))
		_, err := b.ensureFresh(r, id, grant.MinTTL)
		var backoff *grant.BackoffError
		if !errors.As(err, &backoff) || backoff.For < 19*time.Second || backoff.For > 26*time.Second {
			t.Errorf("served: %v, want a wait of 20 s", err)
		}
		// No replica calls Zoom during the pause that it requested.
		other, bob := b.replica(), b.put("bob", 59*time.Minute)
		time.Sleep(2 * time.Second)
		for _, r := range []*renewal.Renewer{r, other} {
			if _, err := b.ensureFresh(r, bob, grant.MinTTL); !errors.As(err, &backoff) {
				t.Errorf("served: %v, want a wait", err)
			}
		}
		if b.zoom.count() != 1 {
			t.Errorf("Zoom was called %d times", b.zoom.count())
		}
		b.zoom.say(nil)
		time.Sleep(25 * time.Second)
		if _, err := b.ensureFresh(r, bob, grant.MinTTL); err != nil {
			t.Errorf("after the wait: %v", err)
		}
	})
}

func TestTTLBeyondTheTokensLifetime(t *testing.T) {
	bubble(t, func(b *bench) {
		r, id := b.replica(), b.put("ann", time.Minute)
		got, err := b.ensureFresh(r, id, 2*time.Hour)
		if !errors.Is(err, renewal.ErrTTLTooLong) || got.Access.Reveal() != "plain-access-of-ann" || b.zoom.count() != 0 {
			t.Errorf("served: %v after %d renewals, want ErrTTLTooLong and the present token", err, b.zoom.count())
		}
	})
}

func TestGoneGrantIsLoggedOnce(t *testing.T) {
	bubble(t, func(b *bench) {
		r, id := b.replica(), b.put("ann", 59*time.Minute)
		b.zoom.say(always(zoom.ErrInvalidGrant))
		for range 3 {
			if _, err := b.ensureFresh(r, id, grant.MinTTL); !errors.Is(err, grant.ErrReauthorize) {
				t.Errorf("served: %v, want ErrReauthorize", err)
			}
		}
		if b.zoom.count() != 1 || b.logs.FilterMessage("the user must authorize again").Len() != 1 {
			t.Errorf("Zoom was called %d times", b.zoom.count())
		}
	})
}

// TestSuspendedReplicaSpendsNothing: neither by plan nor for a callback. Valid tokens
// are served, and renewals resume afterwards.
func TestSuspendedReplicaSpendsNothing(t *testing.T) {
	bubble(t, func(b *bench) {
		var suspended atomic.Bool
		suspended.Store(true)
		b.suspend = func() error {
			if suspended.Load() {
				return errors.New("the clock is wrong")
			}
			return nil
		}
		r := b.replica()
		time.Sleep(time.Minute)
		due, old := b.put("ann", 57*time.Minute), b.put("bob", 59*time.Minute)
		if r.Capacity("default") != 0 {
			t.Error("there is capacity for renewals")
		}
		if _, err := b.ensureFresh(r, old, grant.MinTTL); err == nil {
			t.Error("a token was served that is too old")
		}
		b.wantToken(r, due, "plain-access-of-ann")
		if b.zoom.count() != 0 {
			t.Errorf("Zoom was called %d times", b.zoom.count())
		}
		suspended.Store(false)
		b.wantToken(r, old, "plain-access-1")
		time.Sleep(10 * time.Second) // the hand-off guard ends
		if err := b.renewDue(r, due); err != nil || b.zoom.count() != 2 {
			t.Errorf("Zoom was called %d times, %v", b.zoom.count(), err)
		}
	})
}

func TestRenewalContinuesWithoutItsCaller(t *testing.T) {
	bubble(t, func(b *bench) {
		r, id := b.replica(), b.put("ann", 59*time.Minute)
		ctx, cancel := context.WithTimeout(b.t.Context(), 50*time.Millisecond)
		defer cancel()
		serving, _ := b.ReadServingRecord(ctx, id)
		if _, err := r.EnsureFresh(ctx, id, serving, grant.MinTTL); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("served: %v", err)
		}
		time.Sleep(time.Second)
		if got := b.record(id); got.tokens.Access.Reveal() != "plain-access-1" {
			t.Error("the renewal ended with its caller")
		}
	})
}

func TestInvalidClientChangesNoGrant(t *testing.T) {
	bubble(t, func(b *bench) {
		r := b.replica()
		ids := []grant.ID{b.put("ann", 56*time.Minute), b.put("bob", 56*time.Minute), b.put("cid", 56*time.Minute)}
		b.zoom.say(always(zoom.ErrInvalidClient))
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			for _, id := range ids {
				if r.Capacity("default") > 0 {
					r.RenewDue("default", id, func(error) {})
				}
			}
		}
		if n := b.zoom.count(); n < 3 || n > 8 {
			t.Errorf("Zoom was called %d times in a minute, want a probe every 15 s", n)
		}
		for _, id := range ids {
			if got := b.record(id); got.failures != 0 || got.reason != "" || got.gone || got.uncertain || got.lease != "" {
				t.Errorf("the grant was changed: %+v", got)
			}
		}
		if b.logs.FilterLevelExact(zap.ErrorLevel).Len() == 0 {
			t.Error("no error is logged")
		}
		b.zoom.say(nil)
		time.Sleep(20 * time.Second)
		for _, id := range ids {
			if _, err := b.ensureFresh(r, id, grant.MinTTL); err != nil {
				t.Errorf("after the fix: %v", err)
			}
		}
	})
}

func TestUnknownAppIsReleased(t *testing.T) {
	bubble(t, func(b *bench) {
		r, id := b.replica(), b.put("ann", 59*time.Minute)
		b.mu.Lock()
		rec := b.records[id]
		rec.app = "removed"
		b.records[id] = rec
		b.mu.Unlock()
		if _, err := b.ensureFresh(r, id, grant.MinTTL); !errors.Is(err, renewal.ErrUnknownApp) {
			t.Errorf("served: %v, want ErrUnknownApp", err)
		}
		if got := b.record(id); got.failures != 0 || got.lease != "" {
			t.Errorf("the grant was changed: %+v", got)
		}
	})
}

// TestOutage: for ten seconds Zoom responds 500 to three replicas with 1,000 due
// grants.
func TestOutage(t *testing.T) {
	bubble(t, func(b *bench) {
		const n = 1000
		var ids []grant.ID
		for i := range n {
			ids = append(ids, b.put(fmt.Sprint("user-", i), 55*time.Minute+time.Duration(i)*50*time.Millisecond))
		}
		b.zoom.say(always(&zoom.RefusedError{Status: 500}))
		for range 3 {
			r := b.replica()
			go func() {
				for b.t.Context().Err() == nil {
					for _, id := range b.due() {
						if r.Capacity("default") == 0 {
							break
						}
						r.RenewDue("default", id, func(error) {})
					}
					sleep(b.t.Context(), 20*time.Millisecond)
				}
			}()
		}
		time.Sleep(10 * time.Second)
		if asked := b.zoom.count(); asked >= 100 {
			t.Errorf("%d requests during the outage, want fewer than 100", asked)
		}
		b.zoom.say(nil)
		back := time.Now()
		for fresh := 0; fresh < n; time.Sleep(100 * time.Millisecond) {
			if time.Since(back) > time.Minute {
				t.Fatalf("%d of %d are fresh a minute after Zoom is back", fresh, n)
			}
			fresh = 0
			for _, id := range ids {
				if b.record(id).tokens.Issued.After(back.Add(-time.Second)) {
					fresh++
				}
			}
		}
		t.Logf("all fresh after %v, by %d requests", time.Since(back), b.zoom.count())
	})
}

func TestNothingIsRenewedOnceClosed(t *testing.T) {
	bubble(t, func(b *bench) {
		r, id := b.replica(), b.put("ann", 59*time.Minute)
		b.zoom.takes = 3 * time.Second
		done := make(chan error, 1)
		if !r.RenewDue("default", id, func(err error) { done <- err }) {
			t.Fatal("not started")
		}
		if r.RenewDue("default", id, func(error) {}) {
			t.Error("started twice")
		}
		time.Sleep(time.Second)
		short, cancel := context.WithTimeout(b.t.Context(), time.Second)
		defer cancel()
		if err := r.Close(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("closed with a renewal in flight: %v", err)
		}
		if err := r.Close(b.t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil || b.record(id).tokens.Access.Reveal() != "plain-access-1" {
			t.Errorf("the renewal did not end: %v", err)
		}
		if _, err := b.ensureFresh(r, b.put("bob", 59*time.Minute), grant.MinTTL); !errors.Is(err, renewal.ErrClosed) {
			t.Errorf("served after the end: %v, want ErrClosed", err)
		}
		if r.RenewDue("default", id, func(error) {}) {
			t.Error("started after the end")
		}
	})
}

// TestHandOffGuard counts renewals that end a token within 3 seconds of its hand-off,
// with callbacks at random times at either of two replicas.
func TestHandOffGuard(t *testing.T) {
	bubble(t, func(b *bench) {
		const grants, days = 20, 6
		var mu sync.Mutex
		served := map[string]time.Time{} // access token -> when
		ended, rotations := 0, 0
		live := map[grant.ID]string{}
		one, two := b.replica(), b.replica()
		b.zoom.say(func(n int) (zoom.Tokens, error) { return next(n), nil })
		b.committed = func(id grant.ID, access string) {
			mu.Lock()
			defer mu.Unlock()
			rotations++
			if at, ok := served[live[id]]; ok && time.Since(at) < 3*time.Second {
				ended++
			}
			live[id] = access
		}
		ctx, cancel := context.WithTimeout(b.t.Context(), days*24*time.Hour)
		defer cancel()
		var wg sync.WaitGroup
		for i := range grants {
			id := b.put(fmt.Sprint("user-", i), time.Duration(i)*2*time.Minute)
			random := rand.New(rand.NewPCG(uint64(i), 0))
			// Some grants have frequent callbacks, some rare ones; never two in 5 s.
			often := time.Duration(i+1) * 10 * time.Second
			wg.Go(func() {
				for ctx.Err() == nil {
					r := []*renewal.Renewer{one, two}[random.IntN(2)]
					if got, err := b.ensureFresh(r, id, grant.MinTTL); err == nil {
						mu.Lock()
						served[got.Access.Reveal()] = time.Now()
						mu.Unlock()
					} else if ctx.Err() == nil {
						t.Error(err)
					}
					sleep(ctx, 5*time.Second+time.Duration(random.Int64N(int64(often))))
				}
			})
		}
		for _, r := range []*renewal.Renewer{one, two} {
			wg.Go(func() {
				for ctx.Err() == nil {
					for _, id := range b.due() {
						r.RenewDue("default", id, func(error) {})
					}
					sleep(ctx, time.Second)
				}
			})
		}
		wg.Wait()
		if rotations < 3000 || ended*1000 > rotations {
			t.Errorf("%d of %d rotations ended a token within 3 s of its hand-off, want at most 1 in 1,000", ended, rotations)
		}
		t.Logf("%d of %d rotations", ended, rotations)
	})
}
