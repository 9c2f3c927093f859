// Package registrar is the gRPC service that internal services use: a user's
// Zoom grant goes in, a Recall credential that points at the user's own
// callback URL comes of it.
//
// The API is documented in proto/tokenprovider/registrar/v1. A [Service] does
// the work: registration.go and removal.go are the two things that take steps,
// service.go answers calls with them, and finisher.go ends what a crash or an
// outage has left half-way. Each step is recorded, so any replica can carry on.
package registrar

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/rotation"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// App is a Zoom app, and what Recall knows it by.
type App struct {
	Zoom     *zoom.Client
	OAuthApp string // Recall's uuid of the app
}

// Config is what the service needs. Every field is required.
type Config struct {
	Store        *store.Store
	Rotator      *rotation.Rotator
	Apps         map[string]App // by the name of the Zoom app
	Recall       *recall.Client
	CallbackBase *url.URL // public URL of the token server
	Log          *zap.Logger
}

// Service implements the RegistrarService. It is safe for concurrent use.
type Service struct {
	registrarv1.UnimplementedRegistrarServiceServer
	Config

	work sync.WaitGroup // what goes on although its caller may have left
}

// New returns the service. It does no I/O.
func New(c Config) *Service { return &Service{Config: c} }

// workTime bounds one registration or removal, and its lock.
const workTime = time.Minute

// errBusy: somebody else is working on the same user.
var errBusy = errors.New("the user is being registered or removed by another call")

// onUser works on a user as the only one over all replicas. The work goes on
// when the caller leaves: a spent code needs its answer.
func (s *Service) onUser(ctx context.Context, id grant.ID, work func(context.Context) (grant.Grant, error)) (grant.Grant, error) {
	type result struct {
		grant grant.Grant
		err   error
	}
	done := make(chan result, 1)
	s.work.Go(func() {
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), workTime)
		defer cancel()
		unlock, err := s.lock(ctx, detached, id)
		if err != nil {
			done <- result{err: err}
			return
		}
		defer unlock()
		g, err := work(detached)
		done <- result{g, err}
	})
	select {
	case r := <-done:
		return r.grant, r.err
	case <-ctx.Done():
		return grant.Grant{}, fmt.Errorf("the work goes on: %w", ctx.Err())
	}
}

// lock waits for the user's lock for as long as the caller does.
func (s *Service) lock(caller, ctx context.Context, id grant.ID) (unlock func(), err error) {
	const look = 50 * time.Millisecond
	for {
		unlock, ok, err := s.Store.LockRegistration(ctx, id, workTime)
		if err != nil || ok {
			return unlock, err
		}
		select {
		case <-caller.Done():
			return nil, fmt.Errorf("%w: %w", errBusy, caller.Err())
		case <-ctx.Done():
			return nil, errBusy
		case <-time.After(look):
		}
	}
}

// Close waits for work whose callers have left, until ctx ends.
func (s *Service) Close(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		s.work.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for registrations under way: %w", ctx.Err())
	}
}

// change changes a grant whatever else has changed in it since it was read, a
// renewal for one: nobody but the holder of the user's lock changes what the
// steps here decide by.
func (s *Service) change(ctx context.Context, g grant.Grant, c store.Change) (grant.Grant, error) {
	for {
		changed, err := s.Store.Change(ctx, g.ID, g.Version, c)
		if !errors.Is(err, grant.ErrConflict) {
			return changed, err
		}
		if g, err = s.Store.Get(ctx, g.ID); err != nil {
			return grant.Grant{}, err
		}
	}
}
