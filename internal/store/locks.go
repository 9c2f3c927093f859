package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"tokenprovider/internal/grant"
)

// Locks limits work across all replicas. A lock saves work; it does not protect a
// record. Lock order: registration of a user, then nothing else; reconciliation
// takes registration locks, never the reverse.
type Locks struct{ *core }

// LockRegistration locks the registration and removal of a user across all replicas.
// The lock is extended until unlock is called; if the process crashes, it expires
// after ttl. It is not a fencing lock; see [Locks].
//
// ok is false if another caller holds the lock.
func (s *Locks) LockRegistration(ctx context.Context, id grant.ID, ttl time.Duration) (unlock func(), ok bool, err error) {
	return s.lock(ctx, shardKey(id.Shard(), "registering:"+string(id)), ttl)
}

// LockReconciliation locks the reconciliation across all replicas; see [Locks.LockRegistration].
func (s *Locks) LockReconciliation(ctx context.Context, ttl time.Duration) (unlock func(), ok bool, err error) {
	return s.lock(ctx, prefix+"reconcile_lock", ttl)
}

func (s *core) lock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error) {
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
				_ = extendScript.Run(ctx, s.redis, []string{key}, mark, ttl.Milliseconds()).Err() // repeated at the next tick
			}
		}
	}()
	return func() {
		stop()
		<-ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = unlockScript.Run(ctx, s.redis, []string{key}, mark).Err() // else it expires
	}, true, nil
}
