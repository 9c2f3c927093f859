package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

func (f *fixture) claimConsent(id grant.ID, consent string, wait time.Duration) (store.ConsentOutcome, error) {
	f.t.Helper()
	return f.ClaimConsent(f.t.Context(), id, consent, wait)
}

func testConsentIsClaimedOnce(f *fixture) {
	ctx, id := f.t.Context(), grant.NewID(app, "ann")
	if _, err := f.claimConsent(id, "code", time.Minute); err != nil {
		f.t.Fatal(err)
	}
	var held *grant.HeldError
	if _, err := f.claimConsent(id, "code", time.Minute); !errors.As(err, &held) || held.For < 50*time.Second || held.For > time.Minute {
		f.t.Errorf("claimed twice: %v", err)
	}
	if _, err := f.claimConsent(id, "other", time.Minute); err != nil {
		f.t.Errorf("another code: %v", err)
	}
	time.Sleep(2 * time.Millisecond)
	if _, err := f.claimConsent(id, "code", time.Millisecond); err != nil {
		f.t.Errorf("after the wait: %v", err)
	}
	if err := f.ReleaseConsent(ctx, id, "code", nil); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.claimConsent(id, "code", time.Minute); err != nil {
		f.t.Errorf("after a claim without a response: %v", err)
	}
	if err := f.Accept(ctx, id, grant.Consent{App: app, User: "ann", Fingerprint: "code", Tokens: tokens(1)}, future); err != nil {
		f.t.Fatal(err)
	}
	if outcome, err := f.claimConsent(id, "code", 0); !errors.Is(err, store.ErrConsentUsed) || !outcome.Stored {
		f.t.Errorf("after it was stored: %+v, %v", outcome, err)
	}
	conflict := store.ConsentOutcome{Conflict: true, ConflictUser: "u", ConflictAccount: "a"}
	if err := f.ReleaseConsent(ctx, id, "other", &conflict); err != nil {
		f.t.Fatal(err)
	}
	if outcome, err := f.claimConsent(id, "other", 0); !errors.Is(err, store.ErrConsentUsed) || outcome != conflict {
		f.t.Errorf("after a conflict: %+v, %v", outcome, err)
	}

	g := f.get(id)
	wantError(f.t, f.Remove(ctx, id, g.Version+1, conflict), grant.ErrConflict)
	if err := f.Remove(ctx, id, g.Version, conflict); err != nil {
		f.t.Fatal(err)
	}
	if outcome, err := f.claimConsent(id, "code", 0); !errors.Is(err, store.ErrConsentUsed) || outcome != conflict {
		f.t.Errorf("the removed grant's own: %+v, %v", outcome, err)
	}
	if outcome, err := f.claimConsent(id, "other", 0); !errors.Is(err, store.ErrConsentUsed) || outcome != (store.ConsentOutcome{}) {
		f.t.Errorf("another, after the removal: %+v, %v", outcome, err)
	}
}

func testConsentResponseIsStoredOnce(f *fixture) {
	ctx, id := f.t.Context(), grant.NewID(app, "ann")
	accept := func(consent string, n int, zoomUser string) error {
		return f.Accept(ctx, id, grant.Consent{App: app, User: "ann", Fingerprint: consent, Tokens: tokens(n), ZoomUser: zoomUser}, future)
	}
	for _, consent := range []string{"first", "second"} {
		if _, err := f.claimConsent(id, consent, time.Minute); err != nil {
			f.t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // their order is by Redis's clock
	}
	for range 2 {
		if err := accept("second", 2, "zoom-ann"); err != nil {
			f.t.Fatal(err)
		}
	}
	version := f.get(id).Version
	wantError(f.t, accept("first", 1, "zoom-ann"), grant.ErrSuperseded) // late, replayed from a journal
	if g := f.get(id); g.Version != version || g.Consent != "second" || g.OwnerUnverified {
		f.t.Errorf("the response to an earlier consent changed the grant: %+v", g)
	}

	// A later consent replaces it; its Zoom user may be unknown.
	g := f.link(f.get(id))
	if err := accept("third", 3, ""); err != nil {
		f.t.Fatal(err)
	}
	if now := f.get(id); !now.OwnerUnverified || now.Credential != g.Credential || now.State != grant.StateActive {
		f.t.Errorf("with an unknown Zoom user: %+v", now)
	}
	if err := accept("fourth", 4, "zoom-bob"); err != nil {
		f.t.Fatal(err)
	}
	if now := f.get(id); now.OwnerUnverified || now.Credential != "" || now.ReplacedCredential != g.Credential || len(now.Secrets) != 0 || now.ZoomUser != "zoom-bob" || now.State != grant.StatePending {
		f.t.Errorf("of another Zoom user: %+v", now)
	}
	if ids, err := f.ByZoomUser(ctx, app, "zoom-ann"); err != nil || len(ids) != 0 {
		f.t.Errorf("still found by the previous Zoom user: %v, %v", ids, err)
	}
	keys := []grant.CallbackSecret{{Fingerprint: grant.Fingerprint{1}}}
	if _, err := f.Change(ctx, id, f.get(id).Version, store.Change{Secrets: &keys}); err != nil {
		f.t.Fatal(err)
	}
	if err := accept("fifth", 5, "zoom-cid"); err != nil {
		f.t.Fatal(err)
	}
	if now := f.get(id); !slices.Equal(now.UnrecordedZoomUsers, []string{"zoom-bob"}) {
		f.t.Errorf("a create for zoom-bob may have succeeded: %v", now.UnrecordedZoomUsers)
	}

	now, err := f.Change(ctx, id, f.get(id).Version, store.Change{Deleting: true, UnrecordedZoomUsers: &[]string{}})
	if err != nil || len(now.UnrecordedZoomUsers) != 0 {
		f.t.Fatal(now.UnrecordedZoomUsers, err)
	}
	wantError(f.t, accept("sixth", 6, ""), grant.ErrDeleting)
	if err := f.Remove(ctx, id, now.Version, store.ConsentOutcome{}); err != nil {
		f.t.Fatal(err)
	}
	wantError(f.t, accept("fifth", 5, ""), grant.ErrSuperseded) // a replay does not restore the user
	if _, err := f.Get(ctx, id); !errors.Is(err, grant.ErrNotFound) {
		f.t.Errorf("the user was restored: %v", err)
	}
	// This applies to a user without a grant too.
	bob := grant.NewID(app, "bob")
	if _, err := f.claimConsent(bob, "code", time.Minute); err != nil {
		f.t.Fatal(err)
	}
	wantError(f.t, f.Remove(ctx, bob, 0, store.ConsentOutcome{}), grant.ErrNotFound)
	wantError(f.t, f.Accept(ctx, bob, grant.Consent{App: app, User: "bob", Fingerprint: "code", Tokens: tokens(1)}, future), grant.ErrSuperseded)
}

func testIncompleteGrantsAreListedInOrder(f *fixture) {
	ctx := f.t.Context()
	ann := f.consent("ann", future)
	time.Sleep(2 * time.Millisecond) // the order is by whole ms of Redis's clock
	bob := f.consent("bob", future)
	await := func(want ...grant.ID) {
		f.t.Helper()
		var ids []grant.ID
		var err error
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if ids, err = f.ListWork(ctx, 10); err != nil || slices.Equal(ids, want) || time.Now().After(end) {
				break
			}
		}
		if err != nil || !slices.Equal(ids, want) {
			f.t.Errorf("incomplete: %v, %v, want %v", ids, err, want)
		}
	}
	if ids, err := f.ListWork(ctx, 10); err != nil || len(ids) != 0 {
		f.t.Errorf("listed before the first delay: %v, %v", ids, err)
	}
	await(ann.ID, bob.ID)
	if err := f.Postpone(ctx, ann.ID, time.Minute); err != nil {
		f.t.Fatal(err)
	}
	await(bob.ID)
	if g := f.get(ann.ID); g.Attempts != 1 {
		f.t.Errorf("%d attempts", g.Attempts)
	}
	f.link(f.get(bob.ID))
	linked := f.link(f.get(ann.ID))
	await()
	if g := f.get(ann.ID); g.Attempts != 0 {
		f.t.Errorf("%d attempts of a complete grant", g.Attempts)
	}
	if _, err := f.Change(ctx, linked.ID, linked.Version, store.Change{Deleting: true}); err != nil {
		f.t.Fatal(err)
	}
	await(ann.ID)
	if err := f.Postpone(ctx, grant.NewID(app, "missing"), 0); err != nil {
		f.t.Error(err)
	}
	await(ann.ID)
	if apps, err := f.CountByApp(ctx); err != nil || len(apps) != 1 || apps[app] != 2 {
		f.t.Errorf("users by app: %v, %v", apps, err)
	}
	if err := f.Remove(ctx, ann.ID, f.get(ann.ID).Version, store.ConsentOutcome{}); err != nil {
		f.t.Fatal(err)
	}
	await()
	if apps, err := f.CountByApp(ctx); err != nil || apps[app] != 1 {
		f.t.Errorf("users by app: %v, %v", apps, err)
	}
}

func testStreamIsOrdered(f *fixture) {
	ctx := f.t.Context()
	start, err := f.ReadHeads(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	g := f.link(f.consent("ann", future)) // two changes: pending, active
	claim, err := f.Claim(ctx, g.ID, "a", grant.ClaimTerms{Lease: lease, ValidUntil: future.Add(48 * time.Hour)})
	if err == nil {
		err = f.Commit(ctx, g.ID, claim.Spent, tokens(1), future) // not visible
	} else if errors.Is(err, grant.ErrFresh) {
		err = nil
	}
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.Remove(ctx, g.ID, f.get(g.ID).Version, store.ConsentOutcome{}); err != nil {
		f.t.Fatal(err)
	}
	shard := g.ID.Shard()
	events, err := f.ReadChanges(ctx, shard, start[shard], 10)
	if err != nil || len(events) != 3 || events[0].State != grant.StatePending || events[1].State != grant.StateActive || !events[2].Removed || events[2].User != "ann" || events[2].App != app {
		f.t.Fatalf("changes: %+v, %v", events, err)
	}
	more, err := f.ReadChanges(ctx, shard, events[0].StreamID, 1)
	if err != nil || len(more) != 1 || more[0] != events[1] {
		f.t.Errorf("after the first: %+v, %v", more, err)
	}
	head, err := f.ReadHeads(ctx)
	if err != nil || head[shard] != events[2].StreamID {
		f.t.Errorf("the head is %v, %v, want %v", head[shard], err, events[2].StreamID)
	}
	back, ok := store.ParsePosition(head.Token())
	if !ok || *back != *head {
		f.t.Error("a position does not survive its token")
	}
	if err := f.client.XTrimMaxLen(ctx, fmt.Sprintf("tp1:{s%03d}:changes", shard), 1).Err(); err != nil {
		f.t.Fatal(err)
	}
	_, err = f.ReadChanges(ctx, shard, start[shard], 10)
	wantError(f.t, err, store.ErrPositionExpired)
	if left, err := f.ReadChanges(ctx, shard, events[1].StreamID, 10); err != nil || len(left) != 1 {
		f.t.Errorf("nothing is missing after the second: %+v, %v", left, err)
	}
}

func testQuotaIsShared(f *fixture) {
	ctx := f.t.Context()
	taken := 0
	for range 200 { // a burst of 10
		wait, err := f.TakeQuota(ctx, "test", 100, 1, false)
		if err != nil {
			f.t.Fatal(err)
		}
		if wait == 0 {
			taken++
		} else if wait > time.Second {
			f.t.Fatalf("wait for %v", wait)
		}
	}
	if taken < 10 || taken > 13 {
		f.t.Errorf("%d requests granted at once, want 10", taken)
	}
	if wait, err := f.TakeQuota(ctx, "test", 100, 1, true); err != nil || wait < time.Second {
		f.t.Errorf("a background request waits for %v, %v, want more than 1 s", wait, err)
	}
	if wait, err := f.TakeQuota(ctx, "another", 100, 2, true); err != nil || wait != 0 {
		f.t.Errorf("of another kind: %v, %v", wait, err)
	}
}

func testLockIsExtended(f *fixture) {
	ctx, id := f.t.Context(), grant.NewID(app, "ann")
	const ttl = 300 * time.Millisecond
	unlock, ok, err := f.LockRegistration(ctx, id, ttl)
	if err != nil || !ok {
		f.t.Fatal(ok, err)
	}
	for end := time.Now().Add(3 * ttl); time.Now().Before(end); time.Sleep(ttl / 10) {
		if _, ok, err := f.LockRegistration(ctx, id, ttl); ok || err != nil {
			f.t.Fatalf("locked twice: %v", err)
		}
	}
	unlock()
	unlock, ok, err = f.LockRegistration(ctx, id, ttl)
	if err != nil || !ok {
		f.t.Fatal(ok, err)
	}
	unlock()
	if progress, err := f.ReadReconciliation(ctx); err != nil || progress != "" {
		f.t.Errorf("progress %q, %v", progress, err)
	}
	if err := f.SaveReconciliation(ctx, "so far"); err != nil {
		f.t.Fatal(err)
	}
	if progress, err := f.ReadReconciliation(ctx); err != nil || progress != "so far" {
		f.t.Errorf("progress %q, %v", progress, err)
	}
	g := f.consent("ann", future)
	if err := f.MarkListed(ctx, []grant.ID{id, grant.NewID(app, "missing")}); err != nil {
		f.t.Fatal(err)
	}
	if now := f.get(id); now.ListedTime.IsZero() || now.Version != g.Version {
		f.t.Errorf("listed at %v, version %d", now.ListedTime, now.Version)
	}
	if found, err := f.ByID(ctx, []grant.ID{id, grant.NewID(app, "missing")}); err != nil || len(found) != 1 {
		f.t.Errorf("by id: %d, %v", len(found), err)
	}
}

func TestParsePositionRejects(t *testing.T) {
	var p store.Position
	p[3] = store.StreamID{Time: 5, Number: 6}
	token := p.Token()
	for _, bad := range []string{"", "x", token[1:], token[:len(token)-2], token + "AA"} {
		if _, ok := store.ParsePosition(bad); ok {
			t.Errorf("%q is accepted", bad)
		}
	}
}
