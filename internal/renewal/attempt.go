package renewal

import (
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/telemetry"
	"tokenprovider/internal/zoom"
)

// fly is one flight. Its steps:
//
//  1. Claim: one write of lease and intent. If it fails, no token is spent.
//  2. Call: one request to Zoom, with a deadline inside the lease. It is never
//     repeated within the flight.
//  3. Journal: Zoom's answer is synced to disk.
//  4. Commit, by predecessor: the stored refresh token is replaced if it is the
//     one that was spent, whoever holds the lease by now.
//
// No caller's context is in it: who asked may leave, but a spent token needs
// its answer.
func (r *Renewer) fly(id grant.ID, goodUntil time.Time, asked []trace.Link) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.Lease)
	defer cancel()
	took := time.Now()
	claim, app, err := r.claim(ctx, id, goodUntil)
	if err != nil {
		return err
	}
	// A trace of its own, that knows who asked: whoever it was may have left.
	ctx, span := telemetry.Tracer().Start(ctx, "renew", trace.WithTimestamp(took), trace.WithLinks(asked...), trace.WithAttributes(
		attribute.String("grant", string(id)), attribute.String("app", claim.App), attribute.Bool("planned", goodUntil.IsZero())))
	defer func() { telemetry.End(span, err) }()
	r.metrics.begun(claim)
	if claim.Uncertain {
		r.Log.Warn("trying a refresh token that may be spent: an earlier answer is missing", zap.String("grant", string(id)))
	}

	callCtx, cancelCall := context.WithTimeout(ctx, r.Lease*2/3-time.Since(took)) // leaves a third of the lease
	issued := time.Now()
	answer, err := app.zoom.Refresh(callCtx, claim.Refresh)
	cancelCall()
	r.landed(claim.App, app.pace, err)
	if err != nil {
		return r.fail(ctx, claim, err)
	}
	answered := time.Now()
	r.metrics.retried(claim, "renewed")
	r.metrics.duration.Observe(answered.Sub(issued).Seconds())
	entry := journal.Entry{ID: id, Spent: claim.Spent, Tokens: grant.Tokens{
		Access: answer.Access, Refresh: answer.Refresh, Issued: issued, Expires: issued.Add(answer.Life),
	}}
	return r.keep(ctx, claim.App, entry, answered)
}

// claim takes the first step, and a place in the pace of the grant's app.
func (r *Renewer) claim(ctx context.Context, id grant.ID, goodUntil time.Time) (grant.Claim, app, error) {
	planned := goodUntil.IsZero()
	if planned {
		defer r.boarding.Add(-1)
	}
	if wait := r.grounded(); wait > 0 {
		return grant.Claim{}, app{}, &grant.BackoffError{For: wait}
	}
	breaks := r.Store.Failovers()
	claim, err := r.Store.Claim(ctx, id, cryptorand.Text(), grant.ClaimTerms{
		ValidUntil: goodUntil, Lease: r.Lease, LateResponseWait: r.LateResponseWait, HandOffGuard: r.HandOffGuard,
	})
	if err != nil {
		return grant.Claim{}, app{}, err
	}
	if r.Store.Failovers() != breaks {
		// The claim was made in a Redis that may have forgotten whose turn it is.
		return grant.Claim{}, app{}, r.release(ctx, claim, r.PauseAfterFailover)
	}
	found, known := r.app(claim.App)
	if !known {
		r.Log.Error("a grant belongs to a Zoom app that is not configured", zap.String("grant", string(id)), zap.String("app", claim.App))
		return grant.Claim{}, app{}, errors.Join(ErrUnknownApp, r.release(ctx, claim, time.Minute))
	}
	if wait := found.pace.enter(time.Now(), planned); wait > 0 {
		return grant.Claim{}, app{}, r.release(ctx, claim, wait)
	}
	return claim, found, nil
}

// keep makes Zoom's answer safe.
func (r *Renewer) keep(ctx context.Context, app string, e journal.Entry, answered time.Time) error {
	log := r.Log.With(zap.String("grant", string(e.ID)), zap.String("app", app))
	if err := r.Journal.Add(e); err != nil {
		log.Error("Zoom's answer is not in the journal: it is lost if this process dies before Redis has it", zap.Error(err))
		r.metrics.unjournaled.Inc()
	}
	r.metrics.exposure.Observe(time.Since(answered).Seconds())
	kept := r.safety.add(&answer{Entry: e})
	// From here on it goes on beyond the lease: the predecessor decides.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*r.Lease)
	defer cancel()
	err := r.persist(ctx, kept)
	switch {
	case err == nil, errors.Is(err, grant.ErrUnreplicated): // the recovery sees to the replicas
		r.metrics.outcome("renewed")
		log.Info("access token renewed", zap.Time("expires", e.Tokens.Expires))
		return nil
	case errors.Is(err, grant.ErrSuperseded), errors.Is(err, grant.ErrNotFound):
		r.metrics.outcome("superseded")
		log.Info("renewed a grant that has been replaced or removed meanwhile")
		return err
	}
	r.metrics.outcome("uncommitted")
	log.Error("Zoom's answer waits in the journal for Redis", zap.Error(err))
	return fmt.Errorf("%w: %w", err, &grant.BackoffError{For: time.Second})
}

// release lets go of a claim as if it had not been made.
func (r *Renewer) release(ctx context.Context, claim grant.Claim, wait time.Duration) error {
	wait += time.Duration(rand.Int64N(int64(wait)/4 + 1)) //nolint:gosec // jitter is no secret
	if err := r.Store.Fail(ctx, claim, grant.Released, wait, ""); err != nil && !errors.Is(err, grant.ErrSuperseded) {
		r.Log.Warn("a claim could not be released: it ends with its lease", zap.String("grant", string(claim.ID)), zap.Error(err))
	}
	return &grant.BackoffError{For: wait}
}

// fail records a failed call and returns what it means for whoever asked.
func (r *Renewer) fail(ctx context.Context, claim grant.Claim, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Lease/3)
	defer cancel()
	outcome, asked := judge(cause)
	r.metrics.outcome(string(outcome))
	r.metrics.retried(claim, string(outcome))
	log := r.Log.With(zap.String("grant", string(claim.ID)), zap.String("app", claim.App), zap.Error(cause))
	if outcome == grant.Released {
		log.Error("Zoom refuses the app: check its client id and secret")
		return errors.Join(cause, r.release(ctx, claim, asked))
	}
	wait := grant.Backoff(claim.Failures+1, rand.Float64(), 0) //nolint:gosec // jitter is no secret
	var refused *zoom.RefusedError
	if appFault(cause) && (!errors.As(cause, &refused) || refused.Temporary()) {
		wait = max(min(wait, 15*time.Second), asked) // the app's pause does the rest
	}
	reason := cause.Error()
	if outcome == grant.Gone {
		if claim.Uncertain {
			reason = "an earlier answer of Zoom's was lost, and Zoom refuses the refresh token before it"
		}
		log.Warn("the user must authorize again", zap.Bool("uncertain", claim.Uncertain))
	} else {
		log.Warn("refresh failed", zap.String("outcome", string(outcome)), zap.Duration("retry_in", wait))
	}
	err := r.Store.Fail(ctx, claim, outcome, wait, reason)
	switch {
	case err == nil && outcome == grant.Gone:
		r.metrics.gone(claim)
	case err == nil, errors.Is(err, grant.ErrSuperseded): // somebody has gone on meanwhile
	default:
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
	var refused *zoom.RefusedError
	switch {
	case errors.Is(cause, zoom.ErrInvalidGrant):
		return grant.Gone, 0
	case errors.Is(cause, zoom.ErrInvalidClient):
		return grant.Released, operatorPause
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

// appFault reports whether a failure says something of the app or of Zoom, and
// not of the grant.
func appFault(cause error) bool { return cause != nil && !errors.Is(cause, zoom.ErrInvalidGrant) }
