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
	"tokenprovider/internal/recall"
	"tokenprovider/internal/telemetry"
)

// Finish ends what a crash or an outage has left half-way, until ctx ends: it
// gives pending users their credential and removes those that are being
// removed, also those who have removed the app at Zoom. Any number of replicas may
// run it; every is the mean time between rounds of one.
func (s *Service) Finish(ctx context.Context, every time.Duration) {
	for {
		timer := time.NewTimer(every/2 + time.Duration(rand.Int64N(int64(every)))) //nolint:gosec // jitter is no secret
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if err := s.finishDue(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("unfinished users have to wait", zap.Error(err))
		}
	}
}

// finishDue goes on with every user whose turn it is. It stops at what would stop
// every other user too. Whoever has failed is put back, so that nobody waits for
// the same user twice.
func (s *Service) finishDue(ctx context.Context) error {
	const page, atOnce = 8, 8
	for ctx.Err() == nil {
		ids, err := s.Store.ListWork(ctx, page)
		if err != nil || len(ids) == 0 {
			return err
		}
		var (
			wg       sync.WaitGroup
			place    = make(chan struct{}, atOnce)
			outage   atomic.Pointer[error]
			finished atomic.Int64
		)
		for _, id := range ids {
			place <- struct{}{}
			if outage.Load() != nil || ctx.Err() != nil {
				break
			}
			wg.Go(func() {
				defer func() { <-place }()
				done, err := s.finish(ctx, id)
				switch {
				case err != nil && stopsAll(err):
					outage.CompareAndSwap(nil, &err)
				case done:
					finished.Add(1)
				}
			})
		}
		wg.Wait()
		if err := outage.Load(); err != nil {
			return *err
		}
		if finished.Load() == 0 { // others have them, or they are put back
			return nil
		}
	}
	return ctx.Err()
}

// stopsAll reports whether an error is not the one user's.
func stopsAll(err error) bool {
	var limit *recall.LimitError
	var refused *recall.RefusedError
	var field *fieldError
	var taken *takenError
	switch {
	case errors.As(err, &taken), errors.As(err, &field), errors.Is(err, errBusy):
		return false
	case errors.As(err, &refused):
		return refused.Status != 400
	}
	return errors.As(err, &limit) || errors.Is(err, recall.ErrUnauthorized) || errors.Is(err, recall.ErrUncertain)
}

// finish takes one user's next steps, unless somebody else does.
func (s *Service) finish(ctx context.Context, id grant.ID) (done bool, err error) {
	ctx, span := telemetry.Tracer().Start(ctx, "finish", trace.WithAttributes(attribute.String("grant", string(id))))
	defer func() { telemetry.End(span, err) }()
	ctx, cancel := context.WithTimeout(ctx, s.WorkTime)
	defer cancel()
	unlock, ok, err := s.Store.LockRegistration(ctx, id, s.Lock)
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
	if g.State == grant.Deleting {
		if err = s.remove(ctx, g); err == nil {
			s.audit(ctx, actRemove, g.App, g.User, nil, g)
		}
	} else {
		var linked grant.Grant
		if linked, err = s.link(ctx, g); err == nil {
			s.metrics.linked(g, linked)
		}
	}
	if err != nil {
		_, laterErr := s.later(context.WithoutCancel(ctx), id, err)
		var taken *takenError
		if errors.As(laterErr, &taken) {
			laterErr = nil
		}
		return false, errors.Join(err, laterErr)
	}
	return true, nil
}
