// Package renewal renews grants: the protocol around Zoom's single-use refresh
// tokens. Whoever needs an access token, now or by plan, goes through a
// [Renewer]. docs/rotation.md explains it in one sitting.
//
// A renewal is one flight (flight.go). However many ask for it in this process,
// there is one; over all replicas the claim sees to that. What a flight has from
// Zoom is kept in a journal until it is safe in Redis (recovery.go). How many
// fly at once, and whether Zoom is asked at all, is a matter of pace (pace.go).
package renewal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/zoom"
)

// ErrClosed means that the rotator is shutting down and starts no flights.
var ErrClosed = errors.New("renewals have been stopped")

// ErrUnknownApp means that the grant's Zoom app is not in the settings.
var ErrUnknownApp = errors.New("the grant's Zoom app is not configured")

// ErrTTLTooLong means that there is a token, but not one that is good for as long as
// was asked: Zoom gives none.
var ErrTTLTooLong = errors.New("no token is good for so long")

// Grants is the record of every grant; see [store.Store] for what each method
// answers. Accept, Commit, and Claim with the same owner, may be repeated: that
// is how one looks whether Redis still has an answer.
type Grants interface {
	AcceptConsent(ctx context.Context, id grant.ID, c grant.Consent, due time.Time) (missing bool, err error)
	Claim(ctx context.Context, id grant.ID, owner string, terms grant.ClaimTerms) (grant.Claim, error)
	Commit(ctx context.Context, id grant.ID, spent string, tokens grant.Tokens, due time.Time) (missing bool, err error)
	Fail(ctx context.Context, c grant.Claim, outcome grant.Outcome, retryIn time.Duration, reason string) error
}

// ServingRecords is what is handed out, and where that is noted.
type ServingRecords interface {
	ReadServingRecord(ctx context.Context, id grant.ID) (grant.ServingRecord, error)
	MarkServed(ctx context.Context, id grant.ID) error
}

// Pauses is how replicas tell each other to leave a Zoom app alone.
type Pauses interface {
	Pause(ctx context.Context, app string, d time.Duration, reason string) error
	Paused(ctx context.Context, app string) (time.Duration, error)
}

// FailoverDetector tells when Redis may have forgotten what it had acknowledged.
type FailoverDetector interface {
	// Failovers counts those moments; a break is counted before anything can be
	// read from, or written to, a Redis that has forgotten.
	Failovers() int64
	CheckFailover(ctx context.Context) error
}

// Store is all that a rotator needs of Redis.
type Store interface {
	Grants
	ServingRecords
	Pauses
	FailoverDetector
}

// Journal keeps Zoom's answers on disk; see [journal.Journal].
type Journal interface {
	Add(e journal.Entry) error
	MarkCommitted(id grant.ID, spent string)
	Entries() []journal.Entry
}

// Zoom is a Zoom app's token endpoint.
type Zoom interface {
	Refresh(ctx context.Context, refresh secret.Text) (zoom.Tokens, error)
}

// Config is what a rotator needs. Every field without a default is required.
type Config struct {
	Store   Store
	Journal Journal
	Apps    map[string]Zoom // by the name of the Zoom app; [Renewer.SetApps] changes them
	Log     *zap.Logger
	Metrics prometheus.Registerer

	// SuspendReason says why this process may spend no token now, and nil if it may. Nil: it
	// always may.
	SuspendReason func() error

	RefreshBefore time.Duration // how long before expiry a token is to be renewed
	MaxInFlight   int           // flights by plan at once, for each app; 0: 256
	MaxPerSecond  int           // flights by plan started in a second, for each app; 0: 1000

	Lease              time.Duration // how long a flight may take; 0: 15 s
	LateResponseWait   time.Duration // how long the answer of a dead holder is waited for; 0: 15 s
	HandOffGuard       time.Duration // how long a token that was handed out is let live, if it can be; 0: 5 s
	PauseAfterFailover time.Duration // how long no token is spent after Redis may have forgotten; 0: as long as the lease, so that calls under way come to their end first
	VerifyDelay        time.Duration // how long after a commit Redis is asked whether it still has it; 0: 2 s
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
	metrics *metrics
	safety  safety

	apps struct {
		sync.RWMutex
		known map[string]app // by name
	}

	mu      sync.Mutex
	flights map[grant.ID]*flight
	closed  bool
	running sync.WaitGroup

	boarding atomic.Int64 // flights by plan that have no place in a pace yet
}

type flight struct {
	done chan struct{} // closed when err is set
	err  error
}

// New returns a rotator. It does no I/O.
func New(c Config) *Renewer {
	c.setDefaults()
	r := &Renewer{
		Config: c, flights: make(map[grant.ID]*flight),
	}
	r.metrics = newMetrics(c.Metrics, r)
	r.SetApps(c.Apps)
	r.safety.start(c.Journal.Entries())
	return r
}

// app is a Zoom app, and the pace of its renewals.
type app struct {
	zoom Zoom
	pace *pace
}

// SetApps changes the Zoom apps there are. Flights under way are not affected;
// those of an app that goes come to their end.
func (r *Renewer) SetApps(apps map[string]Zoom) {
	r.apps.Lock()
	defer r.apps.Unlock()
	before := r.apps.known
	r.apps.known = make(map[string]app, len(apps))
	for name, endpoint := range apps {
		p := before[name].pace
		if p == nil {
			p = newPace(r.MaxInFlight, r.MaxPerSecond)
		}
		r.apps.known[name] = app{endpoint, p}
		r.metrics.begin(name)
	}
}

// app returns the Zoom app of a name.
func (r *Renewer) app(name string) (app, bool) {
	r.apps.RLock()
	defer r.apps.RUnlock()
	found, known := r.apps.known[name]
	return found, known
}

// paces returns the pace of every Zoom app, by name.
func (r *Renewer) paces() map[string]*pace {
	r.apps.RLock()
	defer r.apps.RUnlock()
	all := make(map[string]*pace, len(r.apps.known))
	for name, known := range r.apps.known {
		all[name] = known.pace
	}
	return all
}

// PlanRenewal returns when tokens are to be renewed, with jitter.
func (r *Renewer) PlanRenewal(tokens grant.Tokens) time.Time {
	return grant.RenewTime(tokens.Issued, tokens.Expires, r.RefreshBefore, rand.Float64()) //nolint:gosec // jitter is no secret
}

// CanServe reports whether serving may be handed out as it is, at now, to somebody
// who needs the token for ttl: it is alive, good, and its renewal not near.
func (r *Renewer) CanServe(serving *grant.ServingRecord, ttl time.Duration, now time.Time) bool {
	return serving.CheckAlive() == nil && serving.HasTTL(ttl, now) && !r.near(serving, now)
}

// near reports whether the renewal by plan may end the token any moment.
func (r *Renewer) near(serving *grant.ServingRecord, now time.Time) bool {
	return !now.Before(serving.RenewTime.Add(-r.HandOffGuard))
}

// EnsureFresh returns what may be handed out now to somebody who has read serving
// and needs the token for ttl. Mostly that is serving itself.
//
// A renewal ends the token before it. So a token whose renewal is near is
// renewed first, and the new one handed out; if that fails, the old one is,
// while it is good, and the renewal by plan is told to leave it alone for a
// moment.
//
// It answers the errors of [grant.ReadServingRecord.CheckAlive]; [ErrTTLTooLong], along with the
// best token there is; or, if there will be another try, a [*grant.BackoffError].
func (r *Renewer) EnsureFresh(ctx context.Context, id grant.ID, serving grant.ServingRecord, ttl time.Duration) (grant.ServingRecord, error) {
	if err := serving.CheckAlive(); err != nil {
		return grant.ServingRecord{}, err
	}
	now := time.Now()
	if r.CanServe(&serving, ttl, now) {
		return serving, nil
	}
	good, near := serving.HasTTL(ttl, now), r.near(&serving, now)
	goodUntil := now.Add(ttl)
	if good {
		goodUntil = serving.Expires.Add(time.Millisecond) // any that is newer
	}
	renewErr := r.renew(ctx, id, goodUntil)
	latest, err := r.Store.ReadServingRecord(context.WithoutCancel(ctx), id)
	switch {
	case err != nil && good:
		return serving, nil // no renewal can begin while Redis cannot be written
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
	if latest.Expires.Equal(serving.Expires) && near {
		if err := r.Store.MarkServed(context.WithoutCancel(ctx), id); err != nil {
			r.Log.Warn("a token was handed out that may be renewed at any moment", zap.String("grant", string(id)), zap.Error(err))
		}
	}
	return latest, nil
}

// renew sees to it that the grant's access token is good until then: by a flight
// of its own, or by waiting for one that is under way, here or at another
// replica. It gives up when ctx ends; the flight does not.
func (r *Renewer) renew(ctx context.Context, id grant.ID, goodUntil time.Time) error {
	const (
		look  = 100 * time.Millisecond // between looks at another replica's flight
		brief = 250 * time.Millisecond // a wait that is no outage
	)
	for {
		mine, err := r.join(ctx, id, goodUntil)
		var held *grant.HeldError
		var backoff *grant.BackoffError
		var wait time.Duration
		switch {
		case err == nil:
			return nil
		case errors.Is(err, grant.ErrFresh):
			if mine {
				return nil
			}
		case errors.As(err, &held):
			wait = min(held.For, look)
		case errors.As(err, &backoff) && (!mine || backoff.For <= brief):
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

// Capacity returns how many flights by plan may be started now.
func (r *Renewer) Capacity() int {
	if r.holding() > 0 {
		return 0
	}
	room := 0
	for _, p := range r.paces() {
		room += p.room(time.Now())
	}
	return max(0, room-int(r.boarding.Load()))
}

// RenewDue renews a grant if its plan says so. It starts a flight and returns at
// once; landed is called at its end. It returns false, without calling landed,
// if a flight is under way here already or the rotator is closed.
func (r *Renewer) RenewDue(id grant.ID, landed func(error)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.flights[id] != nil {
		return false
	}
	r.boarding.Add(1)
	r.takeOffLocked(id, time.Time{}, nil, landed)
	return true
}

// join waits for the flight of a grant, and starts it if there is none. A flight
// that was not started by this call may have been on other terms.
func (r *Renewer) join(ctx context.Context, id grant.ID, goodUntil time.Time) (mine bool, err error) {
	r.mu.Lock()
	f := r.flights[id]
	if f == nil {
		if r.closed {
			r.mu.Unlock()
			return true, ErrClosed
		}
		mine = true
		var asked []trace.Link
		if span := trace.SpanContextFromContext(ctx); span.IsValid() {
			asked = []trace.Link{{SpanContext: span}}
		}
		f = r.takeOffLocked(id, goodUntil, asked, func(error) {})
	}
	r.mu.Unlock()
	select {
	case <-f.done:
		return mine, f.err
	case <-ctx.Done():
		return mine, fmt.Errorf("waiting for a renewal: %w", ctx.Err())
	}
}

func (r *Renewer) takeOffLocked(id grant.ID, goodUntil time.Time, asked []trace.Link, landed func(error)) *flight {
	f := &flight{done: make(chan struct{})}
	r.flights[id] = f
	r.running.Go(func() {
		f.err = r.fly(id, goodUntil, asked)
		r.mu.Lock()
		delete(r.flights, id)
		r.mu.Unlock()
		close(f.done)
		landed(f.err)
	})
	return f
}

// Close starts no more flights and waits for those under way; then, for their
// answers to be safe in Redis. It gives up when ctx ends: what is not safe by
// then stays in the journal.
func (r *Renewer) Close(ctx context.Context) error {
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
	case <-ctx.Done():
		return fmt.Errorf("waiting for renewals in flight: %w", ctx.Err())
	}
	return r.settleAll(ctx)
}
