package recallvendor

import (
	"context"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/recall"
)

// Quota counts requests and holds pauses for all replicas; see [store.Store].
type Quota interface {
	// TakeQuota takes n of perMinute requests of a kind, and returns 0. If there is no
	// room for n now, it takes none and returns the time until there may be. With n = 0
	// it takes none. Background requests leave half of a burst to the others.
	TakeQuota(ctx context.Context, kind string, perMinute, n int, background bool) (wait time.Duration, err error)
	// Pause pauses what name stands for, for d. It may be repeated.
	Pause(ctx context.Context, name string, d time.Duration, reason string) error
	// PauseRemaining returns the remaining time of a pause, 0 if there is none.
	PauseRemaining(ctx context.Context, name string) (time.Duration, error)
}

// Gate keeps Recall's limits for all replicas together. It implements
// [recall.Gate].
type Gate struct {
	Quota     Quota
	PerMinute int // requests to Recall per minute, by all replicas
	Log       *zap.Logger
	Metrics   *GateMetrics // nil: nothing is measured

	// MaxWait is the longest wait for a request's turn. If the turn comes later,
	// [Gate.Enter] returns a [*recall.LimitError] at once.
	MaxWait time.Duration
	// Background requests leave half of a burst to the others, which therefore go first.
	Background bool
}

// listsPerMinute is Recall's limit for lists of credentials (API reference).
const listsPerMinute = 60

// Enter implements [recall.Gate].
func (g *Gate) Enter(ctx context.Context, kind recall.Kind, n int) (err error) {
	began := time.Now()
	defer func() { g.Metrics.observeEntry(g.Background, began, err) }()
	ctx, cancel := context.WithTimeout(ctx, g.MaxWait+5*time.Second)
	defer cancel()
	for end := time.Now().Add(g.MaxWait); ; {
		wait, err := g.tryEnter(ctx, kind, n)
		if err != nil || wait == 0 {
			return err
		}
		if time.Now().Add(wait).After(end) {
			return &recall.LimitError{For: wait}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// tryEnter takes the quota and returns 0, or returns the wait for it.
func (g *Gate) tryEnter(ctx context.Context, kind recall.Kind, n int) (time.Duration, error) {
	if wait, err := g.Quota.PauseRemaining(ctx, quotaName(kind)); err != nil || wait > 0 {
		g.Metrics.observePause(kind, wait)
		return wait, err
	}
	// The scarcer quota first: if the other has no room, what was taken is lost.
	if kind == recall.Lists {
		if wait, err := g.Quota.TakeQuota(ctx, quotaName(kind), min(listsPerMinute, g.PerMinute), n, g.Background); err != nil || wait > 0 {
			return wait, err
		}
	}
	return g.Quota.TakeQuota(ctx, quotaName("all"), g.PerMinute, n, g.Background)
}

// Pause implements [recall.Gate].
func (g *Gate) Pause(ctx context.Context, kind recall.Kind, d time.Duration) {
	g.Metrics.observePause(kind, d)
	g.Log.Warn("rate limited by Recall; requests paused", zap.String("kind", string(kind)), zap.Duration("for", d))
	if err := g.Quota.Pause(ctx, quotaName(kind), d, "rate limited by Recall"); err != nil {
		g.Log.Warn("pause not published; other replicas may exceed Recall's limit", zap.Error(err))
	}
}

// quotaName is the name of a kind's quota and pause in Redis.
func quotaName(kind recall.Kind) string { return "recall:" + string(kind) }
