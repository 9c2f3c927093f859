package store

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

// readBatcher batches reads of serving fields. A read starts at once while fewer than
// two batches are in progress. Otherwise it waits, and shares the next batch with all
// other waiting reads.
type readBatcher struct {
	redis redis.UniversalClient

	mu      sync.Mutex
	waiting []*read
	running int // batches
}

// read is one read and its result.
type read struct {
	id     grant.ID
	done   chan struct{}
	values []any
	err    error
}

const (
	batches   = 2               // in progress at once
	batchSize = 100             // reads in one, at most
	batchTime = 2 * time.Second // for one, at most
)

// read reads the serving fields of a record. It gives up when ctx ends.
func (b *readBatcher) read(ctx context.Context, id grant.ID) ([]any, error) {
	r := &read{id: id, done: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, r)
	if b.running < batches {
		b.running++
		go b.run()
	}
	b.mu.Unlock()
	select {
	case <-r.done:
		return r.values, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run reads batches until no read waits.
func (b *readBatcher) run() {
	for {
		b.mu.Lock()
		batch := b.waiting[:min(len(b.waiting), batchSize)]
		b.waiting = b.waiting[len(batch):]
		if len(batch) == 0 {
			b.waiting = nil
			b.running--
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		b.readAll(batch)
	}
}

func (b *readBatcher) readAll(batch []*read) {
	// Independent of the callers' contexts: one may end before the others.
	ctx, cancel := context.WithTimeout(context.Background(), batchTime)
	defer cancel()
	commands := make([]*redis.SliceCmd, len(batch))
	_, _ = b.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error { // each command has its own error
		for i, r := range batch {
			commands[i] = pipe.HMGet(ctx, grantKey(r.id), servingFields[:]...)
		}
		return nil
	})
	for i, r := range batch {
		r.values, r.err = commands[i].Result()
		close(r.done)
	}
}
