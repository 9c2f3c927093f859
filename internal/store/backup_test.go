package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

// testBackupRestoresOnlyMissingGrants: a restored grant is uncertain, and no existing
// grant is replaced.
func testBackupRestoresOnlyMissingGrants(f *fixture) {
	ctx := f.t.Context()
	ann, bob := f.link(f.consent("ann", future)), f.link(f.consent("bob", future))
	var all []store.BackupRecord
	if err := f.ReadBackup(ctx, func(page []store.BackupRecord) error { all = append(all, page...); return nil }); err != nil || len(all) != 2 {
		f.t.Fatalf("%d grants in the backup, %v", len(all), err)
	}
	stop := errors.New("stop")
	if err := f.ReadBackup(ctx, func([]store.BackupRecord) error { return stop }); !errors.Is(err, stop) {
		f.t.Errorf("an error of the callback returned %v", err)
	}
	if empty, err := f.IsEmpty(ctx); empty || err != nil {
		f.t.Errorf("empty: %v, %v", empty, err)
	}
	if n, err := f.Restore(ctx, all, "restored"); n != 0 || err != nil {
		f.t.Errorf("%d existing grants restored, %v", n, err)
	}
	if err := f.Remove(ctx, bob.ID, bob.Version, store.ConsentOutcome{}); err != nil {
		f.t.Fatal(err)
	}
	if n, err := f.Restore(ctx, all, "restored"); n != 1 || err != nil {
		f.t.Errorf("%d restored, %v, want only bob", n, err)
	}
	restored := f.get(bob.ID)
	if restored.User != "bob" || restored.State != grant.StateDegraded || restored.Reason != "restored" {
		f.t.Errorf("restored: %+v", restored)
	}
	f.wantState(ann.ID, grant.StateActive)
	if serving, err := f.ReadServingRecord(ctx, bob.ID); err == nil && !serving.Access.IsZero() {
		f.t.Error("an access token was restored, which may have ended")
	}
	renewals, err := f.ReadRenewals(ctx, []grant.ID{bob.ID, ann.ID, grant.NewID("default", "missing")})
	if err != nil || len(renewals) != 3 || !renewals[0].Uncertain || renewals[0].Due.IsZero() || renewals[1].Uncertain || !renewals[2].Due.IsZero() {
		f.t.Errorf("renewals: %+v, %v", renewals, err)
	}
	for name, text := range map[string]string{"nonsense": "plain-nonsense", "another user's": `{"app":"ZGVmYXVsdA==","user":"ZXZl"}`} {
		n, err := f.Restore(ctx, []store.BackupRecord{{ID: bob.ID, Text: secret.New(text)}}, "restored")
		if n != 0 || err == nil || strings.Contains(err.Error(), "plain") {
			f.t.Errorf("%s: %d restored, %v", name, n, err)
		}
	}
}

func testMakeDue(f *fixture) {
	ctx := f.t.Context()
	ann := f.consent("ann", future)
	if err := f.MakeDue(ctx, ann.ID); !errors.Is(err, grant.ErrFresh) {
		f.t.Errorf("a fresh token: %v", err)
	}
	if err := f.client.HIncrBy(ctx, recordKey(f, ann.ID), "refreshed", -30*time.Minute.Milliseconds()).Err(); err != nil {
		f.t.Fatal(err)
	}
	if err := f.MakeDue(ctx, ann.ID); err != nil {
		f.t.Error(err)
	}
	if in, ok := f.dueIn(ann.ID); !ok || in > time.Second {
		f.t.Errorf("due in %v, %v", in, ok)
	}
	if err := f.MakeDue(ctx, grant.NewID("default", "missing")); !errors.Is(err, grant.ErrNotFound) {
		f.t.Errorf("no such grant: %v", err)
	}
}

// TestServersOfACluster reads the state of each master of a cluster.
func TestServersOfACluster(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedisCluster(t)
	connection := testkit.RedisClient(t, "redis+cluster://"+server.Addr)
	servers, err := connection.Servers(t.Context())
	if err != nil || len(servers) != 1 || servers[0].Mode != "cluster" || !servers[0].AppendOnly {
		t.Errorf("%+v, %v", servers, err)
	}
	if err := store.New(connection, testkit.Keyset(t)).CheckWritable(t.Context()); err != nil {
		t.Error(err)
	}
}
