package store_test

import (
	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

// testRecordsOfOtherVersions: replicas of two versions run side by side. A field of a
// later version is kept, and a field that an earlier version lacks is optional.
func testRecordsOfOtherVersions(f *fixture) {
	ctx := f.t.Context()
	g := f.link(f.consent("ann", past))
	keys, err := f.client.Keys(ctx, "*grant:"+string(g.ID)).Result()
	if err != nil || len(keys) != 1 {
		f.t.Fatalf("keys %v, %v", keys, err)
	}
	record := keys[0]
	if err := f.client.HSet(ctx, record, "of_a_later_version", "kept").Err(); err != nil {
		f.t.Fatal(err)
	}
	// Every field whose absence has no meaning.
	if err := f.client.HDel(ctx, record, "visible_hash", "consented", "change", "consent", "listed", "updated", "health").Err(); err != nil {
		f.t.Fatal(err)
	}
	claim := f.claimDue(g.ID, "a")
	if err := f.Commit(ctx, g.ID, claim.Spent, tokens(1), past); err != nil {
		f.t.Fatal(err)
	}
	claim = f.claimDue(g.ID, "b")
	if err := f.Fail(ctx, claim, grant.OutcomeUnspent, 0, "no"); err != nil {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.StateDegraded)
	g = f.get(g.ID)
	reason := "changed"
	if _, err := f.Change(ctx, g.ID, g.Version, store.Change{Reason: &reason}); err != nil {
		f.t.Fatal(err)
	}
	if kept, err := f.client.HGet(ctx, record, "of_a_later_version").Result(); err != nil || kept != "kept" {
		f.t.Errorf("the field of a later version is %q, %v", kept, err)
	}
	g = f.get(g.ID)
	if err := f.Remove(ctx, g.ID, g.Version, store.ConsentOutcome{}); err != nil {
		f.t.Fatal(err)
	}
}
