// Package renewal renews access tokens: it implements the protocol around Zoom's
// single-use refresh tokens. All code that needs a fresh token uses a [Renewer].
// docs/rotation.md introduces the protocol.
//
// # States of a renewal
//
// An attempt (attempt.go) takes one grant through these states. The last column is
// what a crash of the process in that state leaves.
//
//	due        the renewal time has passed, or a caller needs a token that is
//	           valid for longer. Crash: nothing changes.
//	queued     started by the refresher; awaits the claim and its app's pace.
//	           Crash: nothing changes.
//	claimed    lease and intent are in Redis; the token is unspent. Crash: the
//	           lease expires. After LateResponseWait any replica claims the grant
//	           again, as uncertain, and tries the same token once.
//	called     the request may have reached Zoom. Crash: as claimed, and the token
//	           may be spent. If Zoom then returns invalid_grant, the user must
//	           authorize again.
//	received   the response is in memory only. Crash: as called. This is the only
//	           window in which a spent token's successor is lost; the metric
//	           response_exposure_seconds measures it.
//	journaled  the response is on disk. Crash: the next process replays it.
//	committed  Redis has acknowledged the response. Redis can still lose it, so the
//	           response is verified after VerifyDelay, and the journal is replayed
//	           after each failover. Crash: the next process commits it again, which
//	           changes nothing.
//	verified   Redis still has the response. The journal entry is marked committed
//	           and retained for some minutes.
//
// From claimed, a pause of the app or a failover releases the claim. From called, a
// failure is recorded with its outcome: unspent (the token is as good as before),
// uncertain (it may be spent), gone (the user must authorize again) or released (it
// indicates nothing about the grant). If the record fails, the lease expires, as in
// a crash.
//
// # Lock order
//
// [Renewer].mu, Renewer.apps, uncommitted.mu and pace.mu are never held together,
// and no I/O happens under any of them.
//
// # Clocks
//
// Leases, due times and pauses end by Redis's clock. Issued and Expires are computed
// from this process's clock before the call to Zoom, so a token is never taken for
// valid too long because the call was slow. [Config.SuspendReason] covers a wrong
// local clock.
package renewal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/zoom"
)

// ErrClosed means that the renewer is shutting down and starts no renewals.
var ErrClosed = errors.New("renewer closed")

// ErrUnknownApp means that the grant's Zoom app is not configured.
var ErrUnknownApp = errors.New("Zoom app of the grant not configured")

// ErrTTLTooLong means that there is a valid token, but Zoom issues none with the
// requested lifetime.
var ErrTTLTooLong = errors.New("no token with the requested lifetime")

// Grants is the record of every grant; see [store.Store]. Each method is one atomic
// script.
//
// Idempotency: AcceptConsent and Commit with the same response, and Claim with the
// same owner, may be repeated. Fail may be repeated: it changes only a claim that
// its owner still holds.
//
// Lost replies: after an error without a Redis reply the call may have taken effect.
// Repeat AcceptConsent and Commit until they return a verdict. After a failed Claim,
// spend nothing: the claim, if it was made, ends with its lease.
//
// Verdicts: [grant.ErrSuperseded], [grant.ErrNotFound] and [grant.ErrDeleting] state
// that nothing was written. [grant.ErrUnreplicated] states that it was, on the master
// only. missing reports that Redis did not have the response before the call.
//
// Clock: retryIn and the terms' durations count from Redis's time; due is absolute.
type Grants interface {
	AcceptConsent(ctx context.Context, id grant.ID, c grant.Consent, due time.Time) (missing bool, err error)
	Claim(ctx context.Context, id grant.ID, owner string, terms grant.ClaimTerms) (grant.Claim, error)
	Commit(ctx context.Context, id grant.ID, spent string, tokens grant.Tokens, due time.Time) (missing bool, err error)
	Fail(ctx context.Context, c grant.Claim, outcome grant.Outcome, retryIn time.Duration, reason string) error
}

// ServingRecords is the records that callbacks serve. MarkServed delays a scheduled
// renewal by the hand-off guard; it may be repeated, and a lost reply does no harm.
type ServingRecords interface {
	ReadServingRecord(ctx context.Context, id grant.ID) (grant.ServingRecord, error)
	MarkServed(ctx context.Context, id grant.ID) error
}

// Pauses shares the pauses of Zoom apps among replicas. Pause may be repeated: the
// later end wins. A lost reply costs at most a few calls by other replicas. Durations
// count from Redis's time.
type Pauses interface {
	Pause(ctx context.Context, app string, d time.Duration, reason string) error
	PauseRemaining(ctx context.Context, app string) (time.Duration, error)
}

// FailoverDetector detects that Redis may have lost acknowledged writes.
type FailoverDetector interface {
	// Failovers returns the number of restarts and failovers since the start. It does
	// no I/O. A failover is counted before any call to the new Redis returns.
	Failovers() int64
	// CheckFailover contacts Redis, so that a failover is counted without other calls.
	CheckFailover(ctx context.Context) error
}

// Store is what a renewer uses of Redis.
type Store interface {
	Grants
	ServingRecords
	Pauses
	FailoverDetector
}

// Journal keeps Zoom's responses on disk; see [journal.Journal]. An entry is durable
// when Add returns nil. After an error of Add the entry may or may not be on disk.
// MarkCommitted and Entries do no disk I/O. All may be repeated.
type Journal interface {
	Add(ctx context.Context, e journal.Entry) error
	MarkCommitted(id grant.ID, spent string)
	Entries() []journal.Entry
}

// Zoom is a Zoom app's token endpoint. Refresh spends the refresh token and is never
// repeated within an attempt. Its errors state what happened to the token:
// [zoom.ErrUnsent], a [*zoom.RefusedError] or [zoom.ErrUncertain].
type Zoom interface {
	Refresh(ctx context.Context, refresh secret.Text) (zoom.Tokens, error)
}

// App is a Zoom app, and the limits of its scheduled renewals in this process.
type App struct {
	Zoom         Zoom
	MaxInFlight  int // scheduled renewals at once; 0: Config.MaxInFlight
	MaxPerSecond int // scheduled renewals started per second; 0: Config.MaxPerSecond
}

// Config configures a renewer. Every field without a default is required.
type Config struct {
	Store   Store
	Journal Journal
	Apps    map[string]App // by name; [Renewer.SetApps] replaces them
	Log     *zap.Logger
	Metrics prometheus.Registerer

	// SuspendReason returns why this process may spend no token now, or nil. Nil: it
	// always may.
	SuspendReason func() error

	RefreshBefore time.Duration // time from a renewal to the expiry of the old token
	MaxInFlight   int           // default of App.MaxInFlight; 0: 256
	MaxPerSecond  int           // default of App.MaxPerSecond; 0: 1000

	Lease              time.Duration // duration of a claim; 0: 15 s
	LateResponseWait   time.Duration // wait after an expired lease for the replay of its response; 0: 15 s
	HandOffGuard       time.Duration // time for which a served token is not renewed, if possible; 0: 5 s
	PauseAfterFailover time.Duration // pause after Redis may have lost writes; 0: Lease, so that calls in flight end first
	VerifyDelay        time.Duration // time from a commit to its verification; 0: 2 s
}

func (c *Config) setDefaults() {
	for field, fallback := range map[*time.Duration]time.Duration{
		&c.Lease: 15 * time.Second, &c.LateResponseWait: 15 * time.Second,
		&c.HandOffGuard: 5 * time.Second, &c.VerifyDelay: 2 * time.Second,
	} {
		if *field == 0 {
			*field = fallback
		}
	}
	if c.PauseAfterFailover == 0 {
		c.PauseAfterFailover = c.Lease
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 256
	}
	if c.MaxPerSecond == 0 {
		c.MaxPerSecond = 1000
	}
}

// Renewer renews grants. It is safe for concurrent use. [Renewer.Run] must run
// beside it.
type Renewer struct {
	Config
	metrics     *metrics
	uncommitted uncommitted

	apps struct {
		sync.RWMutex
		byName map[string]app
	}

	mu       sync.Mutex
	attempts map[grant.ID]*attempt // in this process, at most one per grant
	closed   bool
	running  sync.WaitGroup
}

// attempt is a renewal in flight.
type attempt struct {
	done chan struct{} // closed when err is set
	err  error
}

// New returns a renewer. It does no I/O.
func New(c Config) *Renewer {
	c.setDefaults()
	r := &Renewer{Config: c, attempts: make(map[grant.ID]*attempt)}
	r.metrics = newMetrics(c.Metrics, r)
	r.SetApps(c.Apps)
	r.uncommitted.load(c.Journal.Entries())
	return r
}

// app is a Zoom app with its own queue and pace: a backlog or pause of one app does
// not delay another's renewals.
type app struct {
	zoom Zoom
	pace *pace
}

// SetApps replaces the Zoom apps and their limits. Attempts in flight continue, also
// those of an app that was removed. The pause and pace of a kept app remain.
func (r *Renewer) SetApps(apps map[string]App) {
	r.apps.Lock()
	defer r.apps.Unlock()
	previous := r.apps.byName
	r.apps.byName = make(map[string]app, len(apps))
	for name, a := range apps {
		maxInFlight, perSecond := a.MaxInFlight, a.MaxPerSecond
		if maxInFlight == 0 {
			maxInFlight = r.MaxInFlight
		}
		if perSecond == 0 {
			perSecond = r.MaxPerSecond
		}
		p := previous[name].pace
		if p == nil {
			p = newPace(maxInFlight, perSecond)
		} else {
			p.setLimits(time.Now(), maxInFlight, perSecond)
		}
		r.apps.byName[name] = app{a.Zoom, p}
		r.metrics.initApp(name)
	}
}

// app returns the Zoom app with a name.
func (r *Renewer) app(name string) (app, bool) {
	r.apps.RLock()
	defer r.apps.RUnlock()
	found, ok := r.apps.byName[name]
	return found, ok
}

// paces returns the pace of every Zoom app, by name.
func (r *Renewer) paces() map[string]*pace {
	r.apps.RLock()
	defer r.apps.RUnlock()
	all := make(map[string]*pace, len(r.apps.byName))
	for name, a := range r.apps.byName {
		all[name] = a.pace
	}
	return all
}

// AppNames returns the names of the Zoom apps, sorted.
func (r *Renewer) AppNames() []string { return slices.Sorted(maps.Keys(r.paces())) }

// PlanRenewal returns when tokens are to be renewed, with jitter.
func (r *Renewer) PlanRenewal(tokens grant.Tokens) time.Time {
	return grant.RenewTime(tokens.Issued, tokens.Expires, r.RefreshBefore, rand.Float64()) //nolint:gosec // jitter is no secret
}

// CanServe reports whether a record can be served as it is, at now, to a caller that
// needs the token for ttl: the grant is alive, the token valid, and no scheduled
// renewal imminent.
func (r *Renewer) CanServe(serving *grant.ServingRecord, ttl time.Duration, now time.Time) bool {
	return serving.CheckAlive() == nil && serving.HasTTL(ttl, now) && !r.isRenewalImminent(serving, now)
}

// isRenewalImminent reports whether a scheduled renewal may end the token any moment.
func (r *Renewer) isRenewalImminent(serving *grant.ServingRecord, now time.Time) bool {
	return !now.Before(serving.RenewTime.Add(-r.HandOffGuard))
}

// EnsureFresh returns the record to serve to a caller that has read serving and needs
// the token for ttl. Mostly that is serving itself.
//
// A renewal ends the previous token. So if a scheduled renewal is imminent, the token
// is renewed first, and the new one returned. If that fails, the old one is returned
// while it is valid, and the scheduled renewal is delayed by the hand-off guard.
//
// It returns the errors of [grant.ServingRecord.CheckAlive]; [ErrTTLTooLong], with the
// best token available; or, if a retry is scheduled, a [*grant.BackoffError].
func (r *Renewer) EnsureFresh(ctx context.Context, id grant.ID, serving grant.ServingRecord, ttl time.Duration) (grant.ServingRecord, error) {
	if err := serving.CheckAlive(); err != nil {
		return grant.ServingRecord{}, err
	}
	now := time.Now()
	if r.CanServe(&serving, ttl, now) {
		return serving, nil
	}
	valid, imminent := serving.HasTTL(ttl, now), r.isRenewalImminent(&serving, now)
	validUntil := now.Add(ttl)
	if valid {
		validUntil = serving.Expires.Add(time.Millisecond) // any newer token
	}
	renewErr := r.renew(ctx, id, validUntil)
	latest, err := r.Store.ReadServingRecord(context.WithoutCancel(ctx), id)
	switch {
	case err != nil && valid:
		return serving, nil // no renewal can start while Redis cannot be written
	case err != nil:
		return grant.ServingRecord{}, errors.Join(renewErr, err)
	}
	if err := latest.CheckAlive(); err != nil {
		return grant.ServingRecord{}, err
	}
	if !latest.HasTTL(ttl, time.Now()) {
		if renewErr == nil {
			renewErr = ErrTTLTooLong
		}
		return latest, renewErr
	}
	if latest.Expires.Equal(serving.Expires) && imminent {
		if err := r.Store.MarkServed(context.WithoutCancel(ctx), id); err != nil {
			r.Log.Warn("served token not recorded; it may be renewed at any moment", zap.String("grant", string(id)), zap.Error(err))
		}
	}
	return latest, nil
}

// renew renews the grant unless its access token is valid until then. It waits for an
// attempt in flight, in this process or another. If ctx ends, renew returns, and the
// attempt continues.
func (r *Renewer) renew(ctx context.Context, id grant.ID, validUntil time.Time) error {
	const (
		poll  = 100 * time.Millisecond // interval between checks of another replica's attempt
		brief = 250 * time.Millisecond // longest backoff to wait for
	)
	for {
		started, err := r.join(ctx, id, validUntil)
		var held *grant.HeldError
		var backoff *grant.BackoffError
		var wait time.Duration
		switch {
		case err == nil:
			return nil
		case errors.Is(err, grant.ErrFresh):
			if started {
				return nil
			}
		case errors.As(err, &held):
			wait = min(held.For, poll)
		case errors.As(err, &backoff) && (!started || backoff.For <= brief):
			wait = min(backoff.For, brief)
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for a renewal: %w", errors.Join(ctx.Err(), err))
		case <-time.After(wait):
		}
	}
}

// Capacity returns how many scheduled renewals of a Zoom app may be started now.
func (r *Renewer) Capacity(app string) int {
	a, ok := r.app(app)
	if !ok || r.PauseRemaining() > 0 {
		return 0
	}
	return a.pace.capacity(time.Now())
}

// RenewDue starts the scheduled renewal of a grant of a Zoom app, and returns at once;
// done is called at its end. It returns false, and does not call done, if the grant is
// being renewed in this process, the app is unknown, or the renewer is closed.
func (r *Renewer) RenewDue(app string, id grant.ID, done func(error)) bool {
	a, ok := r.app(app)
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.attempts[id] != nil {
		return false
	}
	a.pace.enqueue()
	r.startLocked(id, request{queue: a.pace}, done)
	return true
}

// request states why a grant is renewed.
type request struct {
	validUntil time.Time    // renew unless the token is valid until then; zero: if it is due
	queue      *pace        // of a scheduled renewal: where it is queued; else nil
	links      []trace.Link // to the traces of callers
}

func (q request) isScheduled() bool { return q.queue != nil }

// join waits for the attempt of a grant, and starts one if there is none. An attempt
// that this call has not started may be for another request.
func (r *Renewer) join(ctx context.Context, id grant.ID, validUntil time.Time) (started bool, err error) {
	r.mu.Lock()
	a := r.attempts[id]
	if a == nil {
		if r.closed {
			r.mu.Unlock()
			return true, ErrClosed
		}
		started = true
		var links []trace.Link
		if span := trace.SpanContextFromContext(ctx); span.IsValid() {
			links = []trace.Link{{SpanContext: span}}
		}
		a = r.startLocked(id, request{validUntil: validUntil, links: links}, func(error) {})
	}
	r.mu.Unlock()
	select {
	case <-a.done:
		return started, a.err
	case <-ctx.Done():
		return started, fmt.Errorf("waiting for a renewal: %w", ctx.Err())
	}
}

func (r *Renewer) startLocked(id grant.ID, q request, done func(error)) *attempt {
	a := &attempt{done: make(chan struct{})}
	r.attempts[id] = a
	r.running.Go(func() {
		a.err = r.attempt(id, q)
		r.mu.Lock()
		delete(r.attempts, id)
		r.mu.Unlock()
		close(a.done)
		done(a.err)
	})
	return a
}

// Close starts no more renewals, and waits for those in flight and the verification
// of their commits. If ctx ends, Close returns its error, and unverified responses
// remain in the journal.
func (r *Renewer) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		r.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("waiting for renewals in flight: %w", ctx.Err())
	}
	return r.awaitCommits(ctx)
}
