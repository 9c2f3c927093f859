package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

const reconcileKey = prefix + "reconcile"

// SaveReconciliation keeps how far the reconciliation has come, in the words of
// whoever reconciles, for the next one to go on from.
func (s *Store) SaveReconciliation(ctx context.Context, progress string) error {
	if err := s.redis.Set(ctx, reconcileKey, progress, 0).Err(); err != nil {
		return fmt.Errorf("keeping how far the reconciliation has come: %w", err)
	}
	return nil
}

// ReadReconciliation returns what [Store.SaveReconciliation] has kept last, "" if
// nothing was.
func (s *Store) ReadReconciliation(ctx context.Context) (progress string, err error) {
	progress, err = s.redis.Get(ctx, reconcileKey).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("asking how far the reconciliation has come: %w", err)
	}
	return progress, nil
}

// ByID reads several grants at once, in no order; those that do not exist are
// left out.
func (s *Store) ByID(ctx context.Context, ids []grant.ID) ([]grant.Grant, error) {
	return s.read(ctx, ids)
}
