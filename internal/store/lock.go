package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"tokenprovider/internal/grant"
)

// LockRegistration makes the caller the only one, over all replicas, who
// registers or removes a user, for at most ttl. It is also the probe that Redis
// can be written, before a code is spent. The lock saves work; what keeps
// records right is that every change names the version it was made from.
//
// It answers ok false if somebody else has it, and otherwise a function that
// lets go.
func (s *Store) LockRegistration(ctx context.Context, id grant.ID, ttl time.Duration) (unlock func(), ok bool, err error) {
	key, mark := shardKey(id.Shard(), "registering:"+string(id)), rand.Text()
	ok, err = s.redis.SetNX(ctx, key, mark, ttl).Result()
	if err != nil {
		return nil, false, fmt.Errorf("locking the registration of %s: %w", id, err)
	}
	if !ok {
		return nil, false, nil
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = unlockScript.Run(ctx, s.redis, []string{key}, mark).Err() // else it ends by its ttl
	}, true, nil
}
