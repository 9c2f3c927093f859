package registrar_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

func (w *world) wantNoSpentCodes() {
	w.t.Helper()
	if n := w.zoom.Counts().SpentCodes; n != 0 {
		w.t.Errorf("%d codes were presented to Zoom after they were spent", n)
	}
}

func TestSpentCodeIsAnsweredWithWhatCameOfIt(t *testing.T) {
	w := start(t)
	first := byCode("ann", w.code("zoom-ann"))
	w.register(first)
	now := w.register(byCode("ann", w.code("zoom-ann")))
	if again := w.register(first); !proto.Equal(again, now) {
		t.Errorf("the code before the last returns %v, want %v", again, now)
	}
	w.wantNoSpentCodes()

	if _, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := w.RegisterUser(t.Context(), first)
		if f := wantFailure(t, err, codes.InvalidArgument); f.fields["authorization_code.code"] == "" {
			t.Errorf("details: %+v", f)
		}
	}
	w.wantNoSpentCodes()
	w.wantCredentials()
}

func TestTakenIsAnsweredAgain(t *testing.T) {
	w := start(t)
	w.recall.AddCredential(recalltest.Credential{UserID: "zoom-ann", AccountID: "acc", AccessTokenCallbackURL: "https://other.example/x"})
	request := byCode("ann", w.code("zoom-ann"))
	for range 3 {
		_, err := w.RegisterUser(t.Context(), request)
		f := wantFailure(t, err, codes.AlreadyExists)
		if f.info.GetMetadata()["conflicting_zoom_user_id"] != "zoom-ann" || f.info.GetMetadata()["conflicting_zoom_account_id"] != "acc" {
			t.Errorf("details: %v", f.info)
		}
	}
	w.wantNoSpentCodes()
	if _, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "ann"}); status.Code(err) != codes.NotFound {
		t.Errorf("the user is still there: %v", err)
	}
}

func TestAnotherZoomUserWhoIsTakenChangesNothing(t *testing.T) {
	w := start(t)
	before := w.register(byCode("ann", w.code("zoom-ann")))
	w.recall.AddCredential(recalltest.Credential{UserID: "zoom-bob", AccountID: "acc", AccessTokenCallbackURL: "https://other.example/x"})
	request := byCode("ann", w.code("zoom-bob"))
	for range 2 {
		_, err := w.RegisterUser(t.Context(), request)
		if f := wantFailure(t, err, codes.AlreadyExists); f.info.GetMetadata()["conflicting_zoom_user_id"] != "zoom-bob" {
			t.Errorf("details: %v", f.info)
		}
	}
	if after := w.get("ann"); !proto.Equal(before, after) {
		t.Errorf("the user has become %v", after)
	}
	w.wantNoSpentCodes()
}

func TestZoomUserOfAnotherUser(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	_, err := w.RegisterUser(t.Context(), byCode("bob", w.code("zoom-ann")))
	wantFailure(t, err, codes.AlreadyExists)
	w.wantCredentials("zoom-ann")
}

// RunUnfinished detects later that a new consent is another Zoom user's.
func TestAnotherZoomUserIsNoticedLate(t *testing.T) {
	w := start(t)
	first := w.register(byCode("ann", w.code("zoom-ann")))
	w.zoom.Fail("/v2/users/me", 2, zoomtest.Fault{Status: 503})
	user := w.register(byCode("ann", w.code("zoom-bob")))
	wantState(t, user, registrarv1.State_STATE_ACTIVE) // as far as is known
	w.finish(func() bool {
		return w.get("ann").GetZoomUserId() == "zoom-bob" && w.get("ann").GetRecallCredentialId() != ""
	})
	if got := w.get("ann"); got.GetRecallCredentialId() == first.GetRecallCredentialId() {
		t.Error("the credential is the first Zoom user's")
	}
	w.wantCredentials("zoom-bob")
}

// heirTo starts a registrar with the journal of a dead one.
func (w *world) heirTo(dead *replica) *replica {
	w.t.Helper()
	heir := w.join(replicaOptions{folder: w.bury(dead)})
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		heir.rotator.Run(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return heir
}

func TestReplicaDiesWithTheAnswerInItsJournal(t *testing.T) {
	w := start(t)
	w.register(byCode("eve", w.code("zoom-eve")))
	doomed := w.join(replicaOptions{workTime: 2 * time.Second})
	doomed.life.endWith("POST /oauth/token") // the response is on disk by then
	request := byCode("ann", w.code("zoom-ann"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := doomed.RegisterUser(ctx, request)
	if err == nil {
		t.Fatal("a dead registrar has responded")
	}

	// Other calls wait for the response, and return how long.
	awaitUnlocked := func() failure {
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := w.RegisterUser(ctx, request)
			cancel()
			if f := read(t, err); f.code != codes.DeadlineExceeded {
				return f
			}
		}
	}
	if f := awaitUnlocked(); f.code != codes.Unavailable || f.retryIn <= 0 || f.retryIn > 2*time.Second {
		t.Errorf("while the response is awaited: %+v", f)
	}
	if n := w.zoom.Counts().Exchanges; n != 2 {
		t.Fatalf("%d codes were exchanged, want 2", n)
	}
	heir := w.heirTo(doomed)
	for {
		response, err := w.RegisterUser(t.Context(), request)
		if err == nil {
			wantState(t, response.GetUser(), registrarv1.State_STATE_ACTIVE)
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := heir.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "ann"}); err != nil {
		t.Error(err)
	}
	w.wantNoSpentCodes()
	w.wantCredentials("zoom-eve", "zoom-ann")
}

func TestJournalDoesNotBringBackWhoWasRemoved(t *testing.T) {
	for name, register := range map[string]bool{"registered before": true, "removed before it came": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			doomed := w.join(replicaOptions{workTime: 2 * time.Second})
			if register {
				w.RegistrarServiceClient = doomed.RegistrarServiceClient
				w.register(byCode("ann", w.code("zoom-ann")))
				w.RegistrarServiceClient = w.replica.RegistrarServiceClient
				doomed.life.dead.Store(true) // its journal still has the response
			} else {
				doomed.life.endWith("POST /oauth/token")
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := doomed.RegisterUser(ctx, byCode("ann", w.code("zoom-ann"))); err == nil {
					t.Fatal("a dead registrar has responded")
				}
			}
			if _, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann"}); err != nil {
				t.Fatal(err)
			}
			heir := w.heirTo(doomed)
			time.Sleep(1500 * time.Millisecond) // it replays its journal at once, and each second
			if _, err := heir.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "ann"}); status.Code(err) != codes.NotFound {
				t.Errorf("the user is back: %v", err)
			}
			w.wantCredentials()
		})
	}
}

func TestReplicaDiesBeforeTheCodeIsSent(t *testing.T) {
	w := surroundings(t)
	w.replica = w.join(replicaOptions{lateAnswer: 600 * time.Millisecond})
	doomed := w.join(replicaOptions{workTime: 2 * time.Second})
	ends := func(call string, after bool) bool { return !after && call == "POST /oauth/token" }
	doomed.life.ends.Store(&ends)
	request := byCode("ann", w.code("zoom-ann"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := doomed.RegisterUser(ctx, request); err == nil {
		t.Fatal("a dead registrar has responded")
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		response, err := w.RegisterUser(t.Context(), request)
		if err == nil {
			wantState(t, response.GetUser(), registrarv1.State_STATE_ACTIVE)
			break
		}
		wantFailure(t, err, codes.Unavailable)
		if time.Now().After(end) {
			t.Fatal("the code was never tried")
		}
	}
	w.wantCredentials("zoom-ann")
}

func TestLostAnswerOfZoom(t *testing.T) {
	w := start(t)
	w.zoom.Fail("/oauth/token", 1, zoomtest.Fault{DropAfter: true})
	request := byCode("ann", w.code("zoom-ann"))
	_, err := w.RegisterUser(t.Context(), request)
	wantFailure(t, err, codes.Unavailable)
	_, err = w.RegisterUser(t.Context(), request) // no replica has a response, so the call does not wait
	if f := wantFailure(t, err, codes.InvalidArgument); f.fields["authorization_code.code"] == "" {
		t.Errorf("details: %+v", f)
	}
	wantState(t, w.register(byCode("ann", w.code("zoom-ann"))), registrarv1.State_STATE_ACTIVE)
}

func TestDeauthorizedUserIsRemoved(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	w.register(byCode("bob", w.code("zoom-bob")))
	ids, err := w.store.ByZoomUser(t.Context(), "default", "zoom-ann")
	if err != nil || len(ids) != 1 {
		t.Fatal(ids, err)
	}
	w.recall.Fail(http.MethodDelete, credentialsPath, 1, recalltest.Fault{Status: 500})
	if err := w.store.Deauthorize(t.Context(), ids[0], time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	wantState(t, w.get("ann"), registrarv1.State_STATE_DELETING)
	w.finish(func() bool {
		_, err := w.store.Get(t.Context(), ids[0])
		return err != nil
	})
	w.wantCredentials("zoom-bob")
	if keys, err := w.redis.Client().Keys(t.Context(), "tp1:*grant:"+string(ids[0])).Result(); err != nil || len(keys) != 0 {
		t.Errorf("left in Redis: %v, %v", keys, err)
	}
	// The user consents again.
	wantState(t, w.register(byCode("ann", w.code("zoom-ann"))), registrarv1.State_STATE_ACTIVE)
	w.wantCredentials("zoom-ann", "zoom-bob")
}

func TestUserOfAnAppThatWasGivenUp(t *testing.T) {
	w := surroundings(t)
	w.replica = w.join(replicaOptions{apps: []string{"second"}})
	request := byCode("ann", w.zoom.Consent("second-client", "zoom-ann", redirect, ""))
	_, err := w.RegisterUser(t.Context(), request)
	if f := wantFailure(t, err, codes.InvalidArgument); f.fields["zoom_app"] == "" {
		t.Errorf("with several apps and none named: %+v", f)
	}
	request.ZoomApp = "second"
	wantState(t, w.register(request), registrarv1.State_STATE_ACTIVE)
	w.service.SetApps(nil)
	get := &registrarv1.GetUserRequest{UserId: "ann", ZoomApp: "second"}
	if _, err := w.GetUser(t.Context(), get); err != nil {
		t.Error(err)
	}
	if _, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann", ZoomApp: "second", RevokeGrant: true}); err != nil {
		t.Error(err)
	}
	_, err = w.GetUser(t.Context(), get)
	wantFailure(t, err, codes.InvalidArgument)
	w.wantCredentials()
}

// A registration that cannot be completed does not delay another.
func TestNobodyWaitsForOneUserForEver(t *testing.T) {
	w := start(t)
	w.recall.Fail(http.MethodPost, credentialsPath, -1, recalltest.Fault{Status: 503})
	for _, user := range []string{"ann", "bob", "cid", "dan"} {
		w.register(byCode(user, w.code("zoom-"+user)))
	}
	w.recall.Heal()
	w.zoom.RevokeUser("zoom-bob") // Recall refuses it: its callback gives no live token
	w.recall.AddCredential(recalltest.Credential{UserID: "zoom-cid", AccessTokenCallbackURL: "https://other.example/x"})
	w.finish(func() bool {
		return w.get("ann").GetState() == registrarv1.State_STATE_ACTIVE && w.get("dan").GetState() == registrarv1.State_STATE_ACTIVE &&
			w.get("cid").GetReason() == "not yet at Recall: the Zoom user belongs to a Recall credential that is not this user's"
	})
	for user, attempts := range map[string]int{"bob": 1, "cid": 2} {
		g, err := w.store.Get(t.Context(), grant.NewID("default", user))
		if err != nil || g.Attempts < attempts {
			t.Errorf("%s: %d attempts, %v", user, g.Attempts, err)
		}
	}
}
