package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

const (
	app   = "default"
	lease = 30 * time.Second
)

// fixture is a store on one kind of Redis.
type fixture struct {
	*store.Store
	client *store.Connection
	t      *testing.T
}

// suite has the tests that run on every kind of Redis.
var suite = map[string]func(*fixture){
	"consent is claimed once":                       testConsentIsClaimedOnce,
	"consent response is stored once":               testConsentResponseIsStoredOnce,
	"incomplete grants are listed in order":         testIncompleteGrantsAreListedInOrder,
	"stream is ordered":                             testStreamIsOrdered,
	"quota is shared":                               testQuotaIsShared,
	"lock is extended":                              testLockIsExtended,
	"late response is awaited":                      testLateResponseIsAwaited,
	"released claim changes nothing":                testReleasedClaimChangesNothing,
	"served token is not renewed":                   testServedTokenIsNotRenewed,
	"renewal time is served":                        testRenewTimeIsServed,
	"pauses":                                        testPauses,
	"records of other versions":                     testRecordsOfOtherVersions,
	"changes are reported":                          testChangesAreReported,
	"lost subscription is reported":                 testLostSubscriptionIsReported,
	"reads share round trips":                       testReadsShareRoundTrips,
	"grants of a Zoom user":                         testGrantsOfAZoomUser,
	"deauthorize":                                   testDeauthorize,
	"reindex due":                                   testReindexDue,
	"consent is read back":                          testConsentIsReadBack,
	"change needs the version that was read":        testChangeNeedsTheVersionThatWasRead,
	"states follow what is recorded":                testStatesFollowWhatIsRecorded,
	"claim is exclusive":                            testClaimIsExclusive,
	"claim repeated by its owner is the same claim": testClaimRepeatedByItsOwnerIsTheSameClaim,
	"claim on demand":                               testClaimOnDemand,
	"commit is by predecessor":                      testCommitIsByPredecessor,
	"commit with the same refresh token":            testCommitWithTheSameRefreshToken,
	"uncertainty outlives the claim":                testUncertaintyOutlivesTheClaim,
	"failure backs off":                             testFailureBacksOff,
	"due is of one app":                             testDueIsOfOneApp,
	"due is ordered":                                testDueIsOrdered,
	"list pages":                                    testListPages,
	"registration lock":                             testRegistrationLock,
	"check keyset":                                  testCheckKeyset,
	"encrypted fields are bound to their grant":     testEncryptedFieldsAreBoundToTheirGrant,
	"damaged record is an error not a panic":        testDamagedRecordIsAnErrorNotAPanic,
	"collector":                                     testCollector,
	"lost write is detected":                        testLostWriteIsDetected,
	"overdue is since the renewal time":             testOverdueIsSinceTheRenewalTime,
	"running processes are listed":                  testRunningProcessesAreListed,
	"backup restores only missing grants":           testBackupRestoresOnlyMissingGrants,
	"make due":                                      testMakeDue,
}

// conform runs a test on every supported kind of Redis, and on the sandbox's
// embedded one.
func conform(t *testing.T, test func(*fixture)) {
	for name, connect := range map[string]func(*testing.T) *store.Connection{
		"server":  func(t *testing.T) *store.Connection { return testkit.StartRedis(t).Client() },
		"cluster": oneCluster,
		"embedded": func(t *testing.T) *store.Connection {
			return testkit.RedisClient(t, "redis://"+miniredis.RunT(t).Addr())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := connect(t)
			test(&fixture{store.New(client, testkit.Keyset(t)), client, t})
		})
	}
}

var cluster struct {
	sync.Mutex
	addr string
}

// oneCluster returns the shared cluster, empty, to one test at a time: it takes
// seconds to start.
func oneCluster(t *testing.T) *store.Connection {
	cluster.Lock()
	t.Cleanup(cluster.Unlock)
	client := testkit.RedisClient(t, "redis+cluster://"+cluster.addr)
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return client
}

// TestConformance runs the suite, with one cluster for all of it.
func TestConformance(t *testing.T) {
	cluster.addr = testkit.StartRedisCluster(t).Addr
	for name, test := range suite {
		t.Run(name, func(t *testing.T) { conform(t, test) })
	}
}

func tokens(n int) grant.Tokens {
	now := time.Now().Truncate(time.Millisecond)
	return grant.Tokens{
		Access:  secret.New(fmt.Sprintf("plain-access-%d", n)),
		Refresh: secret.New(fmt.Sprintf("plain-refresh-%d", n)),
		Issued:  now, Expires: now.Add(time.Hour),
	}
}

func fingerprint(n int) string { return store.RefreshFingerprint(tokens(n).Refresh) }

// Commit calls the store's Commit and returns its error only.
func (f *fixture) Commit(ctx context.Context, id grant.ID, spent string, tokens grant.Tokens, due time.Time) error {
	_, err := f.Store.Commit(ctx, id, spent, tokens, due)
	return err
}

// Accept calls AcceptConsent and returns its error only.
func (f *fixture) Accept(ctx context.Context, id grant.ID, c grant.Consent, due time.Time) error {
	_, err := f.AcceptConsent(ctx, id, c, due)
	return err
}

// consent creates a user's grant with tokens(0) and a renewal time.
func (f *fixture) consent(user string, due time.Time) grant.Grant {
	f.t.Helper()
	id := grant.NewID(app, user)
	if err := f.Accept(f.t.Context(), id, grant.Consent{
		App: app, User: user, Fingerprint: "code-fingerprint", Tokens: tokens(0),
		ZoomUser: "zoom-" + user, ZoomAccount: "account",
	}, due); err != nil {
		f.t.Fatal(err)
	}
	return f.get(id)
}

// link gives the grant a credential at Recall.
func (f *fixture) link(g grant.Grant) grant.Grant {
	f.t.Helper()
	credential := "credential-" + g.User
	linked, err := f.Change(f.t.Context(), g.ID, g.Version, store.Change{Credential: &credential})
	if err != nil {
		f.t.Fatal(err)
	}
	return linked
}

func (f *fixture) get(id grant.ID) grant.Grant {
	f.t.Helper()
	g, err := f.Get(f.t.Context(), id)
	if err != nil {
		f.t.Fatal(err)
	}
	return g
}

func (f *fixture) claimDue(id grant.ID, owner string) grant.Claim {
	f.t.Helper()
	claim, err := f.Claim(f.t.Context(), id, owner, grant.ClaimTerms{Lease: lease})
	if err != nil {
		f.t.Fatal(err)
	}
	return claim
}

func (f *fixture) wantState(id grant.ID, want grant.State) {
	f.t.Helper()
	if g := f.get(id); g.State != want {
		f.t.Errorf("state = %s (%s), want %s", g.State, g.Reason, want)
	}
	for _, state := range grant.States() {
		listed, err := f.List(f.t.Context(), state, "", 10)
		if err != nil {
			f.t.Fatal(err)
		}
		has := slices.ContainsFunc(listed, func(g grant.Grant) bool { return g.ID == id })
		if has != (state == want) {
			f.t.Errorf("listed among %s: %v", state, has)
		}
	}
}

// dueIn returns the time until the grant is due; ok is false if the index does not
// have it.
func (f *fixture) dueIn(id grant.ID) (in time.Duration, ok bool) {
	f.t.Helper()
	late, next, err := f.ListDue(f.t.Context(), app, id.Shard(), 10)
	if err != nil {
		f.t.Fatal(err)
	}
	if slices.ContainsFunc(late, func(l grant.DueGrant) bool { return l.ID == id }) {
		return 0, true
	}
	return next, next >= 0
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}

var past, future = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)

func testConsentIsReadBack(f *fixture) {
	ctx := f.t.Context()
	id := grant.NewID(app, "ann")
	_, err := f.Get(ctx, id)
	wantError(f.t, err, grant.ErrNotFound)
	_, err = f.ReadServingRecord(ctx, id)
	wantError(f.t, err, grant.ErrNotFound)
	_, err = f.ReadRefreshToken(ctx, id)
	wantError(f.t, err, grant.ErrNotFound)

	g := f.consent("ann", future)
	if g.User != "ann" || g.App != app || g.ZoomUser != "zoom-ann" || g.ZoomAccount != "account" || g.Version != 1 || g.Consent != "code-fingerprint" {
		f.t.Errorf("changed into %+v", g)
	}
	if age := time.Since(g.Created); age < -time.Second || age > 10*time.Second || g.Updated.Before(g.Created) {
		f.t.Errorf("created %v, updated %v", g.Created, g.Updated)
	}
	f.wantState(id, grant.StatePending)

	address := callback.NewAddress(id)
	keys := []grant.CallbackSecret{address.CallbackSecret(), {Fingerprint: grant.Fingerprint{1}, NotAfter: future.Truncate(time.Millisecond).UTC()}}
	if _, err := f.Change(ctx, id, g.Version, store.Change{Secrets: &keys}); err != nil {
		f.t.Fatal(err)
	}
	serving, err := f.ReadServingRecord(ctx, id)
	if err != nil {
		f.t.Fatal(err)
	}
	if serving.Access.Reveal() != "plain-access-0" || serving.State != grant.StatePending || !serving.HasTTL(59*time.Minute, time.Now()) {
		f.t.Errorf("serving in state %s until %v", serving.State, serving.Expires)
	}
	if !slices.Equal(serving.Secrets, keys) || !address.Matches(serving.Secrets, time.Now()) {
		f.t.Errorf("keys = %+v, want %+v", serving.Secrets, keys)
	}
	if refresh, err := f.ReadRefreshToken(ctx, id); err != nil || refresh.Reveal() != "plain-refresh-0" {
		f.t.Errorf("the refresh token is not read back: %v", err)
	}
	if got := f.get(id); got.ID != id || !slices.Equal(got.Secrets, keys) || got.AccessExpires.IsZero() || got.Refreshed.IsZero() {
		f.t.Errorf("read back %+v", got)
	}
}

func testChangeNeedsTheVersionThatWasRead(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", future)
	reason := "why"
	changed, err := f.Change(ctx, g.ID, g.Version, store.Change{Reason: &reason})
	if err != nil || changed.Version != g.Version+1 || changed.Reason != reason {
		f.t.Fatalf("changed into %+v, %v", changed, err)
	}
	_, err = f.Change(ctx, g.ID, g.Version, store.Change{Reason: &reason})
	wantError(f.t, err, grant.ErrConflict)
	_, err = f.Change(ctx, g.ID, 0, store.Change{Reason: &reason})
	wantError(f.t, err, grant.ErrConflict)
	wantError(f.t, f.Remove(ctx, g.ID, g.Version, store.ConsentOutcome{Stored: true}), grant.ErrConflict)

	none := ""
	changed, err = f.Change(ctx, g.ID, changed.Version, store.Change{Reason: &none})
	if err != nil || changed.Reason != "" {
		f.t.Errorf("an empty value must remove the field: %+v, %v", changed, err)
	}
}

func testStatesFollowWhatIsRecorded(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)
	f.wantState(g.ID, grant.StatePending)
	g = f.link(g)
	f.wantState(g.ID, grant.StateActive)

	if err := f.Fail(ctx, f.claimDue(g.ID, "a"), grant.OutcomeUnspent, 0, "Zoom is down"); err != nil {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.StateDegraded)
	if g := f.get(g.ID); g.Reason != "Zoom is down" {
		f.t.Errorf("reason = %q", g.Reason)
	}

	claim := f.claimDue(g.ID, "b")
	if claim.Failures != 1 {
		f.t.Errorf("failures = %d, want 1", claim.Failures)
	}
	if err := f.Commit(ctx, g.ID, claim.Spent, tokens(1), past); err != nil {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.StateActive)
	if g := f.get(g.ID); g.Reason != "" {
		f.t.Errorf("the reason remains after a success: %q", g.Reason)
	}

	if err := f.Fail(ctx, f.claimDue(g.ID, "c"), grant.OutcomeGone, 0, "Zoom refused"); err != nil {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.StateReauthorizationRequired)
	if _, due := f.dueIn(g.ID); due {
		f.t.Error("a grant that is gone is still due")
	}
	_, err := f.Claim(ctx, g.ID, "d", grant.ClaimTerms{Lease: lease, ValidUntil: future})
	wantError(f.t, err, grant.ErrReauthorize)

	// A new consent clears the failure and keeps the credential.
	if err := f.Accept(ctx, g.ID, grant.Consent{App: app, User: "ann", Fingerprint: "another", Tokens: tokens(5)}, past); err != nil {
		f.t.Fatal(err)
	}
	if g = f.get(g.ID); g.Credential != "credential-ann" || g.Reason != "" {
		f.t.Fatalf("after a new consent: %+v", g)
	}
	f.wantState(g.ID, grant.StateActive)

	g, err = f.Change(ctx, g.ID, g.Version, store.Change{Deleting: true, Revoke: true})
	if err != nil || !g.Revoke {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.StateDeleting)
	if _, due := f.dueIn(g.ID); due {
		f.t.Error("a grant that is being removed is still due")
	}
	_, err = f.Claim(ctx, g.ID, "e", grant.ClaimTerms{Lease: lease, ValidUntil: future})
	wantError(f.t, err, grant.ErrDeleting)

	if err := f.Remove(ctx, g.ID, g.Version, store.ConsentOutcome{Stored: true}); err != nil {
		f.t.Fatal(err)
	}
	wantError(f.t, f.Remove(ctx, g.ID, g.Version, store.ConsentOutcome{Stored: true}), grant.ErrNotFound)
	_, err = f.Claim(ctx, g.ID, "f", grant.ClaimTerms{Lease: lease})
	wantError(f.t, err, grant.ErrNotFound)
	wantError(f.t, f.Commit(ctx, g.ID, claim.Spent, tokens(1), past), grant.ErrNotFound)
	var left []string
	for _, pattern := range []string{"tp1:*grant*", "tp1:*users*", "tp1:*due*"} {
		keys, err := f.client.Keys(ctx, pattern).Result()
		if err != nil {
			f.t.Fatal(err)
		}
		left = append(left, keys...)
	}
	if len(left) > 0 {
		f.t.Errorf("left behind: %v", left)
	}
}

func testClaimIsExclusive(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)
	var won, held atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := f.Claim(ctx, g.ID, fmt.Sprint("replica-", i), grant.ClaimTerms{Lease: lease})
			var other *grant.HeldError
			switch {
			case err == nil:
				won.Add(1)
			case errors.As(err, &other) || errors.Is(err, grant.ErrFresh): // the winning claim has moved the due time
				held.Add(1)
			default:
				f.t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || held.Load() != 7 {
		f.t.Errorf("%d claims won and %d were held off, want 1 and 7", won.Load(), held.Load())
	}
	_, err := f.Claim(ctx, g.ID, "another", grant.ClaimTerms{Lease: lease, ValidUntil: future.Add(time.Hour)})
	var other *grant.HeldError
	if !errors.As(err, &other) || other.For <= 0 || other.For > lease {
		f.t.Errorf("a claim on demand = %v, want it held for at most the lease", err)
	}
	if in, ok := f.dueIn(g.ID); !ok || in <= 0 || in > lease {
		f.t.Errorf("due in %v (%v), want when the lease ends", in, ok)
	}
}

func testClaimRepeatedByItsOwnerIsTheSameClaim(f *fixture) {
	g := f.consent("ann", past)
	first, again := f.claimDue(g.ID, "a"), f.claimDue(g.ID, "a")
	if first.Spent != again.Spent || again.Uncertain || !again.Refresh.Equal(first.Refresh) {
		f.t.Errorf("the repeated claim differs: %+v, %+v", first, again)
	}
}

func testClaimOnDemand(f *fixture) {
	ctx := f.t.Context()
	id := grant.NewID(app, "ann")
	old := tokens(0)
	old.Issued, old.Expires = time.Now().Add(-50*time.Minute), time.Now().Add(10*time.Minute)
	if err := f.Accept(ctx, id, grant.Consent{App: app, User: "ann", Tokens: old}, future); err != nil {
		f.t.Fatal(err)
	}
	_, err := f.Claim(ctx, id, "a", grant.ClaimTerms{Lease: lease})
	wantError(f.t, err, grant.ErrFresh)
	_, err = f.Claim(ctx, id, "b", grant.ClaimTerms{Lease: lease, ValidUntil: time.Now().Add(9 * time.Minute)})
	wantError(f.t, err, grant.ErrFresh)
	claim, err := f.Claim(ctx, id, "c", grant.ClaimTerms{Lease: lease, ValidUntil: time.Now().Add(11 * time.Minute)})
	if err != nil {
		f.t.Fatal(err)
	}
	// A token in the first tenth of its lifetime is not renewed.
	if err := f.Commit(ctx, id, claim.Spent, tokens(1), future); err != nil {
		f.t.Fatal(err)
	}
	_, err = f.Claim(ctx, id, "d", grant.ClaimTerms{Lease: lease, ValidUntil: time.Now().Add(48 * time.Hour)})
	wantError(f.t, err, grant.ErrFresh)
}

func testCommitIsByPredecessor(f *fixture) {
	ctx := f.t.Context()
	g := f.link(f.consent("ann", past))
	slow := f.claimDue(g.ID, "slow")

	// Another caller has recorded the loss of the grant; a late success overrides it.
	other, err := f.Claim(ctx, g.ID, "slow", grant.ClaimTerms{Lease: lease})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.Fail(ctx, other, grant.OutcomeGone, 0, "refused"); err != nil {
		f.t.Fatal(err)
	}
	f.wantState(g.ID, grant.StateReauthorizationRequired)
	for range 3 { // a replay may be repeated
		if err := f.Commit(ctx, g.ID, slow.Spent, tokens(1), future); err != nil {
			f.t.Fatal(err)
		}
	}
	f.wantState(g.ID, grant.StateActive)
	if in, ok := f.dueIn(g.ID); !ok || in < 59*time.Minute {
		f.t.Errorf("due in %v (%v)", in, ok)
	}
	version := f.get(g.ID).Version

	// A response to a token that was never stored is invalid, and so is an earlier
	// response to the same token.
	wantError(f.t, f.Commit(ctx, g.ID, "another", tokens(2), future), grant.ErrSuperseded)
	earlier := tokens(2)
	earlier.Issued = earlier.Issued.Add(-time.Minute)
	wantError(f.t, f.Commit(ctx, g.ID, slow.Spent, earlier, future), grant.ErrSuperseded)
	// A failure never overwrites a success.
	wantError(f.t, f.Fail(ctx, slow, grant.OutcomeGone, 0, "refused"), grant.ErrSuperseded)
	if got := f.get(g.ID); got.Version != version || got.State != grant.StateActive {
		f.t.Errorf("a stale failure changed the grant: %+v", got)
	}
	if refresh, err := f.ReadRefreshToken(ctx, g.ID); err != nil || !refresh.Equal(tokens(1).Refresh) {
		f.t.Errorf("the stored refresh token is not the successor: %v", err)
	}

	// If Zoom has accepted the token twice, the later response is valid.
	later := tokens(3)
	later.Issued = later.Issued.Add(time.Minute)
	if err := f.Commit(ctx, g.ID, slow.Spent, later, future); err != nil {
		f.t.Fatal(err)
	}
	wantError(f.t, f.Commit(ctx, g.ID, slow.Spent, tokens(1), future), grant.ErrSuperseded)
}

func testCommitWithTheSameRefreshToken(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)
	claim := f.claimDue(g.ID, "a")
	kept := tokens(1)
	kept.Refresh, kept.Expires = tokens(0).Refresh, kept.Expires.Add(time.Second)
	for range 2 {
		if err := f.Commit(ctx, g.ID, claim.Spent, kept, future); err != nil {
			f.t.Fatal(err)
		}
	}
	if serving, err := f.ReadServingRecord(ctx, g.ID); err != nil || !serving.Access.Equal(kept.Access) {
		f.t.Errorf("the new access token is not served: %v", err)
	}
	if v := f.get(g.ID).Version; v != 2 {
		f.t.Errorf("version %d, want 2: the replay must change nothing", v)
	}
}

func testUncertaintyOutlivesTheClaim(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)

	// A claim of a crashed holder leaves an intent.
	if _, err := f.Claim(ctx, g.ID, "dead", grant.ClaimTerms{Lease: time.Millisecond}); err != nil {
		f.t.Fatal(err)
	}
	claim := f.awaitClaim(g.ID, "second")
	if !claim.Uncertain {
		f.t.Fatal("the next claim is not uncertain")
	}
	// A later attempt that did not spend the token does not clear the uncertainty.
	if err := f.Fail(ctx, claim, grant.OutcomeUnspent, 0, "429"); err != nil {
		f.t.Fatal(err)
	}
	claim = f.awaitClaim(g.ID, "third")
	if !claim.Uncertain {
		f.t.Error("the uncertainty was cleared")
	}
	if err := f.Commit(ctx, g.ID, claim.Spent, tokens(1), past); err != nil {
		f.t.Fatal(err)
	}
	claim = f.claimDue(g.ID, "next")
	if claim.Uncertain || claim.Failures != 0 {
		f.t.Errorf("after a success: %+v", claim)
	}
	if err := f.Fail(ctx, claim, grant.OutcomeUnspent, 0, "429"); err != nil {
		f.t.Fatal(err)
	}
	claim = f.awaitClaim(g.ID, "next2")
	if claim.Uncertain {
		f.t.Error("a token that Zoom did not accept is uncertain")
	}
	if err := f.Fail(ctx, claim, grant.OutcomeUncertain, 0, "timeout"); err != nil {
		f.t.Fatal(err)
	}
	if claim = f.awaitClaim(g.ID, "next3"); !claim.Uncertain || claim.Failures != 2 {
		f.t.Errorf("after a lost response: %+v", claim)
	}
}

// awaitClaim claims as soon as the lease or the wait before it has ended.
func (f *fixture) awaitClaim(id grant.ID, owner string) grant.Claim {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	for {
		claim, err := f.Claim(ctx, id, owner, grant.ClaimTerms{Lease: lease})
		if err == nil {
			return claim
		}
		if ctx.Err() != nil {
			f.t.Fatal(err)
		}
	}
}

func testFailureBacksOff(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)
	if err := f.Fail(ctx, f.claimDue(g.ID, "a"), grant.OutcomeUnspent, time.Minute, "500"); err != nil {
		f.t.Fatal(err)
	}
	_, err := f.Claim(ctx, g.ID, "b", grant.ClaimTerms{Lease: lease, ValidUntil: future.Add(time.Hour)})
	var backoff *grant.BackoffError
	if !errors.As(err, &backoff) || backoff.For <= 50*time.Second || backoff.For > time.Minute {
		f.t.Errorf("claim = %v, want to wait for a minute", err)
	}
	if in, ok := f.dueIn(g.ID); !ok || in <= 50*time.Second || in > time.Minute {
		f.t.Errorf("due in %v (%v), want in a minute", in, ok)
	}
}

func testDueIsOrdered(f *fixture) {
	ctx := f.t.Context()
	users := sameShard(4)
	for i, user := range users {
		due := time.Now().Add(-time.Duration(i+1) * time.Minute)
		if i == 3 {
			due = time.Now().Add(time.Minute)
		}
		f.consent(user, due)
	}
	shard := grant.NewID(app, users[0]).Shard()
	late, next, err := f.ListDue(ctx, app, shard, 10)
	want := []grant.ID{grant.NewID(app, users[2]), grant.NewID(app, users[1]), grant.NewID(app, users[0])}
	if err != nil || !slices.Equal(lateIDs(late), want) {
		f.t.Errorf("due = %v, %v, want %v", late, err, want)
	}
	if by := late[0].Overdue; by < 3*time.Minute || by > 4*time.Minute {
		f.t.Errorf("late by %v, want 3 minutes", by)
	}
	if next <= 50*time.Second || next > time.Minute {
		f.t.Errorf("next in %v, want a minute", next)
	}
	if late, _, err = f.ListDue(ctx, app, shard, 1); err != nil || !slices.Equal(lateIDs(late), want[:1]) {
		f.t.Errorf("the first = %v, %v, want %v", late, err, want[:1])
	}
	if late, next, err = f.ListDue(ctx, app, (shard+1)%grant.Shards, 10); err != nil || len(late) != 0 || next >= 0 {
		f.t.Errorf("an empty shard: %v, %v, %v", late, next, err)
	}
}

func testDueIsOfOneApp(f *fixture) {
	ctx := f.t.Context()
	ann := f.consent("ann", past)
	id := grant.NewID("other", "ann")
	if _, err := f.AcceptConsent(ctx, id, grant.Consent{App: "other", User: "ann", Fingerprint: "code", Tokens: tokens(0)}, past); err != nil {
		f.t.Fatal(err)
	}
	for name, want := range map[string]grant.ID{app: ann.ID, "other": id} {
		late, _, err := f.ListDue(ctx, name, want.Shard(), 10)
		if err != nil || !slices.Equal(lateIDs(late), []grant.ID{want}) {
			f.t.Errorf("due of %s: %v, %v, want %v", name, late, err, want)
		}
	}
	if late, _, err := f.ListDue(ctx, "third", ann.ID.Shard(), 10); err != nil || len(late) != 0 {
		f.t.Errorf("due of an app without grants: %v, %v", late, err)
	}
	planned, err := f.ListPlanned(ctx, time.Now(), 10)
	if err != nil || len(planned) != 2 {
		f.t.Errorf("planned of all apps: %v, %v", planned, err)
	}
	if n, err := f.CountOverdue(ctx, time.Now()); err != nil || n != 2 {
		f.t.Errorf("overdue of all apps: %d, %v", n, err)
	}
}

func lateIDs(late []grant.DueGrant) (ids []grant.ID) {
	for _, l := range late {
		ids = append(ids, l.ID)
	}
	return ids
}

func sameShard(n int) (users []string) {
	want := grant.NewID(app, "user-0").Shard()
	for i := 0; len(users) < n; i++ {
		if user := fmt.Sprint("user-", i); grant.NewID(app, user).Shard() == want {
			users = append(users, user)
		}
	}
	return users
}

func testListPages(f *fixture) {
	ctx := f.t.Context()
	const n = 150
	var all, active []grant.ID
	for i := range n {
		g := f.consent(fmt.Sprint("user-", i), future)
		all = append(all, g.ID)
		if i%3 == 0 {
			active = append(active, f.link(g).ID)
		}
	}
	slices.Sort(all)
	slices.Sort(active)
	for _, size := range []int{1, 7, 100, 1000} {
		if got := f.pages("", size); !slices.Equal(got, all) {
			f.t.Errorf("pages of %d: %d grants, want all %d in order", size, len(got), n)
		}
		if got := f.pages(grant.StateActive, size); !slices.Equal(got, active) {
			f.t.Errorf("pages of %d: %d active grants, want %d in order", size, len(got), len(active))
		}
	}
	// The removal of a grant between two pages skips no other grant.
	first, err := f.List(ctx, "", "", 10)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.Remove(ctx, first[9].ID, first[9].Version, store.ConsentOutcome{Stored: true}); err != nil {
		f.t.Fatal(err)
	}
	second, err := f.List(ctx, "", first[9].ID, 10)
	if err != nil || second[0].ID != all[10] {
		f.t.Errorf("the page after a removed grant: %v", err)
	}
}

func (f *fixture) pages(state grant.State, size int) (ids []grant.ID) {
	f.t.Helper()
	var after grant.ID
	for {
		page, err := f.List(f.t.Context(), state, after, size)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, g := range page {
			ids = append(ids, g.ID)
		}
		if len(page) < size {
			return ids
		}
		after = page[len(page)-1].ID
	}
}

func testRegistrationLock(f *fixture) {
	ctx := f.t.Context()
	id := grant.NewID(app, "ann")
	lock := func(ttl time.Duration) (func(), bool) {
		unlock, ok, err := f.LockRegistration(ctx, id, ttl)
		if err != nil {
			f.t.Fatal(err)
		}
		return unlock, ok
	}
	unlock, ok := lock(time.Minute)
	if !ok {
		f.t.Fatal("a free lock was refused")
	}
	if _, ok := lock(time.Minute); ok {
		f.t.Fatal("locked twice")
	}
	unlock()
	late, ok := lock(time.Minute)
	if !ok {
		f.t.Fatal("the lock was not released")
	}
	unlock() // no longer the holder: must not release the other's lock
	if _, ok := lock(time.Minute); ok {
		f.t.Fatal("another holder's lock was released")
	}
	late()
}

func testCheckKeyset(f *fixture) {
	ctx := f.t.Context()
	for range 2 {
		if err := f.CheckKeyset(ctx); err != nil {
			f.t.Fatal(err)
		}
	}
	g := f.consent("ann", past)
	other := store.New(f.client, testkit.Keyset(f.t))
	wantError(f.t, other.CheckKeyset(ctx), store.ErrKeyset)
	_, err := other.ReadServingRecord(ctx, g.ID)
	wantError(f.t, err, seal.ErrDecrypt)
	_, err = other.Claim(ctx, g.ID, "a", grant.ClaimTerms{Lease: lease})
	wantError(f.t, err, seal.ErrDecrypt)
	_, err = other.ReadRefreshToken(ctx, g.ID)
	wantError(f.t, err, seal.ErrDecrypt)
}

func testEncryptedFieldsAreBoundToTheirGrant(f *fixture) {
	ctx := f.t.Context()
	ann, bob := f.consent("ann", future), f.consent("bob", future)
	for _, field := range []string{"access", "refresh"} {
		stolen, err := f.client.HGet(ctx, recordKey(f, ann.ID), field).Result()
		if err != nil {
			f.t.Fatal(err)
		}
		if err := f.client.HSet(ctx, recordKey(f, bob.ID), field, stolen).Err(); err != nil {
			f.t.Fatal(err)
		}
	}
	_, err := f.ReadServingRecord(ctx, bob.ID)
	wantError(f.t, err, seal.ErrDecrypt)
	_, err = f.ReadRefreshToken(ctx, bob.ID)
	wantError(f.t, err, seal.ErrDecrypt)
}

func recordKey(f *fixture, id grant.ID) string {
	f.t.Helper()
	return fmt.Sprintf("tp1:{s%03d}:grant:%s", id.Shard(), id)
}

func testDamagedRecordIsAnErrorNotAPanic(f *fixture) {
	ctx := f.t.Context()
	g := f.consent("ann", past)
	for _, field := range []string{"expires", "secrets"} {
		if err := f.client.HSet(ctx, recordKey(f, g.ID), field, "damaged").Err(); err != nil {
			f.t.Fatal(err)
		}
		if _, err := f.Get(ctx, g.ID); err == nil {
			f.t.Errorf("a damaged %s is read", field)
		}
		if _, err := f.ReadServingRecord(ctx, g.ID); err == nil {
			f.t.Errorf("a damaged %s is served", field)
		}
		if _, err := f.List(ctx, "", "", 10); err == nil {
			f.t.Errorf("a damaged %s is listed", field)
		}
	}
}

func TestNothingSecretIsStoredInClear(t *testing.T) {
	server := testkit.StartRedis(t)
	f := &fixture{store.New(server.Client(), testkit.Keyset(t)), server.Client(), t}
	g := f.consent("ann", past)
	address := callback.NewAddress(g.ID)
	keys := []grant.CallbackSecret{address.CallbackSecret()}
	if _, err := f.Change(t.Context(), g.ID, g.Version, store.Change{Secrets: &keys}); err != nil {
		t.Fatal(err)
	}
	claim := f.claimDue(g.ID, "a")
	if err := f.Commit(t.Context(), g.ID, claim.Spent, tokens(1), future); err != nil {
		t.Fatal(err)
	}
	files := server.Contents()
	if !bytes.Contains(files, []byte(g.ID)) {
		t.Fatal("the grant is not in Redis's files, so this test would not find a token either")
	}
	for _, plain := range []string{"plain-access", "plain-refresh", address.Secret.Reveal(), string(keys[0].Fingerprint[:])} {
		if bytes.Contains(files, []byte(plain)) {
			t.Errorf("Redis's files have %.13s… in clear", plain)
		}
	}
}

func TestRedisDown(t *testing.T) {
	server := testkit.StartRedis(t)
	s := store.New(server.Client(), testkit.Keyset(t))
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	ctx, id := t.Context(), grant.NewID(app, "ann")
	for name, call := range map[string]func() error{
		"Ping":        func() error { return s.Ping(ctx) },
		"CheckKeyset": func() error { return s.CheckKeyset(ctx) },
		"Get":         func() error { _, err := s.Get(ctx, id); return err },
		"Serving":     func() error { _, err := s.ReadServingRecord(ctx, id); return err },
		"Refresh":     func() error { _, err := s.ReadRefreshToken(ctx, id); return err },
		"List":        func() error { _, err := s.List(ctx, "", "", 1); return err },
		"Change":      func() error { _, err := s.Change(ctx, id, 0, store.Change{}); return err },
		"Remove":      func() error { return s.Remove(ctx, id, 1, store.ConsentOutcome{Stored: true}) },
		"Due":         func() error { _, _, err := s.ListDue(ctx, app, 0, 1); return err },
		"Claim":       func() error { _, err := s.Claim(ctx, id, "a", grant.ClaimTerms{Lease: lease}); return err },
		"Commit":      func() error { _, err := s.Commit(ctx, id, fingerprint(0), tokens(1), future); return err },
		"Fail":        func() error { return s.Fail(ctx, grant.Claim{ID: id}, grant.OutcomeGone, 0, "") },
		"Lock":        func() error { _, _, err := s.LockRegistration(ctx, id, lease); return err },
	} {
		err := call()
		if err == nil {
			t.Errorf("%s succeeds without Redis", name)
		}
		for _, outcome := range []error{grant.ErrNotFound, grant.ErrConflict, grant.ErrReauthorize, grant.ErrSuperseded, store.ErrKeyset} {
			if errors.Is(err, outcome) {
				t.Errorf("%s without Redis: %v", name, err)
			}
		}
	}
}
