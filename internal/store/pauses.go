package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

func pauseKey(app string) string { return prefix + "pause:" + app }

// Pause pauses a Zoom app for all replicas, unless it is paused for longer already.
// The reason is for people.
func (s *Renewals) Pause(ctx context.Context, app string, d time.Duration, reason string) error {
	if err := pauseScript.Run(ctx, s.redis, []string{pauseKey(app)}, d.Milliseconds(), reason).Err(); err != nil {
		return fmt.Errorf("pausing Zoom app %s: %w", app, err)
	}
	return nil
}

// PauseRemaining returns the remaining time of an app's pause, 0 if there is none.
func (s *Renewals) PauseRemaining(ctx context.Context, app string) (time.Duration, error) {
	left, err := s.redis.PTTL(ctx, pauseKey(app)).Result()
	if err != nil {
		return 0, fmt.Errorf("reading the pause of Zoom app %s: %w", app, err)
	}
	return max(left, 0), nil
}

// ActivePause is a paused Zoom app, or a paused kind of request to Recall.
type ActivePause struct {
	Name string
	For  time.Duration
	Why  string // for people
}

// ListPauses returns those of the names that are paused; see [Renewals.Pause].
func (s *Renewals) ListPauses(ctx context.Context, names []string) ([]ActivePause, error) {
	left, why := make([]*redis.DurationCmd, len(names)), make([]*redis.StringCmd, len(names))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, name := range names {
			left[i], why[i] = pipe.PTTL(ctx, pauseKey(name)), pipe.Get(ctx, pauseKey(name))
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("reading pauses: %w", err)
	}
	var paused []ActivePause
	for i, name := range names {
		if left[i].Val() > 0 {
			paused = append(paused, ActivePause{name, left[i].Val(), why[i].Val()})
		}
	}
	return paused, nil
}
