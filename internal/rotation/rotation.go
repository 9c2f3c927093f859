// Package rotation renews a grant: the protocol around Zoom's single-use
// refresh tokens. Whoever needs a fresh access token, now or by plan, goes
// through a [Rotator].
//
// A renewal is one flight. However many ask for it in this process, there is
// one; over all replicas the claim sees to that. The steps:
//
//  1. Claim: one write of lease and intent. If it fails, no token is spent.
//  2. Call: one request to Zoom, detached from whoever asked, with a deadline
//     inside the lease. It is never repeated within the flight.
//  3. Commit, by predecessor: the stored refresh token is replaced if it is the
//     one that was spent, whoever holds the lease by now. It is repeated until
//     it is safe or time is up.
//
// A flight that fails says what it did to the token: nothing ([grant.Unspent]),
// nobody knows ([grant.Uncertain]), or that the grant is [grant.Gone].
package rotation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/zoom"
)

// ErrClosed means: the rotator is shutting down and starts no flights.
var ErrClosed = errors.New("renewals have been stopped")

// ErrUnknownApp means: the grant belongs to a Zoom app that is not in the settings.
var ErrUnknownApp = errors.New("the grant's Zoom app is not configured")

// Grants is the store, as the protocol needs it. See [store.Store] for what
// each answers; Commit and a Claim with the same owner may be repeated.
type Grants interface {
	Claim(ctx context.Context, id grant.ID, owner string, lease time.Duration, goodUntil time.Time) (grant.Claim, error)
	Commit(ctx context.Context, id grant.ID, spent string, tokens grant.Tokens, due time.Time) error
	Fail(ctx context.Context, c grant.Claim, outcome grant.Outcome, retryIn time.Duration, reason string) error
}

// Zoom is a Zoom app's token endpoint.
type Zoom interface {
	Refresh(ctx context.Context, refresh secret.Text) (zoom.Tokens, error)
}

// Config is what a rotator needs. Every field without a default is required.
type Config struct {
	Grants  Grants
	Apps    map[string]Zoom // by the name of the Zoom app
	Log     *zap.Logger
	Metrics prometheus.Registerer

	RefreshBefore time.Duration // how long before expiry a token is to be renewed
	Lease         time.Duration // how long a flight may take; 0: 30 s
}

// Rotator renews grants. It is safe for concurrent use.
type Rotator struct {
	Config
	outcomes *prometheus.CounterVec

	mu      sync.Mutex
	flights map[grant.ID]*flight
	closed  bool
	running sync.WaitGroup
}

type flight struct {
	done chan struct{} // closed when err is set
	err  error
}

// New returns a rotator. It does no I/O.
func New(c Config) *Rotator {
	if c.Lease == 0 {
		c.Lease = 30 * time.Second
	}
	r := &Rotator{
		Config:  c,
		flights: make(map[grant.ID]*flight),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_refreshes_total",
			Help: "Refreshes of access tokens at Zoom, by outcome.",
		}, []string{"outcome"}),
	}
	c.Metrics.MustRegister(r.outcomes)
	return r
}

// Plan returns when tokens are to be renewed, with jitter.
func (r *Rotator) Plan(tokens grant.Tokens) time.Time {
	return grant.Due(tokens.Issued, tokens.Expires, r.RefreshBefore, mathrand.Float64()) //nolint:gosec // jitter is no secret
}

// Renew sees to it that the grant's access token is good for at least ttl: by a
// flight of its own, or by waiting for one that is under way, here or at
// another replica. It gives up when ctx ends; the flight does not.
//
// It answers nil when there is nothing (more) to renew: read the grant again.
// Otherwise: the errors of [Grants.Claim]; [grant.ErrReauthorize]; or, when
// the flight failed and there will be another, a [*grant.BackoffError].
func (r *Rotator) Renew(ctx context.Context, id grant.ID, ttl time.Duration) error {
	const look = 100 * time.Millisecond // between looks at another replica's flight
	for {
		err := r.join(ctx, id, time.Now().Add(ttl))
		var held *grant.HeldError
		switch {
		case errors.Is(err, grant.ErrFresh):
			return nil
		case !errors.As(err, &held):
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another replica's renewal: %w", ctx.Err())
		case <-time.After(min(held.For, look)):
		}
	}
}

// RenewDue renews a grant if its plan says so. It starts a flight and returns at
// once; landed is called at its end. It returns false, without calling landed,
// if a flight is under way here already or the rotator is closed.
func (r *Rotator) RenewDue(id grant.ID, landed func(error)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.flights[id] != nil {
		return false
	}
	f := r.takeOffLocked(id, time.Time{})
	go func() {
		<-f.done
		landed(f.err)
	}()
	return true
}

// join waits for the flight of a grant, and starts it if there is none.
func (r *Rotator) join(ctx context.Context, id grant.ID, goodUntil time.Time) error {
	r.mu.Lock()
	f := r.flights[id]
	if f == nil {
		if r.closed {
			r.mu.Unlock()
			return ErrClosed
		}
		f = r.takeOffLocked(id, goodUntil)
	}
	r.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the renewal: %w", ctx.Err())
	}
}

func (r *Rotator) takeOffLocked(id grant.ID, goodUntil time.Time) *flight {
	f := &flight{done: make(chan struct{})}
	r.flights[id] = f
	r.running.Go(func() {
		f.err = r.fly(id, goodUntil)
		r.mu.Lock()
		delete(r.flights, id)
		r.mu.Unlock()
		close(f.done)
	})
	return f
}

// Close starts no more flights and waits for those under way, until ctx ends.
func (r *Rotator) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	landed := make(chan struct{})
	go func() {
		r.running.Wait()
		close(landed)
	}()
	select {
	case <-landed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for renewals in flight: %w", ctx.Err())
	}
}

// fly is one flight.
func (r *Rotator) fly(id grant.ID, goodUntil time.Time) error {
	// Nobody's context: who asked may leave, but a spent token needs its answer.
	ctx, cancel := context.WithTimeout(context.Background(), r.Lease)
	defer cancel()
	claim, err := r.Grants.Claim(ctx, id, rand.Text(), r.Lease, goodUntil)
	if err != nil {
		return err
	}
	app, known := r.Apps[claim.App]
	if !known {
		return r.fail(ctx, claim, ErrUnknownApp)
	}
	tokens, err := r.call(ctx, app, claim)
	if err != nil {
		return r.fail(ctx, claim, err)
	}
	return r.commit(claim, tokens)
}

// call spends the refresh token.
func (r *Rotator) call(ctx context.Context, app Zoom, claim grant.Claim) (grant.Tokens, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Lease*2/3) // leaves a third of the lease to commit
	defer cancel()
	issued := time.Now()
	answer, err := app.Refresh(ctx, claim.Refresh)
	if err != nil {
		return grant.Tokens{}, err
	}
	return grant.Tokens{Access: answer.Access, Refresh: answer.Refresh, Issued: issued, Expires: issued.Add(answer.Life)}, nil
}

// commit makes Zoom's answer safe. It goes on beyond the lease: the predecessor
// decides, and there is no other copy.
func (r *Rotator) commit(claim grant.Claim, tokens grant.Tokens) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*r.Lease)
	defer cancel()
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 20*time.Millisecond, time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := r.Grants.Commit(ctx, claim.ID, claim.Spent, tokens, r.Plan(tokens))
		if errors.Is(err, grant.ErrSuperseded) || errors.Is(err, grant.ErrNotFound) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pace), backoff.WithMaxElapsedTime(0))
	log := r.Log.With(zap.String("grant", string(claim.ID)), zap.String("app", claim.App))
	switch {
	case err == nil:
		r.outcomes.WithLabelValues("renewed").Inc()
		log.Info("access token renewed", zap.Time("expires", tokens.Expires))
	case errors.Is(err, grant.ErrSuperseded) || errors.Is(err, grant.ErrNotFound):
		r.outcomes.WithLabelValues("superseded").Inc()
		log.Info("renewed a grant that has been replaced or removed meanwhile")
	default:
		r.outcomes.WithLabelValues("lost").Inc()
		log.Error("Zoom's answer could not be stored: the user may have to authorize again", zap.Error(err))
	}
	return err
}

// fail records a failure and returns what it means for whoever asked.
func (r *Rotator) fail(ctx context.Context, claim grant.Claim, cause error) error {
	outcome, asked := judge(cause)
	wait := grant.Backoff(claim.Failures+1, mathrand.Float64(), asked) //nolint:gosec // jitter is no secret
	reason := cause.Error()
	if outcome == grant.Gone && claim.Uncertain {
		reason = "an earlier answer of Zoom's was lost, and Zoom refuses the refresh token before it"
	}
	log := r.Log.With(zap.String("grant", string(claim.ID)), zap.String("app", claim.App),
		zap.String("outcome", string(outcome)), zap.Error(cause))
	r.outcomes.WithLabelValues(string(outcome)).Inc()
	switch {
	case outcome == grant.Gone:
		log.Warn("the user must authorize again", zap.Bool("uncertain", claim.Uncertain))
	case errors.Is(cause, zoom.ErrInvalidClient), errors.Is(cause, ErrUnknownApp):
		log.Error("refresh failed: check the Zoom app's settings", zap.Duration("retry_in", wait))
	default:
		log.Warn("refresh failed", zap.Duration("retry_in", wait))
	}
	if err := r.Grants.Fail(ctx, claim, outcome, wait, reason); err != nil {
		// The lease ends by itself, and the intent tells whoever comes next.
		log.Warn("a failure could not be recorded", zap.NamedError("record_error", err))
	}
	if outcome == grant.Gone {
		return grant.ErrReauthorize
	}
	return fmt.Errorf("%w: %w", cause, &grant.BackoffError{For: wait})
}

// judge says what a failed call has done to the refresh token, and how long
// Zoom asked to wait.
func judge(cause error) (grant.Outcome, time.Duration) {
	const operator = time.Minute // until what only the operator can mend is tried again
	var refused *zoom.RefusedError
	switch {
	case errors.Is(cause, zoom.ErrInvalidGrant):
		return grant.Gone, 0
	case errors.Is(cause, zoom.ErrInvalidClient), errors.Is(cause, ErrUnknownApp):
		return grant.Unspent, operator
	case errors.Is(cause, zoom.ErrUnsent):
		return grant.Unspent, 0
	case errors.As(cause, &refused):
		if refused.Status >= http.StatusInternalServerError {
			return grant.Uncertain, refused.RetryAfter // it may have failed after the rotation
		}
		return grant.Unspent, refused.RetryAfter
	}
	return grant.Uncertain, 0
}
