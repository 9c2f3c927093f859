package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

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

// Deauthorize marks a grant for removal because the user has removed the app at
// Zoom at the given time. It returns [grant.ErrFresh] if the user has consented
// again since, and [grant.ErrDeleting] if the grant is marked already.
func (s *Grants) Deauthorize(ctx context.Context, id grant.ID, at time.Time) error {
	word, _, err := s.run(ctx, deauthorizeScript, id, millis(at), "the user has removed the app at Zoom")
	switch {
	case err != nil:
		return fmt.Errorf("marking grant %s for removal: %w", id, err)
	case word != "marked":
		return wordError(word)
	}
	return nil
}
