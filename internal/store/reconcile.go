package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

const reconcileKey = prefix + "reconcile"

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

// ByID reads several grants at once, in no order; those that do not exist are
// left out.
func (s *Grants) ByID(ctx context.Context, ids []grant.ID) ([]grant.Grant, error) {
	return s.read(ctx, ids)
}
