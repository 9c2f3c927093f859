package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

func testCollector(f *fixture) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(store.NewCollector(f.Store))
	late, failing := f.link(f.consent("ann", past)), f.link(f.consent("bob", past.Add(-time.Minute)))
	f.link(f.consent("cid", future))
	f.consent("dan", future)
	// A failure postpones bob's next attempt, but his renewal stays overdue.
	if err := f.Fail(f.t.Context(), f.claimDue(failing.ID, "a"), grant.OutcomeUnspent, time.Minute, "Zoom is down"); err != nil {
		f.t.Fatal(err)
	}
	for series, want := range map[string]float64{
		`redis_up`: 1, `grants{state="active"}`: 2, `grants{state="degraded"}`: 1, `grants{state="pending"}`: 1,
		`grants{state="deleting"}`: 0, `grants{state="reauthorization_required"}`: 0, `grants_due`: 1,
	} {
		if got := testkit.MetricValue(f.t, registry, "tokenprovider_"+series); got != want {
			f.t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	overdue := time.Duration(testkit.MetricValue(f.t, registry, "tokenprovider_grants_oldest_due_seconds") * float64(time.Second))
	if want := time.Since(past) + time.Minute; overdue < want-5*time.Second || overdue > want {
		f.t.Errorf("the oldest is overdue for %v, want %v", overdue, want)
	}
	if offset := testkit.MetricValue(f.t, registry, "tokenprovider_redis_clock_offset_seconds"); offset < -1 || offset > 1 {
		f.t.Errorf("Redis's clock is %v s ahead, want 0", offset)
	}
	if err := f.Fail(f.t.Context(), f.claimDue(late.ID, "a"), grant.OutcomeGone, 0, "gone"); err != nil {
		f.t.Fatal(err)
	}
	if got := testkit.MetricValue(f.t, registry, `tokenprovider_grants{state="active"}`); got != 2 {
		f.t.Errorf("%v active within the age of a count, want the earlier count", got)
	}
}

func testLostWriteIsDetected(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)
	claim := f.claimDue(g.ID, "a")
	for i, want := range []bool{true, false} {
		if missing, err := f.Store.Commit(ctx, g.ID, claim.Spent, tokens(1), future); err != nil || missing != want {
			f.t.Errorf("commit %d: missing %v, %v", i+1, missing, err)
		}
	}
	if _, err := f.Store.Commit(ctx, g.ID, "another", tokens(2), future); !errors.Is(err, grant.ErrSuperseded) {
		f.t.Errorf("an invalid response: %v", err)
	}
	id, consent := grant.NewID(app, "bob"), grant.Consent{App: app, User: "bob", Fingerprint: "code", Tokens: tokens(3)}
	for i, want := range []bool{true, false} {
		if missing, err := f.AcceptConsent(ctx, id, consent, future); err != nil || missing != want {
			f.t.Errorf("consent %d: missing %v, %v", i+1, missing, err)
		}
	}
}

func testOverdueIsSinceTheRenewalTime(f *fixture) {
	g := f.consent("ann", past)
	claim := f.claimDue(g.ID, "a")
	if late := time.Since(past); claim.Overdue < late-5*time.Second || claim.Overdue > late+time.Millisecond { // renewal times are in whole ms
		f.t.Errorf("late by %v, want %v", claim.Overdue, late)
	}
	early := f.consent("bob", time.Now().Add(30*time.Minute))
	if err := f.client.HIncrBy(f.t.Context(), recordKey(f, early.ID), "refreshed", -20*time.Minute.Milliseconds()).Err(); err != nil { // fresh ones are not claimed
		f.t.Fatal(err)
	}
	claim, err := f.Claim(f.t.Context(), early.ID, "b", grant.ClaimTerms{Lease: lease, ValidUntil: time.Now().Add(2 * time.Hour)})
	if err != nil || claim.Overdue > -29*time.Minute {
		f.t.Errorf("late by %v, %v, want half an hour before its renewal time", claim.Overdue, err)
	}
}

// TestCollectorWithoutRedis: without a reply only redis_up is exported.
func TestCollectorWithoutRedis(t *testing.T) {
	redis := testkit.StartRedis(t)
	registry := prometheus.NewRegistry()
	registry.MustRegister(store.NewCollector(store.New(redis.Client(), testkit.Keyset(t))))
	redis.Freeze()
	began := time.Now()
	if up := testkit.MetricValue(t, registry, "tokenprovider_redis_up"); up != 0 {
		t.Errorf("redis_up is %v", up)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("a scrape takes %v while Redis is frozen", took)
	}
	if testkit.HasMetric(t, registry, `tokenprovider_grants{state="active"}`) || testkit.HasMetric(t, registry, "tokenprovider_grants_due") {
		t.Error("grants are exported without a count")
	}
	redis.Thaw()
	if up := testkit.MetricValue(t, registry, "tokenprovider_redis_up"); up != 1 {
		t.Errorf("redis_up is %v after Redis responds again", up)
	}
	if memory := testkit.MetricValue(t, registry, "tokenprovider_redis_memory_bytes"); memory < 100_000 {
		t.Errorf("Redis uses %v bytes", memory)
	}
}

// TestClocks: a Redis whose clock is ten minutes behind.
func TestClocks(t *testing.T) {
	embedded := miniredis.RunT(t)
	embedded.SetTime(time.Now().Add(-10 * time.Minute))
	registry := prometheus.NewRegistry()
	registry.MustRegister(store.NewCollector(store.New(testkit.RedisClient(t, "redis://"+embedded.Addr()), testkit.Keyset(t))))
	if offset := testkit.MetricValue(t, registry, "tokenprovider_redis_clock_offset_seconds"); offset > -595 || offset < -605 {
		t.Errorf("the offset is %v s, want -600", offset)
	}
}

// measured returns a store and a function that reads the metrics of its connection.
func measured(t *testing.T, redis *testkit.Redis) (*store.Store, func(series string) float64) {
	t.Helper()
	client, registry := redis.Client(), prometheus.NewRegistry()
	client.RegisterMetrics(registry)
	return store.New(client, testkit.Keyset(t)), func(series string) float64 {
		t.Helper()
		return testkit.MetricValue(t, registry, "tokenprovider_"+series)
	}
}

func TestCommandsAreMeasured(t *testing.T) {
	s, value := measured(t, testkit.StartRedis(t))
	f := &fixture{Store: s, t: t}
	g := f.consent("ann", past)
	for range 2 {
		f.claimDue(g.ID, "a")
	}
	if n := value(`redis_command_duration_seconds{command="claim"}`); n < 2 {
		t.Errorf("%v claims, want 2", n)
	}
	for range 2 { // by its SHA-1 once Redis has loaded it
		if err := s.MakeDue(t.Context(), grant.NewID("default", "missing")); !errors.Is(err, grant.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if n := value(`redis_command_duration_seconds{command="make_due"}`); n < 2 {
		t.Errorf("%v calls of the script make_due, want 2", n)
	}
	if n := value(`redis_command_duration_seconds{command="hgetall"}`); n != 1 {
		t.Errorf("%v reads of a grant, want 1", n)
	}
	for _, kind := range []string{"unreachable", "timeout", "full", "read_only", "refused", "loading", "pool", "other"} {
		if n := value(`redis_errors_total{kind="` + kind + `"}`); n != 0 {
			t.Errorf("%v errors of kind %s without a fault", n, kind)
		}
	}
	if idle, used := value(`redis_pool_connections{state="idle"}`), value(`redis_pool_connections{state="used"}`); idle < 1 || used != 0 {
		t.Errorf("%v connections are idle and %v in use", idle, used)
	}
}

func TestFaultsOfRedis(t *testing.T) {
	for kind, cause := range map[string]func(*testkit.Redis, *store.Store){
		"full": func(r *testkit.Redis, s *store.Store) {
			if err := r.Client().ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
				t.Fatal(err)
			}
		},
		"refused": func(r *testkit.Redis, _ *store.Store) {
			client := r.Client()
			if err := client.ConfigSet(t.Context(), "requirepass", "another").Err(); err != nil {
				t.Fatal(err)
			}
			_ = client.Do(t.Context(), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no").Err() // ends this connection too
		},
		"unreachable": func(r *testkit.Redis, _ *store.Store) { r.Kill() },
		"timeout":     func(r *testkit.Redis, _ *store.Store) { r.Freeze() },
		"read_only": func(r *testkit.Redis, _ *store.Store) {
			if err := r.Client().ReplicaOf(t.Context(), "127.0.0.1", "1").Err(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			redis := testkit.StartRedis(t)
			s, value := measured(t, redis)
			id := (&fixture{Store: s, t: t}).consent("ann", past).ID
			cause(redis, s)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := s.Claim(ctx, id, "a", grant.ClaimTerms{Lease: lease}); err == nil {
				t.Error("claimed")
			}
			if n := value(`redis_errors_total{kind="` + kind + `"}`); n < 1 {
				t.Errorf("no error of kind %s is counted", kind)
			}
			for _, other := range []string{"full", "timeout", "read_only", "refused", "other"} {
				if n := value(`redis_errors_total{kind="` + other + `"}`); n > 0 && other != kind {
					t.Errorf("%v errors of kind %s are counted", n, other)
				}
			}
			if kind == "timeout" {
				redis.Thaw()
			}
		})
	}
}

// TestCanceledCallIsNoFault: a call that its caller cancels is no fault of Redis.
func TestCanceledCallIsNoFault(t *testing.T) {
	redis := testkit.StartRedis(t)
	s, value := measured(t, redis)
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	redis.Freeze()
	defer redis.Thaw()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := s.Ping(ctx); err == nil {
		t.Error("a frozen Redis responded")
	}
	for _, kind := range []string{"unreachable", "timeout", "other"} {
		if n := value(`redis_errors_total{kind="` + kind + `"}`); n != 0 {
			t.Errorf("%v errors of kind %s", n, kind)
		}
	}
}
