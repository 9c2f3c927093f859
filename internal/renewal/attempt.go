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

// attempt renews a grant once. Its steps:
//
//  1. Claim: one write of lease and intent. If it fails, no token is spent.
//  2. Call: one request to Zoom, with a deadline within the lease. It is never
//     repeated.
//  3. Journal: Zoom's response is synced to disk.
//  4. Commit by predecessor: the response is accepted if and only if the stored
//     refresh token is the one that was spent, whichever replica has the lease.
//
// It uses no caller's context: a caller may leave, but the response to a spent token
// must be kept.
func (r *Renewer) attempt(id grant.ID, q request) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.Lease)
	defer cancel()
	start := time.Now()
	claim, app, err := r.claim(ctx, id, q)
	if err != nil {
		return err
	}
	// A trace of its own, linked to the callers': they may have ended.
	ctx, span := telemetry.Tracer().Start(ctx, "renew", trace.WithTimestamp(start), trace.WithLinks(q.links...), trace.WithAttributes(
		attribute.String("grant", string(id)), attribute.String("app", claim.App), attribute.Bool("planned", q.isScheduled())))
	defer func() { telemetry.End(span, err) }()
	r.metrics.claimed(claim)
	if claim.Uncertain {
		r.Log.Warn("earlier response missing; trying a refresh token that may be spent", zap.String("grant", string(id)))
	}

	callCtx, cancelCall := context.WithTimeout(ctx, r.Lease*2/3-time.Since(start)) // leaves a third of the lease
	issued := time.Now()
	tokens, err := app.zoom.Refresh(callCtx, claim.Refresh)
	cancelCall()
	r.recordResult(claim.App, app.pace, err)
	if err != nil {
		return r.fail(ctx, claim, err)
	}
	received := time.Now()
	r.metrics.retried(claim, "renewed")
	r.metrics.duration.Observe(received.Sub(issued).Seconds())
	e := journal.Entry{ID: id, Spent: claim.Spent, Tokens: grant.Tokens{
		Access: tokens.Access, Refresh: tokens.Refresh, Issued: issued, Expires: issued.Add(tokens.Lifetime),
	}}
	r.journalResponse(ctx, claim.App, e, received)
	return r.commitRenewal(ctx, claim.App, e)
}

// claim claims a grant, and starts its call in the pace of its app.
func (r *Renewer) claim(ctx context.Context, id grant.ID, q request) (grant.Claim, app, error) {
	if q.isScheduled() {
		defer q.queue.dequeue()
	}
	if wait := r.pauseBeforeClaim(q); wait > 0 {
		return grant.Claim{}, app{}, &grant.BackoffError{For: wait}
	}
	failovers := r.Store.Failovers()
	claim, err := r.Store.Claim(ctx, id, cryptorand.Text(), grant.ClaimTerms{
		ValidUntil: q.validUntil, Lease: r.Lease, LateResponseWait: r.LateResponseWait, HandOffGuard: r.HandOffGuard,
	})
	if err != nil {
		return grant.Claim{}, app{}, err
	}
	if r.Store.Failovers() != failovers {
		// This Redis may have lost another replica's claim of the same grant.
		return grant.Claim{}, app{}, r.release(ctx, claim, r.PauseAfterFailover)
	}
	a, ok := r.app(claim.App)
	if !ok {
		r.Log.Error("Zoom app not configured; grant not renewed", zap.String("grant", string(id)), zap.String("app", claim.App))
		return grant.Claim{}, app{}, errors.Join(ErrUnknownApp, r.release(ctx, claim, time.Minute))
	}
	if wait := a.pace.start(time.Now(), q.isScheduled()); wait > 0 {
		return grant.Claim{}, app{}, r.release(ctx, claim, wait)
	}
	return claim, a, nil
}

// pauseBeforeClaim returns the time for which a request must not claim, because no
// call would follow. A caller's request has an unknown app before the claim, so it waits
// only if all apps are paused.
func (r *Renewer) pauseBeforeClaim(q request) time.Duration {
	if pause := r.PauseRemaining(); pause > 0 {
		return pause
	}
	now := time.Now()
	if q.isScheduled() {
		return q.queue.pauseRemaining(now)
	}
	var shortest time.Duration
	for _, p := range r.paces() {
		pause := p.pauseRemaining(now)
		if pause == 0 {
			return 0
		}
		if shortest == 0 || pause < shortest {
			shortest = pause
		}
	}
	return shortest
}

// journalResponse writes a response to the journal. A disk that hangs or fails delays
// the commit only briefly; until then the response is in memory alone.
func (r *Renewer) journalResponse(ctx context.Context, app string, e journal.Entry, received time.Time) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Lease/3)
	defer cancel()
	if err := r.Journal.Add(ctx, e); err != nil {
		r.Log.Error("response not journaled; lost if this process dies before the commit",
			zap.String("grant", string(e.ID)), zap.String("app", app), zap.Error(err))
		r.metrics.unjournaled.Inc()
	}
	r.metrics.exposure.Observe(time.Since(received).Seconds())
}

// commitRenewal commits a journaled response. It continues after the lease has
// expired, because the predecessor decides.
func (r *Renewer) commitRenewal(ctx context.Context, app string, e journal.Entry) error {
	log := r.Log.With(zap.String("grant", string(e.ID)), zap.String("app", app))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*r.Lease)
	defer cancel()
	err := r.commitWithRetries(ctx, r.uncommitted.add(&response{Entry: e}))
	switch {
	case err == nil, errors.Is(err, grant.ErrUnreplicated): // verifyCommits waits for the replicas
		r.metrics.outcome("renewed")
		log.Info("access token renewed", zap.Time("expires", e.Tokens.Expires))
		return nil
	case errors.Is(err, grant.ErrSuperseded), errors.Is(err, grant.ErrNotFound):
		r.metrics.outcome("superseded")
		log.Info("grant replaced or removed during its renewal; response discarded")
		return err
	}
	r.metrics.outcome("uncommitted")
	log.Error("response not committed; retrying from the journal", zap.Error(err))
	return fmt.Errorf("%w: %w", err, &grant.BackoffError{For: time.Second})
}

// release ends a claim as if it had not been made.
func (r *Renewer) release(ctx context.Context, claim grant.Claim, wait time.Duration) error {
	wait += time.Duration(rand.Int64N(int64(wait)/4 + 1)) //nolint:gosec // jitter is no secret
	if err := r.Store.Fail(ctx, claim, grant.OutcomeReleased, wait, ""); err != nil && !errors.Is(err, grant.ErrSuperseded) {
		r.Log.Warn("claim not released; it ends with its lease", zap.String("grant", string(claim.ID)), zap.Error(err))
	}
	return &grant.BackoffError{For: wait}
}

// fail records a failed call, and returns the error for callers.
func (r *Renewer) fail(ctx context.Context, claim grant.Claim, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Lease/3)
	defer cancel()
	outcome, retryAfter := classify(cause)
	r.metrics.outcome(string(outcome))
	r.metrics.retried(claim, string(outcome))
	log := r.Log.With(zap.String("grant", string(claim.ID)), zap.String("app", claim.App), zap.Error(cause))
	if outcome == grant.OutcomeReleased {
		log.Error("client id or secret refused by Zoom; grant not renewed")
		return errors.Join(cause, r.release(ctx, claim, retryAfter))
	}
	wait := grant.Backoff(claim.Failures+1, rand.Float64(), 0) //nolint:gosec // jitter is no secret
	var refused *zoom.RefusedError
	if isAppFault(cause) && (!errors.As(cause, &refused) || refused.Temporary()) {
		wait = max(min(wait, 15*time.Second), retryAfter) // the app's pause does the rest
	}
	reason := cause.Error()
	if outcome == grant.OutcomeGone {
		if claim.Uncertain {
			reason = "an earlier response from Zoom was lost, and Zoom refuses the refresh token before it"
		}
		log.Warn("the user must authorize again", zap.Bool("uncertain", claim.Uncertain))
	} else {
		log.Warn("refresh failed", zap.String("outcome", string(outcome)), zap.Duration("retry_in", wait))
	}
	err := r.Store.Fail(ctx, claim, outcome, wait, reason)
	switch {
	case err == nil && outcome == grant.OutcomeGone:
		r.metrics.gone(claim)
	case err == nil, errors.Is(err, grant.ErrSuperseded): // another replica has claimed or committed since
	default:
		// The lease expires, and the intent makes the next claim uncertain.
		log.Warn("failure not recorded; the grant stays claimed until its lease expires", zap.NamedError("record_error", err))
	}
	if outcome == grant.OutcomeGone {
		return grant.ErrReauthorize
	}
	return fmt.Errorf("%w: %w", cause, &grant.BackoffError{For: wait})
}

// classify returns the effect of a failed call on the refresh token, and the wait before
// the next call, 0 if neither Zoom nor the kind of failure determines one.
func classify(cause error) (outcome grant.Outcome, retryAfter time.Duration) {
	var refused *zoom.RefusedError
	switch {
	case errors.Is(cause, zoom.ErrInvalidGrant):
		return grant.OutcomeGone, 0
	case errors.Is(cause, zoom.ErrInvalidClient):
		return grant.OutcomeReleased, invalidClientPause
	case errors.Is(cause, zoom.ErrUnsent):
		return grant.OutcomeUnspent, 0
	case errors.As(cause, &refused):
		if refused.Status >= http.StatusInternalServerError {
			return grant.OutcomeUncertain, refused.RetryAfter // Zoom may have failed after the rotation
		}
		return grant.OutcomeUnspent, refused.RetryAfter
	}
	return grant.OutcomeUncertain, 0
}

// isAppFault reports whether a failure indicates a fault of the app or of Zoom, not of
// the grant.
func isAppFault(cause error) bool { return cause != nil && !errors.Is(cause, zoom.ErrInvalidGrant) }
