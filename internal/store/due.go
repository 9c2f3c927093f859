package store

import (
	"cmp"
	"context"
	"errors"
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
	reply, err := listDueScript.Run(ctx, s.redis, []string{dueKey(shard, grant.AppTag(app))}, limit).StringSlice()
	if err != nil {
		return nil, 0, fmt.Errorf("listing the due grants of shard %d: %w", shard, err)
	}
	next, err = parseMillis(reply[0])
	if err != nil {
		return nil, 0, fmt.Errorf("listing the due grants of shard %d: %w", shard, err)
	}
	for i := 1; i+1 < len(reply); i += 2 {
		by, err := parseMillis(reply[i+1])
		if err != nil {
			return nil, 0, fmt.Errorf("listing the due grants of shard %d: %w", shard, err)
		}
		late = append(late, grant.DueGrant{ID: grant.ID(reply[i]), Overdue: by})
	}
	return late, next, nil
}

// PlannedRenewal is a grant and its due time.
type PlannedRenewal struct {
	ID grant.ID
	At time.Time
}

// ListPlanned returns up to limit grants, of all Zoom apps, that are due before a
// time by Redis's clock, the soonest first.
func (s *Renewals) ListPlanned(ctx context.Context, before time.Time, limit int) ([]PlannedRenewal, error) {
	indexes, err := s.allDueKeys(ctx)
	if err != nil {
		return nil, err
	}
	shards := make([]*redis.ZSliceCmd, len(indexes))
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, index := range indexes {
			shards[i] = pipe.ZRangeByScoreWithScores(ctx, index, &redis.ZRangeBy{
				Min: "-inf", Max: "(" + strconv.FormatInt(millis(before), 10), Count: int64(limit),
			})
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("listing planned renewals: %w", err)
	}
	var planned []PlannedRenewal
	for _, shard := range shards {
		for _, z := range shard.Val() {
			id, _ := z.Member.(string)
			planned = append(planned, PlannedRenewal{grant.ID(id), time.UnixMilli(int64(z.Score)).UTC()})
		}
	}
	slices.SortFunc(planned, func(a, b PlannedRenewal) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	return planned[:min(limit, len(planned))], nil
}

// CountOverdue counts the grants, of all Zoom apps, that are due before a time by
// Redis's clock.
func (s *Renewals) CountOverdue(ctx context.Context, before time.Time) (int, error) {
	indexes, err := s.allDueKeys(ctx)
	if err != nil {
		return 0, err
	}
	shards := make([]*redis.IntCmd, len(indexes))
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, index := range indexes {
			shards[i] = pipe.ZCount(ctx, index, "-inf", "("+strconv.FormatInt(millis(before), 10))
		}
		return nil
	}); err != nil {
		return 0, fmt.Errorf("counting overdue grants: %w", err)
	}
	n := 0
	for _, shard := range shards {
		n += int(shard.Val())
	}
	return n, nil
}

// RenewalState is the state of a grant's renewal, by Redis's clock.
type RenewalState struct {
	ID         grant.ID
	Due        time.Time // zero: no renewal is planned
	Failures   int       // since the last success
	RetryAt    time.Time // zero: the last attempt did not fail
	LeaseUntil time.Time // zero: not claimed
	Intent     time.Time // start of a renewal without a recorded result; zero: none
	Uncertain  bool      // the response of an earlier attempt was lost
	Work       time.Time // the registrar's next attempt; zero: the grant is complete
}

// ReadRenewals reads the state of renewals, in the order of the ids.
func (s *Renewals) ReadRenewals(ctx context.Context, ids []grant.ID) ([]RenewalState, error) {
	fields := make([]*redis.SliceCmd, len(ids))
	due, work := make([]*redis.FloatCmd, len(ids)), make([]*redis.FloatCmd, len(ids))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, id := range ids {
			fields[i] = pipe.HMGet(ctx, grantKey(id), "failures", "retry_at", "lease_until", "intent", "uncertain")
			due[i] = pipe.ZScore(ctx, dueKey(id.Shard(), id.AppTag()), string(id))
			work[i] = pipe.ZScore(ctx, workKey(id.Shard()), string(id))
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) { // an id outside the index has no score
		return nil, fmt.Errorf("reading renewals: %w", err)
	}
	renewals := make([]RenewalState, len(ids))
	for i, id := range ids {
		if err := fields[i].Err(); err != nil {
			return nil, fmt.Errorf("reading renewals: %w", err)
		}
		var d decoder
		text := func(n int) string { value, _ := fields[i].Val()[n].(string); return value }
		renewals[i] = RenewalState{
			ID: id, Failures: int(d.int("failures", text(0))), RetryAt: d.time("retry_at", text(1)),
			LeaseUntil: d.time("lease_until", text(2)), Intent: d.time("intent", text(3)), Uncertain: text(4) != "",
			Due: scoreTime(due[i]), Work: scoreTime(work[i]),
		}
		if d.err != nil {
			return nil, fmt.Errorf("reading the renewal of grant %s: %w", id, d.err)
		}
	}
	return renewals, nil
}

func scoreTime(score *redis.FloatCmd) time.Time {
	if score.Err() != nil {
		return time.Time{}
	}
	return time.UnixMilli(int64(score.Val())).UTC()
}

// MakeDue makes a grant due now and ends its backoff. It returns [grant.ErrFresh] in
// the first tenth of its token's lifetime, [grant.ErrReauthorize],
// [grant.ErrDeleting] or [grant.ErrNotFound].
func (s *Renewals) MakeDue(ctx context.Context, id grant.ID) error {
	word, _, err := s.run(ctx, makeDueScript, id)
	switch {
	case err != nil:
		return fmt.Errorf("making grant %s due: %w", id, err)
	case word != "due":
		return wordError(word)
	}
	return nil
}

// ReindexDue rebuilds a shard's due indexes from its grants and returns the number
// of grants. It runs beside renewals, and may be repeated.
func (s *Renewals) ReindexDue(ctx context.Context, shard int) (int, error) {
	const page = 500
	indexed, low := 0, "-"
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
			return indexed, fmt.Errorf("rebuilding the due index of shard %d: %w", shard, err)
		}
		indexed += len(ids)
		if len(ids) < page {
			return indexed, nil
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
