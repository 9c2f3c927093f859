package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"tokenprovider/internal/grant"
)

// LockRegistration makes the caller the only one, over all replicas, who
// registers or removes a user, until it lets go. It is kept while the caller
// lives; if the caller dies, it ends after ttl. The lock saves work; what keeps
// records right is that every change names the version it was made from.
//
// It answers ok false if somebody else has it, and otherwise a function that
// lets go.
func (s *Store) LockRegistration(ctx context.Context, id grant.ID, ttl time.Duration) (unlock func(), ok bool, err error) {
	return s.lock(ctx, shardKey(id.Shard(), "registering:"+string(id)), ttl)
}

// LockReconciliation makes the caller the only one, over all replicas, who
// reconciles; see [Store.LockRegistration].
func (s *Store) LockReconciliation(ctx context.Context, ttl time.Duration) (unlock func(), ok bool, err error) {
	return s.lock(ctx, prefix+"reconciling", ttl)
}

func (s *Store) lock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error) {
	mark := rand.Text()
	ok, err = s.redis.SetNX(ctx, key, mark, ttl).Result()
	if err != nil {
		return nil, false, fmt.Errorf("locking %s: %w", key, err)
	}
	if !ok {
		return nil, false, nil
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(ttl / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = extendScript.Run(ctx, s.redis, []string{key}, mark, ttl.Milliseconds()).Err() // the next tick tries again
			}
		}
	}()
	return func() {
		stop()
		<-ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = unlockScript.Run(ctx, s.redis, []string{key}, mark).Err() // else it ends by its ttl
	}, true, nil
}
