package store

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

// Renewals claims, commits and schedules renewals. All times are by Redis's
// clock, except those that a caller passes: the claim's ValidUntil, the token's
// issue and expiry, and the renewal time.
//
// Claim may be repeated with the same owner. Commit may be repeated at any time:
// it accepts a response only if the stored refresh token is the one that was
// spent. Fail applies only while its claim is the newest one.
type Renewals struct{ *core }

// Claim claims a grant for a renewal: it writes lease and intent in one atomic step,
// and returns the refresh token to spend. With a zero ValidUntil it claims a due
// grant, otherwise one whose access token expires before then. The owner must be
// unique to the claim; then a claim with a lost reply may be repeated.
//
// It returns [grant.ErrFresh], [grant.ErrReauthorize], [grant.ErrDeleting],
// [grant.ErrNotFound], a [*grant.HeldError] or a [*grant.BackoffError].
func (s *Renewals) Claim(ctx context.Context, id grant.ID, owner string, terms grant.ClaimTerms) (grant.Claim, error) {
	when := "due"
	if !terms.ValidUntil.IsZero() {
		when = strconv.FormatInt(millis(terms.ValidUntil), 10)
	}
	word, reply, err := s.run(ctx, claimScript, id, owner, terms.Lease.Milliseconds(), when,
		terms.LateResponseWait.Milliseconds(), terms.HandOffGuard.Milliseconds(), grant.HandOffTTL.Milliseconds())
	if err != nil {
		return grant.Claim{}, fmt.Errorf("claiming grant %s: %w", id, err)
	}
	texts := make([]string, len(reply))
	for i, value := range reply {
		texts[i], _ = value.(string)
	}
	switch word {
	case "claimed":
	case "held", "backoff":
		wait, err := parseMillis(texts[0])
		if err != nil {
			return grant.Claim{}, fmt.Errorf("claiming grant %s: %w", id, err)
		}
		if word == "held" {
			return grant.Claim{}, &grant.HeldError{For: wait}
		}
		return grant.Claim{}, &grant.BackoffError{For: wait}
	default:
		return grant.Claim{}, wordError(word)
	}
	claim := grant.Claim{ID: id, Owner: owner, App: texts[0], Spent: texts[2], Uncertain: texts[3] == "1"}
	var d decoder
	claim.Refresh = s.decryptText(id, &d, fieldRefresh, texts[1])
	claim.Failures = int(d.int("failures", texts[4]))
	claim.Overdue = time.Duration(d.int("renew_at", texts[5])) * time.Millisecond
	if d.err != nil {
		return grant.Claim{}, fmt.Errorf("claiming grant %s: %w", id, d.err)
	}
	return claim, nil
}

// Commit stores Zoom's response to the refresh token with the fingerprint spent, if
// that is the stored token. It may be repeated, and may come late: the lease does
// not matter. It returns nil if the response is stored, by this call or an earlier
// one; [grant.ErrUnreplicated] if it is stored on fewer replicas than required;
// [grant.ErrSuperseded] or [grant.ErrNotFound] if it is invalid. It also reports
// whether this call has stored it: if an earlier call had, Redis lost that write.
func (s *Renewals) Commit(ctx context.Context, id grant.ID, spent string, tokens grant.Tokens, due time.Time) (missing bool, err error) {
	encrypted, err := s.encryptTokens(id, tokens)
	if err != nil {
		return false, err
	}
	args := []any{
		spent, RefreshFingerprint(tokens.Refresh), encrypted.refresh, encrypted.access,
		millis(tokens.Issued), millis(tokens.Expires), millis(due),
	}
	word, replicas, err := s.runReplicated(ctx, commitScript, id, args...)
	switch {
	case err != nil:
		return false, fmt.Errorf("committing grant %s: %w", id, err)
	case word != "committed" && word != "already":
		return false, wordError(word)
	case replicas < s.waitReplicas:
		err = fmt.Errorf("committing grant %s: on %d replicas of %d: %w", id, replicas, s.waitReplicas, grant.ErrUnreplicated)
	}
	return word == "committed", err
}

// runReplicated runs a record script, then waits for at most half a second until the
// required number of replicas has its changes.
func (s *core) runReplicated(ctx context.Context, script recordScript, id grant.ID, args ...any) (word string, replicas int, err error) {
	if s.waitReplicas == 0 {
		word, _, err = s.run(ctx, script, id, args...)
		return word, 0, err
	}
	// WAIT counts writes of its own connection, so both commands share a pipeline.
	// EVAL, because a pipeline cannot fall back if a script is not loaded.
	var node redis.Cmdable = s.redis
	if cluster, ok := s.redis.(*redis.ClusterClient); ok {
		if node, err = cluster.MasterForKey(ctx, grantKey(id)); err != nil {
			return "", 0, err
		}
	}
	var reply *redis.Cmd
	var reached *redis.Cmd
	_, err = node.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		reply = s.variant(script).Eval(ctx, pipe, recordKeys(id), append([]any{string(id)}, args...)...)
		reached = pipe.Do(ctx, "WAIT", s.waitReplicas, replicationWait.Milliseconds())
		return nil
	})
	if err != nil {
		return "", 0, err
	}
	words, err := reply.StringSlice()
	if err != nil || len(words) == 0 {
		return "", 0, fmt.Errorf("a script returned nothing: %w", err)
	}
	replicas, err = reached.Int()
	return words[0], replicas, err
}

// replicationWait bounds the wait for replicas.
const replicationWait = 500 * time.Millisecond

// MarkServed records that a grant's token was served now, by Redis's clock, for the
// hand-off guard of all replicas. See [grant.ClaimTerms].
func (s *Renewals) MarkServed(ctx context.Context, id grant.ID) error {
	if _, _, err := s.run(ctx, markServedScript, id); err != nil {
		return fmt.Errorf("recording that a token of grant %s was served: %w", id, err)
	}
	return nil
}

// Fail records that a claim failed, and releases its lease. The next attempt is due
// after retryIn, except for [grant.OutcomeGone]. It returns [grant.ErrSuperseded] and
// changes nothing if the claim is not the newest, or its token not the stored one.
// After a lost reply it may be repeated: then ErrSuperseded means that it is done.
func (s *Renewals) Fail(ctx context.Context, c grant.Claim, outcome grant.Outcome, retryIn time.Duration, reason string) error {
	word, _, err := s.run(ctx, failScript, c.ID, c.Owner, c.Spent, string(outcome), retryIn.Milliseconds(), reason)
	switch {
	case err != nil:
		return fmt.Errorf("recording the failure of grant %s: %w", c.ID, err)
	case word == "stale":
		return grant.ErrSuperseded
	}
	return nil
}

func parseMillis(text string) (time.Duration, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	return time.Duration(n) * time.Millisecond, err
}
