package tokenserver

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/grant"
)

// DueIndex lists the grants that are due to be renewed, by Zoom app and shard; see
// [store.Store.ListDue]. A grant stays listed until a claim moves its due time.
type DueIndex interface {
	ListDue(ctx context.Context, app string, shard, limit int) (late []grant.DueGrant, next time.Duration, err error)
}

// DueRenewer starts renewals; see [renewal.Renewer]. Capacity is 0 while the app is
// paused. RenewDue does not block.
type DueRenewer interface {
	AppNames() []string
	Capacity(app string) int
	RenewDue(app string, id grant.ID, done func(error)) bool
}

// Refresher keeps every grant's access token fresh. Any number of replicas may run
// one: all read all shards, and the claim ensures that a grant is renewed once.
//
// Each Zoom app has its own queue, and its own goroutine. So an app that is paused, has
// a backlog or whose index cannot be read does not delay the renewals of another.
type Refresher struct {
	Index   DueIndex
	Renewer DueRenewer
	Log     *zap.Logger

	// Poll is the interval between reads of a shard in which nothing is due sooner,
	// and so the greatest delay of a grant that another process has made due. 0: 15 s.
	Poll time.Duration
}

const (
	batch        = 64                    // grants read from a shard at once
	busyInterval = 20 * time.Millisecond // between reads while there is work
	appInterval  = time.Second           // between checks for added or removed apps
)

// Run works until ctx ends. Renewals in flight continue; see [renewal.Renewer.Close].
func (r *Refresher) Run(ctx context.Context) {
	var queues sync.WaitGroup
	defer queues.Wait()
	running := map[string]context.CancelFunc{}
	for ctx.Err() == nil {
		apps := r.Renewer.AppNames()
		for app, stop := range running {
			if !slices.Contains(apps, app) {
				stop()
				delete(running, app)
			}
		}
		for _, app := range apps {
			if running[app] != nil {
				continue
			}
			appCtx, stop := context.WithCancel(ctx)
			running[app] = stop
			queues.Go(func() {
				defer stop()
				r.newQueue(app).run(appCtx)
			})
		}
		wait(ctx, appInterval)
	}
}

// dueQueue is the queue of one Zoom app. A shard is read when something in it is
// known to be due, and otherwise at intervals. Its due grants are queued, longest
// overdue first, until the renewer has capacity; so after an outage the tokens that
// expire first are renewed first.
type dueQueue struct {
	*Refresher
	app    string
	poll   time.Duration
	grants []queuedGrant
	queued map[grant.ID]bool
	next   [grant.Shards]time.Time // when to read each shard next
	failed bool                    // the last read failed
}

type queuedGrant struct {
	id  grant.ID
	due time.Time
}

func (r *Refresher) newQueue(app string) *dueQueue {
	q := &dueQueue{Refresher: r, app: app, poll: r.Poll, queued: make(map[grant.ID]bool)}
	if q.poll == 0 {
		q.poll = 15 * time.Second
	}
	return q
}

func (q *dueQueue) run(ctx context.Context) {
	for ctx.Err() == nil {
		if q.Renewer.Capacity(q.app) == 0 {
			wait(ctx, busyInterval)
			continue
		}
		idle, err := q.read(ctx)
		if err != nil {
			if !q.failed && ctx.Err() == nil {
				q.Log.Warn("reading due grants failed; scheduled renewals stopped", zap.String("app", q.app), zap.Error(err))
			}
			q.failed = true
			wait(ctx, time.Second)
			continue
		}
		if q.failed {
			q.Log.Info("reading due grants succeeded; scheduled renewals resumed", zap.String("app", q.app))
			q.failed = false
		}
		q.start()
		if len(q.grants) > 0 {
			idle = busyInterval
		}
		wait(ctx, idle)
	}
}

// read lists what is due in the shards whose time has come, and returns the time until
// the next shard's.
func (q *dueQueue) read(ctx context.Context) (idle time.Duration, err error) {
	now := time.Now()
	earliest := now.Add(q.poll)
	for _, shard := range rand.Perm(grant.Shards) { //nolint:gosec // spreads replicas; no secret
		if !now.Before(q.next[shard]) {
			late, next, err := q.Index.ListDue(ctx, q.app, shard, batch)
			if err != nil {
				return 0, err
			}
			interval := q.poll
			switch {
			case len(late) == batch: // there may be more
				interval = busyInterval
			case len(late) > 0: // time for the claims, which move their grants' due times
				interval = time.Second
			case next >= 0:
				interval = min(next, q.poll)
			}
			// Less up to a tenth, so that replicas and shards spread out.
			q.next[shard] = now.Add(interval - time.Duration(rand.Int64N(int64(interval)/10+1))) //nolint:gosec // jitter is no secret
			for _, l := range late {
				if !q.queued[l.ID] {
					q.queued[l.ID] = true
					q.grants = append(q.grants, queuedGrant{l.ID, now.Add(-l.Overdue)})
				}
			}
		}
		if q.next[shard].Before(earliest) {
			earliest = q.next[shard]
		}
	}
	slices.SortStableFunc(q.grants, func(a, b queuedGrant) int {
		// To the second: within one, replicas start with different grants.
		return a.due.Truncate(time.Second).Compare(b.due.Truncate(time.Second))
	})
	return max(time.Until(earliest), time.Millisecond), nil
}

// start starts as many renewals as the renewer has capacity for.
func (q *dueQueue) start() {
	n := min(q.Renewer.Capacity(q.app), len(q.grants))
	for _, g := range q.grants[:n] {
		delete(q.queued, g.id)
		q.Renewer.RenewDue(q.app, g.id, func(error) {}) // the renewer logs and counts the outcome
	}
	q.grants = append(q.grants[:0], q.grants[n:]...)
}

// wait waits for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
