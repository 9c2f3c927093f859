package registrar

import (
	"context"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/recall"
)

// Quota is what all replicas share of Recall's limits; see [store.Store].
type Quota interface {
	TakeQuota(ctx context.Context, kind string, perMinute, n int, background bool) (wait time.Duration, err error)
	Pause(ctx context.Context, name string, d time.Duration, reason string) error
	Paused(ctx context.Context, name string) (time.Duration, error)
}

// Gate keeps Recall's limits for all replicas together. It implements
// [recall.Gate].
type Gate struct {
	Quota     Quota
	PerMinute int // requests to Recall a minute, by all replicas
	Log       *zap.Logger
	Metrics   *GateMetrics // nil: nothing is measured

	// Patience is how long a request waits for its turn; what would take longer is
	// answered a [*recall.LimitError] at once.
	Patience time.Duration
	// Background requests leave half of what may be sent at once to the others, so
	// that those go first.
	Background bool
}

// listsPerMinute is Recall's limit of lists of credentials (API reference).
const listsPerMinute = 60

// Enter implements [recall.Gate].
func (g *Gate) Enter(ctx context.Context, kind recall.Kind, n int) (err error) {
	began := time.Now()
	defer func() { g.Metrics.entered(g.Background, began, err) }()
	ctx, cancel := context.WithTimeout(ctx, g.Patience+5*time.Second)
	defer cancel()
	for end := time.Now().Add(g.Patience); ; {
		wait, err := g.turn(ctx, kind, n)
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

// turn returns how long there is no room, 0 if the room is taken now.
func (g *Gate) turn(ctx context.Context, kind recall.Kind, n int) (time.Duration, error) {
	if wait, err := g.Quota.Paused(ctx, pause(kind)); err != nil || wait > 0 {
		g.Metrics.rest(kind, wait)
		return wait, err
	}
	// The scarcer one first: what it gives in vain, because the other has none, is
	// lost.
	if kind == recall.Lists {
		if wait, err := g.Quota.TakeQuota(ctx, pause(kind), min(listsPerMinute, g.PerMinute), n, g.Background); err != nil || wait > 0 {
			return wait, err
		}
	}
	return g.Quota.TakeQuota(ctx, pause("all"), g.PerMinute, n, g.Background)
}

// Rest implements [recall.Gate].
func (g *Gate) Rest(ctx context.Context, kind recall.Kind, d time.Duration) {
	g.Metrics.rest(kind, d)
	g.Log.Warn("Recall wants to be left alone", zap.String("kind", string(kind)), zap.Duration("for", d))
	if err := g.Quota.Pause(ctx, pause(kind), d, "Recall has asked for it"); err != nil {
		g.Log.Warn("the other replicas could not be told to leave Recall alone", zap.Error(err))
	}
}

func pause(kind recall.Kind) string { return "recall:" + string(kind) }
