package renewal_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoom"
	"tokenprovider/internal/zoomtest"
)

// TestReplicasRenewEachGrantOnce runs two replicas on a real Redis, with the strict
// stand-in for Zoom.
func TestReplicasRenewEachGrantOnce(t *testing.T) {
	keyset := testkit.Keyset(t)
	stand := zoomtest.New(zoomtest.Options{Latency: 20 * time.Millisecond})
	server := httptest.NewServer(stand)
	defer server.Close()
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	redis := testkit.StartRedis(t)
	replica := func() (*renewal.Renewer, *store.Store) {
		grants := store.New(redis.Client(), keyset)
		kept, err := journal.Open(t.TempDir(), keyset, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = kept.Close() })
		return renewal.New(renewal.Config{
			Store: grants, Journal: kept, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(), RefreshBefore: 5 * time.Minute,
			PauseAfterFailover: time.Nanosecond, VerifyDelay: time.Nanosecond,
			Apps: map[string]renewal.App{"default": {Zoom: zoom.New(zoom.Config{
				ClientID: zoomtest.DefaultClientID, ClientSecret: secret.New(zoomtest.DefaultClientSecret),
				OAuthURL: base, APIURL: base, HTTP: &http.Client{Transport: &http.Transport{}},
			})}},
		}), grants
	}
	one, grants := replica()
	two, _ := replica()

	const n = 40
	var ids []grant.ID
	for i := range n {
		user := fmt.Sprint("user-", i)
		access, refresh := stand.Grant(zoomtest.DefaultClientID, user)
		id := grant.NewID("default", user)
		now := time.Now()
		if _, err := grants.AcceptConsent(t.Context(), id, grant.Consent{
			App: "default", User: user,
			Tokens: grant.Tokens{Access: secret.New(access), Refresh: secret.New(refresh), Issued: now.Add(-time.Hour), Expires: now},
		}, now.Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	var wg sync.WaitGroup
	for _, id := range ids {
		for _, renewer := range []*renewal.Renewer{one, two} {
			wg.Go(func() {
				done := make(chan error, 1)
				if renewer.RenewDue("default", id, func(err error) { done <- err }) {
					t.Log("a scheduled renewal ended with:", <-done)
				}
			})
			wg.Go(func() {
				serving, err := grants.ReadServingRecord(t.Context(), id)
				if err == nil {
					serving, err = renewer.EnsureFresh(t.Context(), id, serving, time.Minute)
				}
				if err != nil || !serving.HasTTL(time.Minute, time.Now()) {
					t.Errorf("served a token until %v, %v", serving.Expires, err)
				}
			})
		}
	}
	wg.Wait()
	if counts := stand.Counts(); counts.Refreshes != n || counts.SpentPresented != 0 || counts.UnknownPresented != 0 {
		t.Errorf("%+v, want %d refreshes and nothing else", counts, n)
	}
	for _, id := range ids {
		serving, err := grants.ReadServingRecord(t.Context(), id)
		if err != nil || !stand.IsLive(serving.Access.Reveal()) {
			t.Errorf("the stored token of %s is dead, or %v", id, err)
		}
	}
	for _, renewer := range []*renewal.Renewer{one, two} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := renewer.Close(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}
}
