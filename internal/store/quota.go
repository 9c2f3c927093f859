package store

import (
	"context"
	"fmt"
	"time"

	"github.com/go-redis/redis_rate/v10"
)

// TakeQuota takes n of what all replicas together may do of a kind, if there is so
// much now; else it returns how long until there may be. In any minute no more
// than 95 of 100 of perMinute are given out: what is taken at a time may arrive a
// little later. What is in the background leaves half of the burst, a tenth of it
// all, to what is not.
func (s *Store) TakeQuota(ctx context.Context, kind string, perMinute, n int, background bool) (wait time.Duration, err error) {
	burst := max(2, perMinute/10)
	limit := redis_rate.Limit{Rate: max(1, min(perMinute*85/100, perMinute-burst)), Burst: burst, Period: time.Minute}
	if background {
		limit.Burst = max(1, burst/2)
	}
	taken, err := redis_rate.NewLimiter(s.redis).AllowN(ctx, prefix+kind, limit, n)
	if err != nil {
		return 0, fmt.Errorf("asking for a share of %s: %w", kind, err)
	}
	return max(0, taken.RetryAfter), nil // -1: there is enough
}
