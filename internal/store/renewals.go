package store

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

// ListDue returns up to limit grants of a Zoom app and a shard that are due, the
// longest overdue first. next is the time until the next grant becomes due;
// negative if there is none. All times are by Redis's clock.
func (s *Renewals) ListDue(ctx context.Context, app string, shard, limit int) (late []grant.DueGrant, next time.Duration, err error) {
	answer, err := listDueScript.Run(ctx, s.redis, []string{dueKey(shard, grant.AppTag(app))}, limit).StringSlice()
	if err != nil {
		return nil, 0, fmt.Errorf("reading what is due in shard %d: %w", shard, err)
	}
	next, err = parseMillis(answer[0])
	if err != nil {
		return nil, 0, fmt.Errorf("reading what is due in shard %d: %w", shard, err)
	}
	for i := 1; i+1 < len(answer); i += 2 {
		by, err := parseMillis(answer[i+1])
		if err != nil {
			return nil, 0, fmt.Errorf("reading what is due in shard %d: %w", shard, err)
		}
		late = append(late, grant.DueGrant{ID: grant.ID(answer[i]), Overdue: by})
	}
	return late, next, nil
}

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
	word, answer, err := s.run(ctx, claimScript, id, owner, terms.Lease.Milliseconds(), when,
		terms.LateResponseWait.Milliseconds(), terms.HandOffGuard.Milliseconds(), grant.HandOffTTL.Milliseconds())
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
	sealed, err := s.encryptTokens(id, tokens)
	if err != nil {
		return false, err
	}
	args := []any{
		spent, RefreshFingerprint(tokens.Refresh), sealed.refresh, sealed.access,
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
	var answer *redis.Cmd
	var reached *redis.Cmd
	_, err = node.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		answer = s.variant(script).Eval(ctx, pipe, recordKeys(id), append([]any{string(id)}, args...)...)
		reached = pipe.Do(ctx, "WAIT", s.waitReplicas, replicationWait.Milliseconds())
		return nil
	})
	if err != nil {
		return "", 0, err
	}
	words, err := answer.StringSlice()
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

// ReindexDue rebuilds a shard's due indexes from its grants and returns the number
// of grants. It runs beside renewals, and may be repeated.
func (s *Renewals) ReindexDue(ctx context.Context, shard int) (int, error) {
	const page = 500
	seen, low := 0, "-"
	apps, err := s.redis.HKeys(ctx, appsKey(shard)).Result()
	var due []string
	for _, index := range dueKeys(shard, apps) {
		if err != nil {
			break
		}
		var ids []string
		ids, err = s.redis.ZRange(ctx, index, 0, -1).Result()
		due = append(due, ids...)
	}
	if err != nil {
		return 0, fmt.Errorf("rebuilding the due index of shard %d: %w", shard, err)
	}
	reindex := func(ids []string) error {
		_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for _, id := range ids {
				s.variant(reindexScript).Eval(ctx, pipe, recordKeys(grant.ID(id)), id)
			}
			return nil
		})
		return err
	}
	for batch := range slices.Chunk(due, page) { // removes entries without a grant
		if err := reindex(batch); err != nil {
			return 0, fmt.Errorf("rebuilding the due index of shard %d: %w", shard, err)
		}
	}
	for {
		ids, err := s.redis.ZRangeByLex(ctx, usersKey(shard, ""), &redis.ZRangeBy{Min: low, Max: "+", Count: page}).Result()
		if err == nil {
			err = reindex(ids)
		}
		if err != nil {
			return seen, fmt.Errorf("rebuilding the due index of shard %d: %w", shard, err)
		}
		seen += len(ids)
		if len(ids) < page {
			return seen, nil
		}
		low = "(" + ids[len(ids)-1]
	}
}

// dueKeys returns the due indexes of some Zoom apps in a shard.
func dueKeys(shard int, apps []string) []string {
	var keys []string
	for _, app := range apps {
		if key := dueKey(shard, grant.AppTag(app)); !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// allDueKeys returns every due index that may have entries.
func (s *core) allDueKeys(ctx context.Context) ([]string, error) {
	apps := make([]*redis.StringSliceCmd, grant.Shards)
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := range apps {
			apps[shard] = pipe.HKeys(ctx, appsKey(shard))
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("listing the due indexes: %w", err)
	}
	var keys []string
	for shard, names := range apps {
		keys = append(keys, dueKeys(shard, names.Val())...)
	}
	return keys, nil
}

func pauseKey(app string) string { return prefix + "pause:" + app }

// Pause pauses a Zoom app for all replicas, unless it is paused for longer already.
// The reason is for people.
func (s *Renewals) Pause(ctx context.Context, app string, d time.Duration, reason string) error {
	if err := pauseScript.Run(ctx, s.redis, []string{pauseKey(app)}, d.Milliseconds(), reason).Err(); err != nil {
		return fmt.Errorf("pausing Zoom app %s: %w", app, err)
	}
	return nil
}

// Paused returns the remaining time of an app's pause, 0 if there is none.
func (s *Renewals) Paused(ctx context.Context, app string) (time.Duration, error) {
	left, err := s.redis.PTTL(ctx, pauseKey(app)).Result()
	if err != nil {
		return 0, fmt.Errorf("reading the pause of Zoom app %s: %w", app, err)
	}
	return max(left, 0), nil
}

// Fail records that a claim failed, and releases its lease. The next attempt is due
// after retryIn, except for [grant.Gone]. It returns [grant.ErrSuperseded] and
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
