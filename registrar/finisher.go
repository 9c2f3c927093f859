package registrar

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/recall"
)

// Finish ends what a crash or an outage has left half-way, until ctx ends: it
// gives pending users their credential and removes those that are being
// removed. Any number of replicas may run it; every is the mean time between
// rounds of one.
func (s *Service) Finish(ctx context.Context, every time.Duration) {
	for {
		timer := time.NewTimer(every/2 + time.Duration(rand.Int64N(int64(every)))) //nolint:gosec // jitter is no secret
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		for _, state := range []grant.State{grant.Pending, grant.Deleting} {
			if err := s.finishAll(ctx, state); err != nil && ctx.Err() == nil {
				s.Log.Warn("unfinished users have to wait", zap.String("state", string(state)), zap.Error(err))
			}
		}
	}
}

// finishAll goes once through the users in a state. It stops at what would stop
// every other user too.
func (s *Service) finishAll(ctx context.Context, state grant.State) error {
	const page = 100
	var after grant.ID
	for {
		grants, err := s.Store.List(ctx, state, after, page)
		if err != nil {
			return err
		}
		for _, g := range grants {
			if err := s.finish(ctx, g.ID); err != nil {
				s.Log.Warn("a user could not be finished", zap.String("grant", string(g.ID)),
					zap.String("state", string(state)), zap.Error(err))
				var refused *recall.RefusedError
				if errors.Is(err, recall.ErrUnauthorized) || errors.Is(err, recall.ErrUncertain) ||
					errors.As(err, &refused) && refused.Status != 400 {
					return err
				}
			}
			after = g.ID
		}
		if len(grants) < page || ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// finish takes one user's next steps, unless somebody else does.
func (s *Service) finish(ctx context.Context, id grant.ID) error {
	ctx, cancel := context.WithTimeout(ctx, workTime)
	defer cancel()
	unlock, ok, err := s.Store.LockRegistration(ctx, id, workTime)
	if err != nil || !ok {
		return err
	}
	defer unlock()
	g, err := s.Store.Get(ctx, id)
	if errors.Is(err, grant.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	switch g.State {
	case grant.Pending:
		if _, err = s.link(ctx, g); err != nil {
			_, recordErr := s.pending(ctx, id, err)
			return errors.Join(err, recordErr)
		}
	case grant.Deleting:
		return s.remove(ctx, g)
	default: // finished meanwhile
	}
	return nil
}
