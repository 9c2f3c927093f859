package registrar_test

import (
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/store"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

func (w *world) callback(address string) int {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, address, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		w.t.Fatal("a callback got no response")
	}
	_ = response.Body.Close()
	return response.StatusCode
}

func TestRotateCallbackSecret(t *testing.T) {
	w := start(t)
	first := w.register(byCode("ann", w.code("zoom-ann")))
	before := w.recall.Credentials()[0]
	response, err := w.RotateCallbackSecret(t.Context(), &registrarv1.RotateCallbackSecretRequest{UserId: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	user := response.GetUser()
	wantState(t, user, registrarv1.State_STATE_ACTIVE)
	after := w.recall.Credentials()[0]
	if user.GetRecallCredentialId() != after.ID || after.ID == first.GetRecallCredentialId() || after.AccessTokenCallbackURL == before.AccessTokenCallbackURL || user.GetReason() != "" {
		t.Errorf("rotated into %v", user)
	}
	w.wantCredentials("zoom-ann")
	if counts := w.recall.Counts(); counts.Creates != 2 || counts.Deletes != 1 || counts.Lists != 0 || counts.Conflicts != 0 {
		t.Errorf("%+v", counts)
	}
	// Callbacks that Recall has already started still succeed; then the secret expires.
	if status := w.callback(before.AccessTokenCallbackURL); status != http.StatusOK {
		t.Errorf("the old URL returns %d just after", status)
	}
	g, err := w.store.Get(t.Context(), grant.NewID("default", "ann"))
	if err != nil || len(g.Secrets) != 2 {
		t.Fatal(len(g.Secrets), err)
	}
	keys := g.Secrets
	for i := range keys {
		if !keys[i].NotAfter.IsZero() {
			if in := time.Until(keys[i].NotAfter); in < 50*time.Second || in > time.Minute {
				t.Errorf("the old secret ends in %v, want a minute", in)
			}
			keys[i].NotAfter = time.Now().Add(-time.Second)
		}
	}
	if _, err := w.store.Change(t.Context(), g.ID, g.Version, store.Change{Secrets: &keys}); err != nil {
		t.Fatal(err)
	}
	if status := w.callback(before.AccessTokenCallbackURL); status != http.StatusNotFound {
		t.Errorf("the old URL returns %d after its expiry", status)
	}
	w.wantCredentials("zoom-ann")

	_, err = w.RotateCallbackSecret(t.Context(), &registrarv1.RotateCallbackSecretRequest{UserId: "unknown"})
	wantFailure(t, err, codes.NotFound)
}

func TestRotationThatIsInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		fault  recalltest.Fault
	}{
		"removal refused":     {http.MethodDelete, recalltest.Fault{Status: 503}},
		"removal's response":  {http.MethodDelete, recalltest.Fault{DropAfter: true}},
		"creation refused":    {http.MethodPost, recalltest.Fault{Status: 429}},
		"creation lost":       {http.MethodPost, recalltest.Fault{DropBefore: true}},
		"creation's response": {http.MethodPost, recalltest.Fault{DropAfter: true}},
		"creation failing":    {http.MethodPost, recalltest.Fault{Status: 500}},
		"creation, then fail": {http.MethodPost, recalltest.Fault{Status: 500, DropAfter: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			w.register(byCode("ann", w.code("zoom-ann")))
			before := w.recall.Credentials()[0]
			w.recall.Fail(c.method, credentialsPath, 1, c.fault)
			response, err := w.RotateCallbackSecret(t.Context(), &registrarv1.RotateCallbackSecretRequest{UserId: "ann"})
			if err != nil {
				t.Fatal(err)
			}
			wantState(t, response.GetUser(), registrarv1.State_STATE_PENDING)
			if response.GetUser().GetReason() == "" {
				t.Error("no reason is given")
			}
			w.finish(func() bool { return w.get("ann").GetState() == registrarv1.State_STATE_ACTIVE })
			w.wantCredentials("zoom-ann")
			if w.recall.Credentials()[0].AccessTokenCallbackURL == before.AccessTokenCallbackURL {
				t.Error("the old URL is still Recall's")
			}
		})
	}
}

func TestRotateWhileBeingRemoved(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	w.recall.Fail(http.MethodDelete, credentialsPath, 1, recalltest.Fault{Status: 500})
	_, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann"})
	wantFailure(t, err, codes.Unavailable)
	_, err = w.RotateCallbackSecret(t.Context(), &registrarv1.RotateCallbackSecretRequest{UserId: "ann"})
	wantFailure(t, err, codes.FailedPrecondition)
}
