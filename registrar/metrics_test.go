package registrar_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/recall"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/recallvendor"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
	"tokenprovider/registrar"
)

// measured is a registrar with its metrics.
func measured(t *testing.T) (*world, func(series string) float64) {
	t.Helper()
	w, registry := surroundings(t), prometheus.NewRegistry()
	w.replica = w.join(replicaOptions{metrics: registry})
	return w, func(series string) float64 {
		t.Helper()
		return testkit.MetricValue(t, registry, "tokenprovider_"+series)
	}
}

func TestCallsAreCounted(t *testing.T) {
	w, value := measured(t)
	if n := value(`grpc_calls_total{code="OK",method="RegisterUser"}`); n != 0 { // there from the start, for increase()
		t.Errorf("%v calls before the first", n)
	}
	w.register(byCode("ann", w.code("zoom-ann")))
	if _, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "unknown"}); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := w.WatchUsers(ctx, &registrarv1.WatchUsersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if n := value(`watchers`); n != 1 {
		t.Errorf("%v watchers, want 1", n)
	}
	cancel()
	until(t, func() bool { return value(`watchers`) == 0 })
	for series, want := range map[string]float64{
		`grpc_calls_total{code="OK",method="RegisterUser"}`:     1,
		`grpc_calls_total{code="NotFound",method="GetUser"}`:    1,
		`grpc_calls_total{code="Canceled",method="WatchUsers"}`: 1,
		`grpc_call_duration_seconds{method="RegisterUser"}`:     1,
	} {
		if got := value(series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
}

func until(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the condition does not hold in time")
		}
	}
}

// TestRegistrationsAreTimed: each new user once, from the consent to the credential,
// whichever replica completes it, and however often the call is repeated.
func TestRegistrationsAreTimed(t *testing.T) {
	w, value := measured(t)
	first := byCode("ann", w.code("zoom-ann"))
	for range 2 { // the second returns the result of the first
		w.register(first)
	}
	w.recall.Fail(http.MethodPost, credentialsPath, 2, recalltest.Fault{Status: 503})
	second := byCode("bob", w.code("zoom-bob"))
	for range 2 {
		wantState(t, w.register(second), registrarv1.State_STATE_PENDING)
	}
	if n := value(`registration_duration_seconds`); n != 1 {
		t.Errorf("%v are timed while one is pending, want 1", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.service.RunUnfinished(ctx, 10*time.Millisecond)
	}()
	until(t, func() bool { return value(`registration_duration_seconds`) == 2 })
	cancel()
	<-ended
	w.register(byCode("ann", w.code("zoom-ann"))) // consents again: not new
	for series, want := range map[string]float64{
		`registrations_total{state="active"}`: 1, `registrations_total{state="pending"}`: 1,
		`registration_duration_seconds`: 2, `registrations_postponed_total{cause="recall"}`: 2, `registrations_postponed_total{cause="zoom"}`: 0,
	} {
		if got := value(series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
}

func TestCausesOfWaitingAreTold(t *testing.T) {
	w, value := measured(t)
	for i, c := range []struct {
		cause string
		fault func()
	}{
		{"key", func() { w.recall.Fail(http.MethodPost, credentialsPath, 1, recalltest.Fault{Status: 401}) }},
		{"zoom", func() { w.zoom.Fail("/v2/users/me", 1, zoomtest.Fault{Status: 503}) }},
		{"recall", func() { w.recall.Fail(http.MethodPost, credentialsPath, 1, recalltest.Fault{DropBefore: true}) }},
	} {
		c.fault()
		w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
		if n := value(`registrations_postponed_total{cause="` + c.cause + `"}`); n != 1 {
			t.Errorf("%v are postponed because of %s, want 1", n, c.cause)
		}
	}
}

func TestReconciliationsAreTold(t *testing.T) {
	w, value := measured(t)
	const last = "reconciliation_last_success_timestamp_seconds"
	run := func(done func() bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r := w.reconciler()
			r.Interval = 50 * time.Millisecond
			r.Run(ctx)
		}()
		until(t, done)
		cancel()
		<-ended
	}
	for i := range 12 {
		w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
	}
	w.deleteAtRecall(w.get("user-3").GetRecallCredentialId())
	run(func() bool { return value(`reconciliations_total{outcome="done"}`) >= 1 })
	if n := value(`reconciliation_findings_total{kind="missing"}`); n != 1 {
		t.Errorf("%v were missing, want 1", n)
	}
	if at := time.Unix(int64(value(last)), 0); time.Since(at) > time.Minute {
		t.Errorf("the last success was at %v", at)
	}
	if value(`reconciliation_stopped`) != 0 {
		t.Error("exported as stopped")
	}
	for _, c := range w.recall.Credentials() {
		w.deleteAtRecall(c.ID)
	}
	run(func() bool { return value(`reconciliations_total{outcome="stopped"}`) >= 1 })
	if value(`reconciliation_stopped`) != 1 {
		t.Error("not exported as stopped")
	}
	// A new replica reads it from Redis.
	registry := prometheus.NewRegistry()
	other := w.join(replicaOptions{metrics: registry})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	go (&registrar.Reconciler{Service: other.service, Vendor: recallvendor.New(other.recall), Log: w.log, Interval: time.Hour}).Run(ctx)
	until(t, func() bool { return testkit.MetricValue(t, registry, "tokenprovider_reconciliation_stopped") == 1 })
}

func TestWaitsForRecallAreMeasured(t *testing.T) {
	w := surroundings(t)
	w.replica = w.join(replicaOptions{})
	registry := prometheus.NewRegistry()
	gate := w.gate(w.replica, 30)
	gate.Metrics = recallvendor.NewGateMetrics(registry)
	for range 6 { // a burst of 3
		_ = gate.Enter(t.Context(), recall.Other, 1)
	}
	gate.Pause(t.Context(), recall.Lists, time.Minute)
	for series, want := range map[string]float64{
		`recall_limit_wait_seconds{work="registration"}`: 3, `recall_limit_refusals_total{work="registration"}`: 3,
		`recall_limit_refusals_total{work="reconciliation"}`: 0, `recall_paused{kind="list"}`: 1, `recall_paused{kind="other"}`: 0,
	} {
		if got := testkit.MetricValue(t, registry, "tokenprovider_"+series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	// Another replica reads the pause with its next request.
	elsewhere, other := prometheus.NewRegistry(), w.gate(w.join(replicaOptions{}), 30)
	other.Metrics = recallvendor.NewGateMetrics(elsewhere)
	_ = other.Enter(t.Context(), recall.Lists, 1)
	if testkit.MetricValue(t, elsewhere, `tokenprovider_recall_paused{kind="list"}`) != 1 {
		t.Error("another replica does not export the pause")
	}
}

func TestExpiryOfCertificatesIsExported(t *testing.T) {
	s, registry := secure(t, ""), prometheus.NewRegistry()
	registrar.MeasureCertificates(s.certificates, registry)
	for _, certificate := range []string{"server", "client_ca"} {
		ends := time.Unix(int64(testkit.MetricValue(t, registry, `tokenprovider_certificate_expiry_timestamp_seconds{certificate="`+certificate+`"}`)), 0)
		if left := time.Until(ends); left < 50*time.Minute || left > 70*time.Minute {
			t.Errorf("%s ends in %v, want an hour", certificate, left)
		}
	}
	registrar.MeasureCertificates(nil, registry) // plaintext
}
