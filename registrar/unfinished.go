package registrar

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	"tokenprovider/internal/telemetry"
	"tokenprovider/internal/zoom"
)

// WorkStore is the index of unfinished registrations and removals. The scripts that
// change a grant keep it up to date.
type WorkStore interface {
	// ListWork returns up to limit grants of each shard whose next step is due, the most
	// overdue first. Due times are by Redis's clock, and compared with this process's.
	ListWork(ctx context.Context, limit int) ([]grant.ID, error)
	// Postpone makes a grant's next step due after wait, and counts the attempt. A
	// repeated call counts twice, and does no other harm.
	Postpone(ctx context.Context, id grant.ID, wait time.Duration) error
}

// RunUnfinished continues interrupted registrations and removals until ctx ends: it
// gives pending users their credential, and removes users in state deleting, and
// those who have removed the app at Zoom. Any number of replicas may run it. The
// mean time between two rounds of one replica is every.
func (s *Service) RunUnfinished(ctx context.Context, every time.Duration) {
	for {
		timer := time.NewTimer(every/2 + time.Duration(rand.Int64N(int64(every)))) //nolint:gosec // jitter is no secret
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if err := s.continueDue(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("registrations not continued; retry in the next round", zap.Error(err))
		}
	}
}

// continueDue continues every user whose next step is due. It stops at an error that
// meets every user. A failed user is postponed, so that no other user waits for it.
func (s *Service) continueDue(ctx context.Context) error {
	const page, parallel = 8, 8
	for ctx.Err() == nil {
		ids, err := s.Store.ListWork(ctx, page)
		if err != nil || len(ids) == 0 {
			return err
		}
		var (
			wg     sync.WaitGroup
			slots  = make(chan struct{}, parallel)
			outage atomic.Pointer[error]
			done   atomic.Int64
		)
		for _, id := range ids {
			slots <- struct{}{}
			if outage.Load() != nil || ctx.Err() != nil {
				break
			}
			wg.Go(func() {
				defer func() { <-slots }()
				ok, err := s.continueUser(ctx, id)
				switch {
				case err != nil && failsForAll(err):
					outage.CompareAndSwap(nil, &err)
				case ok:
					done.Add(1)
				}
			})
		}
		wg.Wait()
		if err := outage.Load(); err != nil {
			return *err
		}
		if done.Load() == 0 { // the rest is locked by other replicas, or postponed
			return nil
		}
	}
	return ctx.Err()
}

// continueUser takes one user's next steps, unless the user is locked.
func (s *Service) continueUser(ctx context.Context, id grant.ID) (done bool, err error) {
	ctx, span := telemetry.Tracer().Start(ctx, "continue", trace.WithAttributes(attribute.String("grant", string(id))))
	defer func() { telemetry.End(span, err) }()
	ctx, cancel := context.WithTimeout(ctx, s.WorkTimeout)
	defer cancel()
	unlock, ok, err := s.Store.LockRegistration(ctx, id, s.LockTTL)
	if err != nil || !ok {
		return false, err
	}
	defer unlock()
	g, err := s.Store.Get(ctx, id)
	if errors.Is(err, grant.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if g.State == grant.StateDeleting {
		if err = s.remove(ctx, g); err == nil {
			s.audit(ctx, actRemove, g.App, g.User, nil, g)
		}
	} else {
		var linked grant.Grant
		if linked, err = s.link(ctx, g); err == nil {
			s.metrics.observeLinked(g, linked)
		}
	}
	if err != nil {
		_, postponeErr := s.postpone(context.WithoutCancel(ctx), id, err)
		var taken *takenError
		if errors.As(postponeErr, &taken) {
			postponeErr = nil
		}
		return false, errors.Join(err, postponeErr)
	}
	return true, nil
}

// postpone schedules the rest of a registration or removal for later, and stores in
// a pending user's reason why it is incomplete. It returns cause only if it concerns
// the caller: a [*takenError].
func (s *Service) postpone(ctx context.Context, id grant.ID, cause error) (grant.Grant, error) {
	g, err := s.Store.Get(ctx, id)
	if err != nil {
		return grant.Grant{}, err
	}
	s.Log.Warn("registration incomplete; retry scheduled", zap.String("grant", string(id)), zap.String("state", string(g.State)), zap.Error(cause))
	s.metrics.observePostponed(cause)
	wait := grant.Backoff(g.Attempts+1, rand.Float64(), retryAfter(cause)) //nolint:gosec // jitter is no secret
	var taken *takenError
	if errors.As(cause, &taken) { // each attempt costs a create and a list
		wait = max(wait, 15*time.Minute)
	}
	if err := s.Store.Postpone(ctx, id, wait); err != nil {
		return grant.Grant{}, err
	}
	if g.State == grant.StatePending {
		if why := reason(cause); g.Reason != why {
			if g, err = s.change(ctx, g, store.Change{Reason: &why}); err != nil {
				return grant.Grant{}, err
			}
		}
	}
	if taken != nil {
		return g, taken
	}
	return g, nil
}

// retryAfter returns the wait that the vendor or Zoom has requested, 0 if neither has.
func retryAfter(cause error) time.Duration {
	var atVendor *VendorError
	var atZoom *zoom.RefusedError
	switch {
	case errors.As(cause, &atVendor):
		return atVendor.RetryAfter
	case errors.As(cause, &atZoom):
		return atZoom.RetryAfter
	}
	return 0
}

// reason returns a cause in words for people, the same words each time.
func reason(cause error) string {
	if errors.Is(cause, ErrOverLimit) {
		return "not yet at Recall: the limit of requests to Recall is used up"
	}
	return "not yet at Recall: " + cause.Error()
}
