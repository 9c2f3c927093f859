package registrar_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/store"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// watch is a stream of changes, read by the test.
type watch struct {
	t      *testing.T
	stream registrarv1.RegistrarService_WatchUsersClient
	token  string
	leave  context.CancelFunc
}

func (r *replica) watch(t *testing.T, state registrarv1.State, token string) *watch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := r.WatchUsers(ctx, &registrarv1.WatchUsersRequest{State: state, ResumeToken: token})
	if err != nil {
		t.Fatal(err)
	}
	w := &watch{t: t, stream: stream, leave: cancel}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if first.GetUser() != nil || first.GetResumeToken() == "" {
		t.Errorf("the first message is %v", first)
	}
	w.token = first.GetResumeToken()
	return w
}

// next is the next change.
func (w *watch) next() *registrarv1.WatchUsersResponse {
	w.t.Helper()
	for {
		m, err := w.stream.Recv()
		if err != nil {
			w.t.Fatal(err)
		}
		w.token = m.GetResumeToken()
		if m.GetUser() != nil {
			return m
		}
	}
}

// until reads changes until one is of this user in this state.
func (w *watch) until(user string, state registrarv1.State) *registrarv1.WatchUsersResponse {
	w.t.Helper()
	for {
		if m := w.next(); m.GetUser().GetUserId() == user && m.GetUser().GetState() == state {
			return m
		}
	}
}

func TestWatchUsers(t *testing.T) {
	w := surroundings(t)
	w.replica = w.join(replicaOptions{})
	other := w.join(replicaOptions{})
	w.register(byCode("eve", w.code("zoom-eve"))) // before any watch

	all := other.watch(t, registrarv1.State_STATE_UNSPECIFIED, "")
	active := other.watch(t, registrarv1.State_STATE_ACTIVE, "")
	w.recall.Fail(http.MethodPost, credentialsPath, 1, recalltest.Fault{Status: 500})
	code := w.code("zoom-ann")
	w.register(byCode("ann", code))
	pending := all.until("ann", registrarv1.State_STATE_PENDING)
	if pending.GetUser().GetRecallCredentialId() != "" {
		t.Errorf("pending: %v", pending)
	}
	user := w.register(byCode("ann", code))
	if got := all.until("ann", registrarv1.State_STATE_ACTIVE); got.GetUser().GetRecallCredentialId() != user.GetRecallCredentialId() {
		t.Errorf("active: %v", got)
	}
	if got := active.next(); got.GetUser().GetState() != registrarv1.State_STATE_ACTIVE || got.GetUser().GetUserId() != "ann" {
		t.Errorf("a watch of active users gets %v", got)
	}

	// A change may be sent twice. The changes of a shard are sent in order: once a later
	// one is sent, all of ann's have been.
	later := "later"
	for shard := grant.NewID("default", "ann").Shard(); grant.NewID("default", later).Shard() != shard; {
		later += "+"
	}
	w.register(byCode(later, w.code("zoom-later")))
	all.until(later, registrarv1.State_STATE_ACTIVE)

	// A renewal is not sent; a removal is.
	w.age("ann", 59*time.Minute)
	if _, err := w.GetAccessToken(t.Context(), &registrarv1.GetAccessTokenRequest{UserId: "ann"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann"}); err != nil {
		t.Fatal(err)
	}
	for {
		m := all.next()
		if m.GetUser().GetUserId() == "ann" && m.GetUser().GetState() == registrarv1.State_STATE_ACTIVE {
			t.Errorf("got a renewal: %v", m)
		}
		if m.GetRemoved() {
			if m.GetUser().GetUserId() != "ann" || m.GetUser().GetZoomApp() != "default" {
				t.Errorf("got a removal: %v", m)
			}
			break
		}
	}

	// After a break, it continues at another replica.
	all.leave()
	w.register(byCode("bob", w.code("zoom-bob")))
	w.register(byCode("cid", w.code("zoom-cid")))
	again := w.watch(t, registrarv1.State_STATE_UNSPECIFIED, all.token)
	again.until("bob", registrarv1.State_STATE_ACTIVE)
	resumed := other.watch(t, registrarv1.State_STATE_ACTIVE, again.token)
	resumed.until("cid", registrarv1.State_STATE_ACTIVE)
}

func TestWatchEndsWhenTheRegistrarStops(t *testing.T) {
	w := start(t)
	watch := w.watch(t, registrarv1.State_STATE_UNSPECIFIED, "")
	w.service.EndWatches()
	_, err := watch.stream.Recv()
	if f := wantFailure(t, err, codes.Unavailable); f.retryIn <= 0 {
		t.Errorf("%+v", f)
	}
}

func TestWatchRefusesABadToken(t *testing.T) {
	w := start(t)
	var position store.Position
	for _, token := range []string{"nonsense", position.Token() + "AA", position.Token()[:40]} {
		stream, err := w.WatchUsers(t.Context(), &registrarv1.WatchUsersRequest{ResumeToken: token})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if f := wantFailure(t, err, codes.InvalidArgument); f.fields["resume_token"] == "" {
			t.Errorf("%+v", f)
		}
	}
	stream, err := w.WatchUsers(t.Context(), &registrarv1.WatchUsersRequest{State: 77})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	if f := wantFailure(t, err, codes.InvalidArgument); f.fields["state"] == "" {
		t.Errorf("%+v", f)
	}
}

func TestWatchThatWasAwayForTooLong(t *testing.T) {
	w := start(t)
	g := w.register(byCode("ann", w.code("zoom-ann")))
	watch := w.watch(t, registrarv1.State_STATE_UNSPECIFIED, "")
	watch.leave()
	id := grant.NewID("default", "ann")
	stream := fmt.Sprintf("tp1:{s%03d}:changes", id.Shard())
	for i := range 3 {
		reason := fmt.Sprint("reason ", i)
		read, err := w.store.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.store.Change(t.Context(), id, read.Version, store.Change{Reason: &reason}); err != nil {
			t.Fatal(err)
		}
	}
	// As if 4,096 more had come.
	if err := w.redis.Client().XTrimMaxLen(t.Context(), stream, 1).Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	resumed, err := w.WatchUsers(ctx, &registrarv1.WatchUsersRequest{ResumeToken: watch.token})
	for err == nil {
		var m *registrarv1.WatchUsersResponse
		if m, err = resumed.Recv(); m.GetUser() != nil {
			t.Errorf("got %v of %v, with changes missing before it", m, g)
		}
	}
	f := wantFailure(t, err, codes.OutOfRange)
	if f.info.GetReason() != "RESUME_TOKEN_EXPIRED" {
		t.Errorf("details: %+v", f.info)
	}
}

// A watcher that reads nothing does not delay the others.
func TestSlowWatcher(t *testing.T) {
	w := start(t)
	slow := w.watch(t, registrarv1.State_STATE_UNSPECIFIED, "")
	quick := w.watch(t, registrarv1.State_STATE_UNSPECIFIED, "")
	for i := range 10 {
		w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
	}
	quick.until("user-9", registrarv1.State_STATE_ACTIVE)
	seen := map[string]bool{}
	for len(seen) < 10 {
		seen[slow.next().GetUser().GetUserId()] = true
	}
	slow.leave()
	for {
		if _, err := slow.stream.Recv(); errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
			return
		}
	}
}
