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

// Work is the registrar's queue of incomplete grants, and the progress of its
// reconciliation. Every replica works on the same queue; locks save double work.
type Work struct{ *core }

// ListWork returns up to limit incomplete grants of each shard whose next attempt is
// due, by the process's clock, the longest waiting first. A failed attempt is put
// back, so that it delays no other; see [Work.Postpone].
func (s *Work) ListWork(ctx context.Context, limit int) ([]grant.ID, error) {
	shards := make([]*redis.ZSliceCmd, grant.Shards)
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := range shards {
			shards[shard] = pipe.ZRangeByScoreWithScores(ctx, workKey(shard), &redis.ZRangeBy{
				Min: "-inf", Max: strconv.FormatInt(millis(time.Now()), 10), Count: int64(limit),
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing incomplete grants: %w", err)
	}
	var found []redis.Z
	for _, shard := range shards {
		found = append(found, shard.Val()...)
	}
	slices.SortFunc(found, func(a, b redis.Z) int { return cmp.Compare(a.Score, b.Score) })
	ids := make([]grant.ID, len(found))
	for i, z := range found {
		text, _ := z.Member.(string)
		ids[i] = grant.ID(text)
	}
	return ids, nil
}

// Postpone records a failed attempt of the registrar. The next one is due after wait.
func (s *Work) Postpone(ctx context.Context, id grant.ID, wait time.Duration) error {
	if _, _, err := s.run(ctx, postponeScript, id, wait.Milliseconds()); err != nil {
		return fmt.Errorf("postponing grant %s: %w", id, err)
	}
	return nil
}

// MarkListed records that Recall lists the credentials of these grants.
func (s *Work) MarkListed(ctx context.Context, ids []grant.ID) error {
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, id := range ids {
			s.variant(markListedScript).Eval(ctx, pipe, recordKeys(id), string(id))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("marking listed credentials: %w", err)
	}
	return nil
}

const reconcileKey = prefix + "reconcile_progress"

// SaveReconciliation stores the progress of the reconciliation, in the caller's
// format.
func (s *Work) SaveReconciliation(ctx context.Context, progress string) error {
	if err := s.redis.Set(ctx, reconcileKey, progress, 0).Err(); err != nil {
		return fmt.Errorf("storing the progress of the reconciliation: %w", err)
	}
	return nil
}

// ReadReconciliation returns the stored progress, "" if there is none.
func (s *Work) ReadReconciliation(ctx context.Context) (progress string, err error) {
	progress, err = s.redis.Get(ctx, reconcileKey).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the progress of the reconciliation: %w", err)
	}
	return progress, nil
}
