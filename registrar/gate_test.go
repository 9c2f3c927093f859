package registrar_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"tokenprovider/internal/recall"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/recallvendor"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

func (w *world) gate(r *replica, perMinute int) *recallvendor.Gate {
	return &recallvendor.Gate{Quota: r.store, PerMinute: perMinute, Log: w.log, MaxWait: 100 * time.Millisecond}
}

func TestRecallsLimitIsSharedByReplicas(t *testing.T) {
	w := start(t)
	other := w.join(replicaOptions{})
	gates := []*recallvendor.Gate{w.gate(w.replica, 100), w.gate(other, 100)}
	admitted := 0
	for i := range 60 {
		err := gates[i%2].Enter(t.Context(), recall.Other, 1)
		var limit *recall.LimitError
		switch {
		case err == nil:
			admitted++
		case !errors.As(err, &limit) || limit.For <= 0:
			t.Fatal(err)
		}
	}
	if admitted < 10 || admitted > 20 { // a burst of 10, and the quota of the time since
		t.Errorf("%d of 60 requests were admitted, want 10 or some more", admitted)
	}
	// Background requests need more quota than is left.
	background := *gates[0]
	background.Background = true
	var limit *recall.LimitError
	if err := background.Enter(t.Context(), recall.Other, 0); !errors.As(err, &limit) {
		t.Errorf("a background request was admitted: %v", err)
	}
}

func TestRetryAfterPausesAllReplicas(t *testing.T) {
	w := surroundings(t)
	w.replica = w.join(replicaOptions{})
	through := w.replica.recall.WithGate(w.gate(w.replica, 10_000))
	other := w.replica.recall.WithGate(w.gate(w.join(replicaOptions{}), 10_000))
	w.recall.Fail(http.MethodGet, credentialsPath, 1, recalltest.Fault{Status: 429, Header: http.Header{"Retry-After": {"30"}}})
	_, err := through.Get(t.Context(), "x")
	var refused *recall.RefusedError
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	var limit *recall.LimitError
	if _, err := other.Get(t.Context(), "x"); !errors.As(err, &limit) || limit.For < 25*time.Second || limit.For > 30*time.Second {
		t.Errorf("another replica: %v, want it to wait for 30 s", err)
	}
	if err := other.List(t.Context(), recall.Filter{}, func(recall.Credential) bool { return true }); err != nil {
		t.Errorf("lists are another kind: %v", err)
	}
}

// Users stay pending while the limit is reached, and no request reaches Recall.
func TestRegistrationOverTheLimit(t *testing.T) {
	w := surroundings(t)
	quota := w.join(replicaOptions{})
	w.replica = w.join(replicaOptions{gate: w.gate(quota, 30)})
	w.RegistrarServiceClient = w.replica.RegistrarServiceClient
	pending := 0
	for i := range 6 { // a burst of 3
		user := w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
		if user.GetState() == registrarv1.State_STATE_PENDING {
			pending++
			if user.GetReason() != "not yet at Recall: the limit of requests to Recall is used up" {
				t.Errorf("reason %q", user.GetReason())
			}
		}
	}
	if pending < 2 || w.recall.Counts().Creates != 6-pending {
		t.Errorf("%d pending, %d credentials", pending, w.recall.Counts().Creates)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.service.RunUnfinished(ctx, 50*time.Millisecond)
	}()
	for w.recall.Counts().Creates < 6 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-ended
	if counts := w.recall.Counts(); counts.Creates != 6 || counts.Lists != 0 {
		t.Errorf("%+v: want a credential for every user, and no list, as no create was sent before", counts)
	}
}
