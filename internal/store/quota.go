package store

import (
	"context"
	"fmt"
	"time"

	"github.com/go-redis/redis_rate/v10"
)

// TakeQuota takes n requests of a kind from the limit that all replicas share. If
// there are too few, it takes none and returns the wait until there may be enough.
// It grants at most 95 % of perMinute in any minute, as requests may arrive late.
// Background requests leave half of the burst to others.
func (s *Locks) TakeQuota(ctx context.Context, kind string, perMinute, n int, background bool) (wait time.Duration, err error) {
	burst := max(2, perMinute/10)
	limit := redis_rate.Limit{Rate: max(1, min(perMinute*85/100, perMinute-burst)), Burst: burst, Period: time.Minute}
	if background {
		limit.Burst = max(1, burst/2)
	}
	taken, err := redis_rate.NewLimiter(s.redis).AllowN(ctx, prefix+kind, limit, n)
	if err != nil {
		return 0, fmt.Errorf("taking quota of %s: %w", kind, err)
	}
	return max(0, taken.RetryAfter), nil // -1: there is enough
}
