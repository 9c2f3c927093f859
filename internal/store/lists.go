package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

// Lists reads many grants, in the order of their IDs, and counts them. It changes
// nothing.
type Lists struct{ *core }

// List returns up to limit grants in the order of their ids: those in a state, or all
// if state is ""; those after an id, or from the first if after is "". A grant that
// exists during the whole listing is returned exactly once.
func (s *Lists) List(ctx context.Context, state grant.State, after grant.ID, limit int) ([]grant.Grant, error) {
	shard, low := 0, "-"
	if after != "" {
		shard, low = after.Shard(), "("+string(after)
	}
	grants := make([]grant.Grant, 0, limit)
	// Read one shard first, then twice as many each time: one round trip where grants
	// are many, seven where there are none.
	for window := 1; shard < grant.Shards && len(grants) < limit; window *= 2 {
		end := min(shard+window, grant.Shards)
		found, err := s.listShards(ctx, state, shard, end, low, limit-len(grants))
		if err != nil {
			return nil, err
		}
		grants = append(grants, found...)
		shard, low = end, "-"
	}
	return grants, nil
}

// listShards reads the first grants of the shards [from, to); low bounds the
// ids of the first of them.
func (s *Lists) listShards(ctx context.Context, state grant.State, from, to int, low string, limit int) ([]grant.Grant, error) {
	indexes := make([]*redis.StringSliceCmd, 0, to-from)
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := from; shard < to; shard++ {
			indexes = append(indexes, pipe.ZRangeByLex(ctx, usersKey(shard, state),
				&redis.ZRangeBy{Min: low, Max: "+", Count: int64(limit)}))
			low = "-"
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing grants: %w", err)
	}
	var ids []grant.ID
	for _, index := range indexes {
		for _, id := range index.Val() {
			ids = append(ids, grant.ID(id))
		}
	}
	return s.read(ctx, ids[:min(limit, len(ids))])
}

// read reads grants; those that do not exist are left out.
func (s *core) read(ctx context.Context, ids []grant.ID) ([]grant.Grant, error) {
	records := make([]*redis.MapStringStringCmd, len(ids))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, id := range ids {
			records[i] = pipe.HGetAll(ctx, grantKey(id))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading grants: %w", err)
	}
	grants := make([]grant.Grant, 0, len(ids))
	for i, id := range ids {
		g, err := s.decode(id, records[i].Val())
		switch {
		case errors.Is(err, grant.ErrNotFound): // removed since the index was read
		case err != nil:
			return nil, err
		default:
			grants = append(grants, g)
		}
	}
	return grants, nil
}

// ByZoomUser returns the grants of a Zoom user to an app. It reads every shard in one
// round trip: for rare operations only.
func (s *Lists) ByZoomUser(ctx context.Context, app, zoomUser string) ([]grant.ID, error) {
	first := zoomUser + "\x00" + app + "\x00"
	found := make([]*redis.StringSliceCmd, grant.Shards)
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := range grant.Shards {
			found[shard] = pipe.ZRangeByLex(ctx, zoomKey(shard), &redis.ZRangeBy{
				Min: "[" + first, Max: "(" + strings.TrimSuffix(first, "\x00") + "\x01",
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the grants of a Zoom user: %w", err)
	}
	var ids []grant.ID
	for _, shard := range found {
		for _, entry := range shard.Val() {
			ids = append(ids, grant.ID(strings.TrimPrefix(entry, first)))
		}
	}
	return ids, nil
}

// CountByState counts the grants in each state.
func (s *Lists) CountByState(ctx context.Context) (map[grant.State]int, error) {
	counts := map[grant.State][]*redis.IntCmd{}
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, state := range grant.States() {
			for shard := range grant.Shards {
				counts[state] = append(counts[state], pipe.ZCard(ctx, usersKey(shard, state)))
			}
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("counting grants by state: %w", err)
	}
	states := map[grant.State]int{}
	for state, shards := range counts {
		for _, n := range shards {
			states[state] += int(n.Val())
		}
	}
	return states, nil
}

// CountByApp returns the number of grants of each Zoom app that has any.
func (s *Lists) CountByApp(ctx context.Context) (map[string]int, error) {
	shards := make([]*redis.MapStringStringCmd, grant.Shards)
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := range shards {
			shards[shard] = pipe.HGetAll(ctx, appsKey(shard))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("counting the grants of each Zoom app: %w", err)
	}
	apps := map[string]int{}
	for _, shard := range shards {
		for app, text := range shard.Val() {
			n, err := strconv.Atoi(text)
			if err != nil {
				return nil, fmt.Errorf("counting the grants of each Zoom app: %w", err)
			}
			if n != 0 {
				apps[app] += n
			}
		}
	}
	return apps, nil
}

// IsEmpty reports whether no grant is stored.
func (s *Lists) IsEmpty(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	states, err := s.CountByState(ctx)
	if err != nil {
		return false, err
	}
	for _, n := range states {
		if n > 0 {
			return false, nil
		}
	}
	return true, nil
}
