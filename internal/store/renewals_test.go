package store_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

func testLateResponseIsAwaited(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)
	dead, err := f.Claim(ctx, g.ID, "dead", grant.ClaimTerms{Lease: time.Millisecond})
	if err != nil {
		f.t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond) // the lease ends
	for _, terms := range []grant.ClaimTerms{
		{Lease: lease, LateResponseWait: time.Minute, ValidUntil: future.Add(time.Hour)},
		{Lease: lease, LateResponseWait: time.Minute},
	} {
		_, err = f.Claim(ctx, g.ID, "second", terms)
		var held *grant.HeldError
		if !errors.As(err, &held) && !errors.Is(err, grant.ErrFresh) || held != nil && (held.For < 50*time.Second || held.For > time.Minute) {
			f.t.Errorf("the next claim = %v, want it to wait for a minute", err)
		}
	}
	if err := f.Commit(ctx, g.ID, dead.Spent, tokens(1), past); err != nil {
		f.t.Fatal(err)
	}
	if claim := f.claimDue(g.ID, "next"); claim.Uncertain {
		f.t.Error("the late response did not end the uncertainty")
	}
}

func testReleasedClaimChangesNothing(f *fixture) {
	ctx := f.t.Context()
	g := f.link(f.consent("ann", past))
	claim := f.claimDue(g.ID, "a")
	if err := f.Fail(ctx, claim, grant.OutcomeReleased, time.Minute, ""); err != nil {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.StateActive)
	if got := f.get(g.ID); got.Version != g.Version || got.Reason != "" {
		f.t.Errorf("a released claim changed the grant: %+v", got)
	}
	if in, ok := f.dueIn(g.ID); !ok || in < 50*time.Second || in > time.Minute {
		f.t.Errorf("due in %v (%v), want in a minute", in, ok)
	}
	claim, err := f.Claim(ctx, g.ID, "b", grant.ClaimTerms{Lease: lease, ValidUntil: future.Add(48 * time.Hour)})
	if !errors.Is(err, grant.ErrFresh) { // fresh, and not held
		f.t.Errorf("the next claim = %+v, %v", claim, err)
	}
}

func testServedTokenIsNotRenewed(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)
	inUse := grant.ClaimTerms{Lease: lease, HandOffGuard: time.Minute}
	if err := f.MarkServed(ctx, g.ID); err != nil {
		f.t.Fatal(err)
	}
	_, err := f.Claim(ctx, g.ID, "a", inUse)
	var held *grant.HeldError
	if !errors.As(err, &held) || held.For < 50*time.Second {
		f.t.Errorf("a claim of a due grant = %v, want it to wait", err)
	}
	if in, ok := f.dueIn(g.ID); !ok || in < 50*time.Second {
		f.t.Errorf("due in %v (%v)", in, ok)
	}
	// A token that ends soon is renewed all the same.
	id := grant.NewID(app, "bob")
	old := tokens(0)
	old.Issued, old.Expires = time.Now().Add(-time.Hour), time.Now().Add(2*time.Minute)
	if err := f.Accept(ctx, id, grant.Consent{App: app, User: "bob", Tokens: old}, past); err != nil {
		f.t.Fatal(err)
	}
	if err := f.MarkServed(ctx, id); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.Claim(ctx, id, "a", inUse); err != nil {
		f.t.Errorf("a token that ends soon: %v", err)
	}
	// No record is created.
	missing := grant.NewID(app, "missing")
	if err := f.MarkServed(ctx, missing); err != nil {
		f.t.Fatal(err)
	}
	_, err = f.Get(ctx, missing)
	wantError(f.t, err, grant.ErrNotFound)
}

func testRenewTimeIsServed(f *fixture) {
	due := time.Now().Add(17 * time.Minute).Truncate(time.Millisecond)
	g := f.consent("ann", due)
	if serving, err := f.ReadServingRecord(f.t.Context(), g.ID); err != nil || !serving.RenewTime.Equal(due) {
		f.t.Errorf("renewal time %v, %v, want %v", serving.RenewTime, err, due)
	}
}

func testPauses(f *fixture) {
	ctx := f.t.Context()
	if left, err := f.PauseRemaining(ctx, app); err != nil || left != 0 {
		f.t.Errorf("paused for %v, %v", left, err)
	}
	for _, d := range []time.Duration{10 * time.Second, time.Minute, time.Second} { // the longest counts
		if err := f.Pause(ctx, app, d, "Zoom is down"); err != nil {
			f.t.Fatal(err)
		}
	}
	if left, err := f.PauseRemaining(ctx, app); err != nil || left < 50*time.Second || left > time.Minute {
		f.t.Errorf("paused for %v, %v, want a minute", left, err)
	}
	if left, err := f.PauseRemaining(ctx, "other"); err != nil || left != 0 {
		f.t.Errorf("another app is paused for %v, %v", left, err)
	}
}

func testReindexDue(f *fixture) {
	ctx := f.t.Context()
	users := sameShard(6)
	shard := grant.NewID(app, users[0]).Shard()
	f.consent(users[0], past)
	f.consent(users[1], future)
	held := f.consent(users[2], past)
	f.claimDue(held.ID, "a")
	gone := f.consent(users[3], past)
	if err := f.Fail(ctx, f.claimDue(gone.ID, "a"), grant.OutcomeGone, 0, "gone"); err != nil {
		f.t.Fatal(err)
	}
	deleting := f.consent(users[4], past)
	if _, err := f.Change(ctx, deleting.ID, deleting.Version, store.Change{Deleting: true}); err != nil {
		f.t.Fatal(err)
	}
	index := fmt.Sprintf("tp1:{s%03d}:due:%s", shard, grant.AppTag(app))
	scores := func() map[string]float64 {
		found := map[string]float64{}
		for _, z := range f.client.ZRangeWithScores(ctx, index, 0, -1).Val() {
			found[z.Member.(string)] = z.Score
		}
		return found
	}
	want := scores()
	if err := f.client.Del(ctx, index).Err(); err != nil {
		f.t.Fatal(err)
	}
	if err := f.client.ZAdd(ctx, index, redis.Z{Score: 1, Member: string(gone.ID)}, redis.Z{Score: 2, Member: string(grant.NewID(app, users[5]))}).Err(); err != nil {
		f.t.Fatal(err)
	}
	if n, err := f.ReindexDue(ctx, shard); err != nil || n != 5 {
		f.t.Errorf("indexed %d grants, %v, want 5", n, err)
	}
	if got := scores(); len(got) != 3 || fmt.Sprint(got) != fmt.Sprint(want) {
		f.t.Errorf("rebuilt %v, want %v", got, want)
	}
}

func TestRestartIsDetected(t *testing.T) {
	server := testkit.StartRedis(t)
	s := store.New(server.Client(), testkit.Keyset(t))
	ctx, id := t.Context(), grant.NewID(app, "ann")
	check := func() {
		t.Helper()
		if err := s.CheckFailover(ctx); err != nil {
			t.Fatal(err)
		}
	}
	check()
	before := s.Failovers() // a server with so short an uptime counts as restarted
	check()
	if s.Failovers() != before {
		t.Error("a failover was counted without one")
	}
	server.Kill()
	if err := s.CheckFailover(ctx); err == nil {
		t.Error("a server that is down was identified")
	}
	if s.Failovers() != before {
		t.Error("a server that is down was counted as a failover")
	}
	server.Run()
	// The restart is counted before the first command reaches the server.
	if _, err := s.Get(ctx, id); !errors.Is(err, grant.ErrNotFound) {
		t.Fatal(err)
	}
	if s.Failovers() != before+1 {
		t.Errorf("%d failovers after a restart, want %d", s.Failovers(), before+1)
	}
	check()
	if s.Failovers() != before+1 {
		t.Error("one restart was counted twice")
	}
}

func TestPromotionIsDetected(t *testing.T) {
	master := testkit.StartRedis(t)
	host, port, err := net.SplitHostPort(master.Addr)
	if err != nil {
		t.Fatal(err)
	}
	replica := testkit.StartRedis(t, "--replicaof", host+" "+port)
	s := store.New(replica.Client(), testkit.Keyset(t))
	if err := s.CheckFailover(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := s.Failovers()
	if err := replica.Client().Do(t.Context(), "REPLICAOF", "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckFailover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Failovers() != before+1 {
		t.Errorf("%d failovers after a promotion, want %d", s.Failovers(), before+1)
	}
}

func TestCommitWaitsForReplicas(t *testing.T) {
	master := testkit.StartRedis(t)
	host, port, err := net.SplitHostPort(master.Addr)
	if err != nil {
		t.Fatal(err)
	}
	keyset := testkit.Keyset(t)
	f := &fixture{store.New(master.Client(), keyset), master.Client(), t}
	g := f.consent("ann", past)
	f.SetWaitReplicas(1)
	wantError(t, f.Accept(t.Context(), g.ID, grant.Consent{App: app, User: "ann", Fingerprint: "another", Tokens: tokens(0)}, past), grant.ErrUnreplicated)
	claim := f.claimDue(g.ID, "a")
	err = f.Commit(t.Context(), g.ID, claim.Spent, tokens(1), past)
	wantError(t, err, grant.ErrUnreplicated)
	if serving, err := f.ReadServingRecord(t.Context(), g.ID); err != nil || !serving.Access.Equal(tokens(1).Access) {
		t.Errorf("the commit was not made: %v", err)
	}

	replica := testkit.StartRedis(t, "--replicaof", host+" "+port)
	for end := time.Now().Add(20 * time.Second); ; {
		err := f.Commit(t.Context(), g.ID, claim.Spent, tokens(1), past)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("with a replica: %v", err)
		}
	}
	copied := store.New(replica.Client(), keyset)
	if serving, err := copied.ReadServingRecord(t.Context(), g.ID); err != nil || !serving.Access.Equal(tokens(1).Access) {
		t.Errorf("the replica does not have the commit: %v", err)
	}
	wantError(t, f.Commit(t.Context(), g.ID, "another", tokens(2), past), grant.ErrSuperseded)
}
