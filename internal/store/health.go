package store

import (
	"context"
	"fmt"
	"time"
)

// Health reports the state of Redis and of the processes that use it.
type Health struct{ *core }

// Ping returns an error if Redis does not respond.
func (s *Health) Ping(ctx context.Context) error {
	if err := s.redis.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("pinging Redis: %w", err)
	}
	return nil
}

// Now returns the time by Redis's clock.
func (s *Health) Now(ctx context.Context) (time.Time, error) {
	now, err := s.redis.Time(ctx).Result()
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the time of Redis: %w", err)
	}
	return now, nil
}

// CheckWritable checks that Redis runs scripts and accepts writes.
func (s *Health) CheckWritable(ctx context.Context) error {
	unlock, ok, err := s.lock(ctx, prefix+"doctor", 5*time.Second)
	if err != nil {
		return err
	}
	if ok {
		unlock()
	}
	if _, _, err := s.run(ctx, markServedScript, noID); err != nil { // without this grant it changes nothing
		return fmt.Errorf("running a script: %w", err)
	}
	return nil
}
