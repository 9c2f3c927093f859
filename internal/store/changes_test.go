package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

// recorder records the calls of a ChangeListener.
type recorder struct{ calls chan string }

func (r *recorder) Synced()                { r.calls <- "synced" }
func (r *recorder) Invalidate(id grant.ID) { r.calls <- string(id) }
func (r *recorder) Desynced(error)         { r.calls <- "desynced" }

// subscribe records changes until the test ends. It returns once it is synced.
func (f *fixture) subscribe() *recorder {
	f.t.Helper()
	listener := &recorder{make(chan string, 10000)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.Subscribe(ctx, listener) })
	f.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	listener.await(f.t, "synced")
	return listener
}

// await waits for a call and returns the calls before it.
func (r *recorder) await(t *testing.T, call string) (before []string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case got := <-r.calls:
			if got == call {
				return before
			}
			before = append(before, got)
		case <-deadline:
			t.Fatalf("no call %.8s; %d others", call, len(before))
		}
	}
}

func testChangesAreReported(f *fixture) {
	ctx := f.t.Context()
	one, two := f.subscribe(), f.subscribe()
	reported := func(what string, id grant.ID) {
		f.t.Helper()
		for _, listener := range []*recorder{one, two} {
			if before := listener.await(f.t, string(id)); slices.ContainsFunc(before, func(s string) bool { return s != string(id) }) {
				f.t.Errorf("%s: %d other ids first", what, len(before))
			}
		}
	}
	g := f.consent("ann", past)
	reported("a consent", g.ID)
	g = f.link(g)
	reported("a credential", g.ID)
	claim := f.claimDue(g.ID, "a")
	if err := f.Fail(ctx, claim, grant.OutcomeUnspent, 0, "no"); err != nil {
		f.t.Fatal(err)
	}
	reported("a failure", g.ID)
	if err := f.Commit(ctx, g.ID, claim.Spent, tokens(1), future); err != nil {
		f.t.Fatal(err)
	}
	reported("a commit", g.ID)
	g = f.get(g.ID)
	if err := f.Remove(ctx, g.ID, g.Version, store.ConsentOutcome{}); err != nil {
		f.t.Fatal(err)
	}
	reported("a removal", g.ID)
	for i := range 30 { // in many shards
		reported("a grant", f.consent(fmt.Sprint("user-", i), future).ID)
	}
}

func testLostSubscriptionIsReported(f *fixture) {
	listener := f.subscribe()
	cut := func(ctx context.Context, c redis.UniversalClient) error {
		return c.Do(ctx, "CLIENT", "KILL", "TYPE", "PUBSUB").Err()
	}
	var err error
	switch client := f.client.UniversalClient.(type) {
	case *redis.ClusterClient:
		err = client.ForEachMaster(f.t.Context(), func(ctx context.Context, c *redis.Client) error { return cut(ctx, c) })
	default:
		err = cut(f.t.Context(), client)
	}
	if err != nil {
		if strings.Contains(err.Error(), "unknown") || strings.Contains(err.Error(), "syntax") || strings.Contains(err.Error(), "ERR") {
			return // the embedded Redis cannot close connections
		}
		f.t.Fatal(err)
	}
	listener.await(f.t, "desynced")
	listener.await(f.t, "synced")
	listener.await(f.t, string(f.consent("ann", future).ID))
}

func testReadsShareRoundTrips(f *fixture) {
	const grants, readers = 20, 200
	var ids []grant.ID
	for i := range grants {
		ids = append(ids, f.consent(fmt.Sprint("user-", i), future).ID)
	}
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			serving, err := f.ReadServingRecord(f.t.Context(), ids[i%grants])
			if err != nil || serving.Access.Reveal() != "plain-access-0" {
				f.t.Errorf("read %v", err)
			}
			if _, err := f.ReadServingRecord(f.t.Context(), grant.NewID(app, fmt.Sprint("unknown-", i))); !errors.Is(err, grant.ErrNotFound) {
				f.t.Errorf("an unknown user: %v, want ErrNotFound", err)
			}
		})
	}
	wg.Wait()
	gone, cancel := context.WithCancel(f.t.Context())
	cancel()
	if _, err := f.ReadServingRecord(gone, ids[0]); err != nil && (!errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnavailable)) {
		f.t.Errorf("after its context ended, a read returned %v", err)
	}
}

func testGrantsOfAZoomUser(f *fixture) {
	ctx := f.t.Context()
	ann, bob := f.consent("ann", future), f.consent("bob", future)
	same := store.Change{Identity: &store.Identity{ZoomUser: "zoom-ann", ZoomAccount: "account"}}
	bob, err := f.Change(ctx, bob.ID, bob.Version, same) // two users share one Zoom user
	if err != nil {
		f.t.Fatal(err)
	}
	f.consent("an", future)
	f.consent("anna", future)
	want := func(app, user string, ids ...grant.ID) {
		f.t.Helper()
		got, err := f.ByZoomUser(ctx, app, user)
		slices.Sort(got)
		slices.Sort(ids)
		if err != nil || !slices.Equal(got, ids) {
			f.t.Errorf("%s has %v, %v, want %v", user, got, err, ids)
		}
	}
	want(app, "zoom-ann", ann.ID, bob.ID)
	want(app, "zoom-bob")
	want("another", "zoom-ann")
	if err := f.Remove(ctx, bob.ID, bob.Version, store.ConsentOutcome{}); err != nil {
		f.t.Fatal(err)
	}
	want(app, "zoom-ann", ann.ID)
	if _, err := f.Change(ctx, ann.ID, ann.Version, store.Change{Identity: &store.Identity{}}); err != nil {
		f.t.Fatal(err)
	}
	want(app, "zoom-ann")
}

func testDeauthorize(f *fixture) {
	ctx := f.t.Context()
	g := f.link(f.consent("ann", past)) // with tokens that were issued just now
	if err := f.Deauthorize(ctx, g.ID, time.Now().Add(-time.Minute)); !errors.Is(err, grant.ErrFresh) {
		f.t.Errorf("a removal before the consent: %v, want ErrFresh", err)
	}
	f.wantState(g.ID, grant.StateActive)
	if err := f.Deauthorize(ctx, g.ID, time.Now().Add(time.Second)); err != nil {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.StateDeleting)
	if got := f.get(g.ID); got.Reason == "" || got.Credential == "" {
		f.t.Errorf("marked as %+v, want a reason, and the credential to delete", got)
	}
	if _, due := f.dueIn(g.ID); due {
		f.t.Error("a deauthorized grant is still due")
	}
	if err := f.Deauthorize(ctx, g.ID, time.Now().Add(time.Second)); !errors.Is(err, grant.ErrDeleting) {
		f.t.Errorf("repeated: %v, want ErrDeleting", err)
	}
	wantError(f.t, f.Deauthorize(ctx, grant.NewID(app, "missing"), time.Now()), grant.ErrNotFound)
}

// TestRedisStopsResponding freezes Redis: connections stay open, without replies.
func TestRedisStopsResponding(t *testing.T) {
	server := testkit.StartRedis(t)
	f := &fixture{store.New(server.Client(), testkit.Keyset(t)), nil, t}
	why := make(chan error, 100)
	listener := &causeRecorder{recorder{make(chan string, 1000)}, why}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.Subscribe(ctx, listener) })
	defer running.Wait()
	defer cancel()
	listener.await(t, "synced")
	server.Freeze()
	listener.await(t, "desynced")
	if err := <-why; !errors.Is(err, store.ErrNoReply) {
		t.Errorf("desynced because of %v, want ErrNoReply", err)
	}
	server.Thaw()
	listener.await(t, "synced")
	listener.await(t, string(f.consent("ann", future).ID))
}

type causeRecorder struct {
	recorder
	why chan error
}

func (r *causeRecorder) Desynced(why error) {
	r.why <- why
	r.recorder.Desynced(why)
}
