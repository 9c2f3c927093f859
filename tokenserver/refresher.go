package tokenserver

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/grant"
)

// DueIndex lists the grants of a Zoom app that are due; see [store.Store.ListDue].
type DueIndex interface {
	ListDue(ctx context.Context, app string, shard, limit int) (late []grant.DueGrant, next time.Duration, err error)
}

// DueRenewer starts renewals; see [renewal.Renewer].
type DueRenewer interface {
	Capacity() int
	RenewDue(id grant.ID, landed func(error)) bool
}

// Refresher keeps every grant's access token fresh. Any number of replicas may
// run one: all look at all shards, and the claim sees to it that a grant is
// renewed once.
//
// A shard is looked at when something in it is known to be due, and otherwise
// now and then. What is found queues here, longest overdue first, until the
// renewer has room; so after an outage what expires first is renewed first.
type Refresher struct {
	Index   DueIndex
	Apps    func() []string // names of the Zoom apps, now
	Renewer DueRenewer
	Log     *zap.Logger

	// Poll is how often a shard is looked at where nothing is known to be due
	// sooner: how late a grant that somebody else has put there may be seen.
	// 0: 15 s.
	Poll time.Duration

	queue  []waiting
	queued map[grant.ID]bool
	look   map[string]*[grant.Shards]time.Time // when to look at each app's shards again
	blind  bool                                // the last look failed
}

// waiting is a grant that is due.
type waiting struct {
	id    grant.ID
	since time.Time
}

const (
	batch = 64                    // grants taken from a shard at a look
	soon  = 20 * time.Millisecond // between looks while there is work
)

// Run works until ctx ends. Renewals under way go on: see
// [renewal.Renewer.Close].
func (r *Refresher) Run(ctx context.Context) {
	if r.Poll == 0 {
		r.Poll = 15 * time.Second
	}
	r.queued = make(map[grant.ID]bool)
	r.look = make(map[string]*[grant.Shards]time.Time)
	for ctx.Err() == nil {
		if r.Renewer.Capacity() == 0 {
			pause(ctx, soon)
			continue
		}
		wait, err := r.gather(ctx)
		if err != nil {
			if !r.blind && ctx.Err() == nil {
				r.Log.Warn("cannot see what is due", zap.Error(err))
			}
			r.blind = true
			pause(ctx, time.Second)
			continue
		}
		if r.blind {
			r.Log.Info("can see again what is due")
			r.blind = false
		}
		r.start()
		if len(r.queue) > 0 {
			wait = soon
		}
		pause(ctx, wait)
	}
}

// gather looks at the shards whose time has come, and returns how long there is
// nothing to look at.
func (r *Refresher) gather(ctx context.Context) (time.Duration, error) {
	now := time.Now()
	soonest := now.Add(r.Poll)
	for _, app := range r.Apps() {
		next, err := r.gatherApp(ctx, app, now)
		if err != nil {
			return 0, err
		}
		if next.Before(soonest) {
			soonest = next
		}
	}
	slices.SortStableFunc(r.queue, func(a, b waiting) int {
		// To the second: within one, replicas take different ones first.
		return a.since.Truncate(time.Second).Compare(b.since.Truncate(time.Second))
	})
	return max(time.Until(soonest), time.Millisecond), nil
}

// gatherApp looks at the shards of one Zoom app whose time has come, and returns
// when to look again.
func (r *Refresher) gatherApp(ctx context.Context, app string, now time.Time) (time.Time, error) {
	look := r.look[app]
	if look == nil {
		look = new([grant.Shards]time.Time)
		r.look[app] = look
	}
	soonest := now.Add(r.Poll)
	for _, shard := range rand.Perm(grant.Shards) { //nolint:gosec // replicas spread out; no secret
		if !now.Before(look[shard]) {
			late, next, err := r.Index.ListDue(ctx, app, shard, batch)
			if err != nil {
				return time.Time{}, err
			}
			wait := r.Poll
			switch {
			case len(late) > 0:
				// A second, for the claims to be made: they move what they get out of
				// the way. Sooner if there is more to take.
				wait = time.Second
				if len(late) == batch {
					wait = soon
				}
			case next >= 0:
				wait = min(next, r.Poll)
			}
			// Less up to a tenth, so that replicas and shards do not march in step.
			look[shard] = now.Add(wait - time.Duration(rand.Int64N(int64(wait)/10+1))) //nolint:gosec // jitter is no secret
			for _, l := range late {
				if !r.queued[l.ID] {
					r.queued[l.ID] = true
					r.queue = append(r.queue, waiting{l.ID, now.Add(-l.Overdue)})
				}
			}
		}
		if look[shard].Before(soonest) {
			soonest = look[shard]
		}
	}
	return soonest, nil
}

// start starts as many renewals as there is room for.
func (r *Refresher) start() {
	room := min(r.Renewer.Capacity(), len(r.queue))
	for _, w := range r.queue[:room] {
		delete(r.queued, w.id)
		r.Renewer.RenewDue(w.id, func(error) {}) // the rotator tells what came of it
	}
	r.queue = append(r.queue[:0], r.queue[room:]...)
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
