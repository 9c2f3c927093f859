package tokenserver

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/grant"
)

// DueIndex knows which grants are to be renewed; see [store.Store.Due].
type DueIndex interface {
	Due(ctx context.Context, shard, limit int) (ids []grant.ID, next time.Duration, err error)
}

// DueRenewer starts renewals; see [rotation.Rotator.RenewDue].
type DueRenewer interface {
	RenewDue(id grant.ID, landed func(error)) bool
}

// Refresher keeps every grant's access token fresh. Any number of replicas may
// run one: all look at all shards, and the claim sees to it that a grant is
// renewed once.
type Refresher struct {
	Index   DueIndex
	Renewer DueRenewer
	Log     *zap.Logger

	// Poll is how often a shard is looked at where nothing is known to be due
	// sooner: how late a grant that somebody else has put there may be seen.
	// 0: 15 s.
	Poll time.Duration
	// InFlight bounds the renewals under way at once. 0: 64.
	InFlight int
}

// Run works until ctx ends. Renewals under way go on: see
// [rotation.Rotator.Close].
func (r *Refresher) Run(ctx context.Context) {
	poll, inFlight := r.Poll, r.InFlight
	if poll == 0 {
		poll = 15 * time.Second
	}
	if inFlight == 0 {
		inFlight = 64
	}
	slots := make(chan struct{}, inFlight)
	var look [grant.Shards]time.Time // when to look at each shard again
	for ctx.Err() == nil {
		soonest := time.Now().Add(poll)
		for _, shard := range rand.Perm(grant.Shards) { //nolint:gosec // replicas spread out; no secret
			if time.Now().Before(look[shard]) {
				soonest = earlier(soonest, look[shard])
				continue
			}
			wait := r.shard(ctx, shard, slots, poll)
			// Less up to a tenth, so that replicas and shards do not march in step.
			wait -= time.Duration(rand.Int64N(int64(wait)/10 + 1)) //nolint:gosec // jitter is no secret
			look[shard] = time.Now().Add(wait)
			soonest = earlier(soonest, look[shard])
		}
		pause(ctx, time.Until(soonest))
	}
}

// shard starts the renewal of what is due in a shard, as far as there are free
// slots, and returns how long to leave the shard alone.
func (r *Refresher) shard(ctx context.Context, shard int, slots chan struct{}, poll time.Duration) time.Duration {
	const busy = 20 * time.Millisecond // while renewals that are due here wait for slots or for their claims
	free := cap(slots) - len(slots)
	if free == 0 {
		return busy
	}
	ids, next, err := r.Index.Due(ctx, shard, free)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			r.Log.Warn("cannot see what is due", zap.Int("shard", shard), zap.Error(err))
		}
		return poll
	}
	for _, id := range ids {
		slots <- struct{}{} // this loop alone fills them, so there is room
		if !r.Renewer.RenewDue(id, func(error) { <-slots }) {
			<-slots // it is under way already
		}
	}
	if len(ids) > 0 {
		return busy // there may be more, and claims can be refused
	}
	if next < 0 {
		return poll
	}
	return min(next, poll)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
