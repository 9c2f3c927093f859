package store

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"tokenprovider/internal/grant"
)

// Due returns up to limit grants of a shard that are due to be renewed, the
// soonest first, and how long until the next one after them is due; negative if
// there is none.
func (s *Store) Due(ctx context.Context, shard, limit int) (ids []grant.ID, next time.Duration, err error) {
	answer, err := dueScript.Run(ctx, s.redis, []string{shardKey(shard, "due")}, limit).StringSlice()
	if err != nil {
		return nil, 0, fmt.Errorf("reading what is due in shard %d: %w", shard, err)
	}
	next, err = parseMillis(answer[0])
	if err != nil {
		return nil, 0, fmt.Errorf("reading what is due in shard %d: %w", shard, err)
	}
	for _, id := range answer[1:] {
		ids = append(ids, grant.ID(id))
	}
	return ids, next, nil
}

// Claim claims a grant that is to be renewed: it writes lease and intent, and
// returns the refresh token to spend. With a zero goodUntil it claims what the
// plan says is due; otherwise, what has no access token that is good until then.
// The owner must be unique to the claim, which makes it safe to repeat.
//
// It answers [grant.ErrFresh], [grant.ErrReauthorize], [grant.ErrDeleting],
// [grant.ErrNotFound], a [*grant.HeldError] or a [*grant.BackoffError].
func (s *Store) Claim(ctx context.Context, id grant.ID, owner string, lease time.Duration, goodUntil time.Time) (grant.Claim, error) {
	when := "due"
	if !goodUntil.IsZero() {
		when = strconv.FormatInt(millis(goodUntil), 10)
	}
	word, answer, err := s.run(ctx, claimScript, id, owner, lease.Milliseconds(), when)
	if err != nil {
		return grant.Claim{}, fmt.Errorf("claiming grant %s: %w", id, err)
	}
	texts := make([]string, len(answer))
	for i, value := range answer {
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
	d := decoder{fields: map[string]string{fieldRefresh: texts[1], "failures": texts[4]}}
	claim.Refresh = s.openText(id, &d, fieldRefresh)
	claim.Failures = int(d.int("failures"))
	if d.err != nil {
		return grant.Claim{}, fmt.Errorf("claiming grant %s: %w", id, d.err)
	}
	return claim, nil
}

// Commit stores Zoom's answer to the refresh token with the fingerprint spent,
// if that is the stored one. It may be repeated, and may come late: the lease
// does not matter. It answers nil when the answer is safe, by this call or an
// earlier one; [grant.ErrSuperseded] or [grant.ErrNotFound] when it is of no
// use any more.
func (s *Store) Commit(ctx context.Context, id grant.ID, spent string, tokens grant.Tokens, due time.Time) error {
	sealed, err := s.sealTokens(id, tokens)
	if err != nil {
		return err
	}
	word, _, err := s.run(ctx, commitScript, id, spent, RefreshFingerprint(tokens.Refresh),
		sealed.refresh, sealed.access, millis(tokens.Issued), millis(tokens.Expires), millis(due))
	switch {
	case err != nil:
		return fmt.Errorf("committing grant %s: %w", id, err)
	case word == "committed", word == "already":
		return nil
	}
	return wordError(word)
}

// Fail records that a claim failed and lets go of its lease. The next attempt
// is made after retryIn, except for [grant.Gone]. A claim that is not the newest, or
// whose token is not the stored one any more, changes nothing.
func (s *Store) Fail(ctx context.Context, c grant.Claim, outcome grant.Outcome, retryIn time.Duration, reason string) error {
	_, _, err := s.run(ctx, failScript, c.ID, c.Owner, c.Spent, string(outcome), retryIn.Milliseconds(), reason)
	if err != nil {
		return fmt.Errorf("recording the failure of grant %s: %w", c.ID, err)
	}
	return nil
}

func parseMillis(text string) (time.Duration, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	return time.Duration(n) * time.Millisecond, err
}
