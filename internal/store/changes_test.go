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

// follower writes down what it is told.
type follower struct{ told chan string }

func (f *follower) Synced()                { f.told <- "live" }
func (f *follower) Invalidate(id grant.ID) { f.told <- string(id) }
func (f *follower) Desynced(error)         { f.told <- "lost" }

// follow follows changes until the test ends, and waits until that is live.
func (f *fixture) follow() *follower {
	f.t.Helper()
	told := &follower{make(chan string, 10000)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.Subscribe(ctx, told) })
	f.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	told.await(f.t, "live")
	return told
}

// await waits until something is told, and returns what was told before.
func (f *follower) await(t *testing.T, what string) (before []string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case got := <-f.told:
			if got == what {
				return before
			}
			before = append(before, got)
		case <-deadline:
			t.Fatalf("%.8s was not told; but %d others were", what, len(before))
		}
	}
}

func testChangesAreTold(f *fixture) {
	ctx := f.t.Context()
	one, two := f.follow(), f.follow()
	told := func(what string, id grant.ID) {
		f.t.Helper()
		for _, follower := range []*follower{one, two} {
			if before := follower.await(f.t, string(id)); slices.ContainsFunc(before, func(s string) bool { return s != string(id) }) {
				f.t.Errorf("%s: told before: %d others", what, len(before))
			}
		}
	}
	g := f.consent("ann", past)
	told("a consent", g.ID)
	g = f.link(g)
	told("a credential", g.ID)
	claim := f.claimDue(g.ID, "a")
	if err := f.Fail(ctx, claim, grant.Unspent, 0, "no"); err != nil {
		f.t.Fatal(err)
	}
	told("a failure", g.ID)
	if err := f.Commit(ctx, g.ID, claim.Spent, tokens(1), future); err != nil {
		f.t.Fatal(err)
	}
	told("a commit", g.ID)
	g = f.get(g.ID)
	if err := f.Remove(ctx, g.ID, g.Version, store.ConsentOutcome{}); err != nil {
		f.t.Fatal(err)
	}
	told("a removal", g.ID)
	for i := range 30 { // in every corner of the store
		told("a grant", f.consent(fmt.Sprint("user-", i), future).ID)
	}
}

func testALostSubscriptionIsTold(f *fixture) {
	told := f.follow()
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
			return // the embedded Redis cuts no connections
		}
		f.t.Fatal(err)
	}
	told.await(f.t, "lost")
	told.await(f.t, "live")
	told.await(f.t, string(f.consent("ann", future).ID))
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
			if _, err := f.ReadServingRecord(f.t.Context(), grant.NewID(app, fmt.Sprint("stranger-", i))); !errors.Is(err, grant.ErrNotFound) {
				f.t.Errorf("a stranger: %v, want ErrNotFound", err)
			}
		})
	}
	wg.Wait()
	gone, cancel := context.WithCancel(f.t.Context())
	cancel()
	if _, err := f.ReadServingRecord(gone, ids[0]); err != nil && (!errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnavailable)) {
		f.t.Errorf("whoever has left is told %v", err)
	}
}

func testGrantsOfAZoomUser(f *fixture) {
	ctx := f.t.Context()
	ann, bob := f.consent("ann", future), f.consent("bob", future)
	same := store.Change{Identity: &store.Identity{ZoomUser: "zoom-ann", ZoomAccount: "account"}}
	bob, err := f.Change(ctx, bob.ID, bob.Version, same) // a Zoom user who is two users here
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

func testDeauthorized(f *fixture) {
	ctx := f.t.Context()
	g := f.link(f.consent("ann", past)) // with tokens that were issued just now
	if err := f.Deauthorize(ctx, g.ID, time.Now().Add(-time.Minute)); !errors.Is(err, grant.ErrFresh) {
		f.t.Errorf("a removal before the consent: %v, want ErrFresh", err)
	}
	f.wantState(g.ID, grant.Active)
	if err := f.Deauthorize(ctx, g.ID, time.Now().Add(time.Second)); err != nil {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.Deleting)
	if got := f.get(g.ID); got.Reason == "" || got.Credential == "" {
		f.t.Errorf("marked as %+v, want a reason, and the credential that has to go", got)
	}
	if _, due := f.dueIn(g.ID); due {
		f.t.Error("it is still to be renewed")
	}
	if err := f.Deauthorize(ctx, g.ID, time.Now().Add(time.Second)); !errors.Is(err, grant.ErrDeleting) {
		f.t.Errorf("told again: %v, want ErrDeleting", err)
	}
	wantError(f.t, f.Deauthorize(ctx, grant.NewID(app, "nobody"), time.Now()), grant.ErrNotFound)
}

// TestSilentRedis follows a Redis that stops answering without a word.
func TestSilentRedis(t *testing.T) {
	server := testkit.StartRedis(t)
	f := &fixture{store.New(server.Client(), testkit.Keyset(t)), nil, t}
	why := make(chan error, 100)
	told := &silent{follower{make(chan string, 1000)}, why}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.Subscribe(ctx, told) })
	defer running.Wait()
	defer cancel()
	told.await(t, "live")
	server.Freeze()
	told.await(t, "lost")
	if err := <-why; !errors.Is(err, store.ErrNoReply) {
		t.Errorf("lost because of %v, want ErrSilent", err)
	}
	server.Thaw()
	told.await(t, "live")
	told.await(t, string(f.consent("ann", future).ID))
}

type silent struct {
	follower
	why chan error
}

func (s *silent) Desynced(why error) {
	s.why <- why
	s.follower.Desynced(why)
}
