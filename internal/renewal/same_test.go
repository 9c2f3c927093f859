package renewal_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"pgregory.net/rapid"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

// TestMemoryMatchesTheStore compares the model's store with the scripts: the same
// calls at the same times have the same results.
func TestMemoryMatchesTheStore(t *testing.T) {
	keyset := testkit.Keyset(t)
	embedded := miniredis.RunT(t)
	client := testkit.RedisClient(t, "redis://"+embedded.Addr())
	real := store.New(client, keyset)
	ctx := t.Context()

	rapid.Check(t, func(t *rapid.T) {
		embedded.FlushAll()
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		embedded.SetTime(now)
		model := newMemory()
		model.now = func() time.Time { return now }

		id := grant.NewID("default", "ann")
		issued := 0
		next := func() grant.Tokens {
			issued++
			return grant.Tokens{
				Access: secret.New(fmt.Sprint("access-", issued)), Refresh: secret.New(fmt.Sprint("refresh-", issued)),
				Issued: now, Expires: now.Add(200 * time.Second),
			}
		}
		first, due := next(), now.Add(20*time.Second)
		model.records[id] = record{app: "default", tokens: first, plan: due, due: due, planned: true}
		if _, err := real.AcceptConsent(ctx, id, grant.Consent{App: "default", User: "ann", Tokens: first}, due); err != nil {
			t.Fatal(err)
		}
		claims := []grant.Claim{{ID: id, Owner: "none", Spent: "none"}}
		responses := []grant.Tokens{first}

		same := func(what string, got, want error) {
			t.Helper()
			if fmt.Sprint(errors.Unwrap(got), got) != fmt.Sprint(errors.Unwrap(want), want) {
				t.Fatalf("%s: the store returns %v, the model %v", what, got, want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 40_000).Draw(t, "ms")) * time.Millisecond)
				embedded.SetTime(now)
			},
			"claim": func(t *rapid.T) {
				owner := fmt.Sprint("owner-", rapid.IntRange(1, 4).Draw(t, "owner"))
				terms := grant.ClaimTerms{Lease: 15 * time.Second, LateResponseWait: 15 * time.Second, HandOffGuard: 5 * time.Second}
				if rapid.Bool().Draw(t, "now") {
					terms.ValidUntil = now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "s")) * time.Second)
				}
				got, err := real.Claim(ctx, id, owner, terms)
				want, modelErr := model.Claim(ctx, id, owner, terms)
				same("claim", err, modelErr)
				if got != want {
					t.Fatalf("claimed %+v, the model %+v", got, want)
				}
				if err == nil {
					claims = append(claims, got)
				}
			},
			"commit": func(t *rapid.T) {
				claim := rapid.SampledFrom(claims).Draw(t, "claim")
				tokens := next()
				switch rapid.IntRange(0, 3).Draw(t, "response") {
				case 0:
					tokens = rapid.SampledFrom(responses).Draw(t, "again")
				case 1:
					tokens.Refresh = claim.Refresh // Zoom keeps it
				}
				if tokens.Refresh.IsZero() {
					return
				}
				responses = append(responses, tokens)
				plan := now.Add(50 * time.Second)
				missing, err := real.Commit(ctx, id, claim.Spent, tokens, plan)
				wantMissing, modelErr := model.Commit(ctx, id, claim.Spent, tokens, plan)
				same("commit", err, modelErr)
				if missing != wantMissing {
					t.Fatalf("the store returns missing: %v, the model: %v", missing, wantMissing)
				}
			},
			"fail": func(t *rapid.T) {
				claim := rapid.SampledFrom(claims).Draw(t, "claim")
				outcome := rapid.SampledFrom([]grant.Outcome{grant.OutcomeUnspent, grant.OutcomeUncertain, grant.OutcomeGone, grant.OutcomeReleased}).Draw(t, "outcome")
				wait := time.Duration(rapid.IntRange(0, 60).Draw(t, "wait")) * time.Second
				same("fail", real.Fail(ctx, claim, outcome, wait, "why"), model.Fail(ctx, claim, outcome, wait, "why"))
			},
			"serve": func(*rapid.T) {
				same("mark served", real.MarkServed(ctx, id), model.MarkServed(ctx, id))
			},
			"": func(t *rapid.T) {
				got, err := real.ReadServingRecord(ctx, id)
				want, _ := model.ReadServingRecord(ctx, id)
				gone := got.State == grant.StateReauthorizationRequired
				if err != nil || !got.Access.Equal(want.Access) || !got.Expires.Equal(want.Expires) || !got.RenewTime.Equal(want.RenewTime) || gone != (want.State == grant.StateReauthorizationRequired) {
					t.Fatalf("the store serves until %v in state %s, the model until %v in state %s", got.Expires, got.State, want.Expires, want.State)
				}
				late, next, err := real.ListDue(ctx, "default", id.Shard(), 1)
				r := model.records[id]
				if dueNow := len(model.due()) == 1; err != nil || (len(late) == 1) != dueNow || !dueNow && r.planned && next != r.due.Sub(now) || !r.planned && next >= 0 {
					t.Fatalf("due: the store %v in %v (%v), the model %v at %v", late, next, err, r.planned, r.due)
				}
			},
		})
	})
}
