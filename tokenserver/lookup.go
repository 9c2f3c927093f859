package tokenserver

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/telemetry"
)

// TokenSource decides whether a token may be served, and renews it first if it
// may not; see [renewal.Renewer]. Both methods use the local clock.
type TokenSource interface {
	// CanServe reports whether the token may be served as it is to a caller that
	// needs it for ttl. It does no I/O.
	CanServe(serving *grant.ServingRecord, ttl time.Duration, now time.Time) bool
	// EnsureFresh returns a record whose token is valid for ttl, renewing the
	// grant if necessary. One renewal per grant is in progress across all
	// replicas; concurrent calls wait for it. Ctx limits the waiting only: a
	// renewal that has started continues, so a call that timed out may be
	// repeated. It returns [grant.ErrReauthorize], [grant.ErrDeleting] or
	// [grant.ErrNotFound] if the grant cannot be served, [grant.BackoffError] if
	// the next attempt is not due yet, and any other error if it may be retried.
	EnsureFresh(ctx context.Context, id grant.ID, serving grant.ServingRecord, ttl time.Duration) (grant.ServingRecord, error)
}

var (
	// ErrUnknown means that there is no such grant, or that the request has no
	// proof of its right to it.
	ErrUnknown = errors.New("no such URL")
	// ErrOverloaded means that the limit on waiting requests is reached.
	ErrOverloaded = errors.New("too many requests wait for a renewal")
)

// Lookup finds the record of a grant and decides whether its token may be
// served. It is independent of HTTP. A protocol calls [Lookup.Find], then checks
// what else the request must prove, then calls [Lookup.EnsureFresh]. It is safe
// for concurrent use, and both methods may be repeated.
type Lookup struct {
	cache   *Cache
	tokens  TokenSource
	timeout time.Duration
	waiting chan struct{} // one element for each request that waits for a renewal
}

func newLookup(c Config) *Lookup {
	if c.Timeout == 0 {
		c.Timeout = 4500 * time.Millisecond
	}
	if c.MaxWaiting == 0 {
		c.MaxWaiting = 1000
	}
	return &Lookup{cache: c.Cache, tokens: c.Tokens, timeout: c.Timeout, waiting: make(chan struct{}, c.MaxWaiting)}
}

// Find returns the record of a grant if accept approves it: accept compares the
// request's secret with the record's. It returns [ErrUnknown] if there is no
// such record or accept rejects it, and another error if the record cannot be
// read. The caller must not change the record.
//
// Accept may be called twice: a secret can be newer than the cached record. So
// every rejected request costs exactly one read of Redis, and its timing does
// not depend on what is cached.
func (l *Lookup) Find(ctx context.Context, id grant.ID, accept func(*grant.ServingRecord) bool) (*Record, error) {
	record, fresh, err := l.cache.get(ctx, id)
	if err == nil && !accept(&record.ServingRecord) {
		if fresh {
			return nil, ErrUnknown
		}
		record, err = l.cache.readThrough(ctx, id)
		if err == nil && !accept(&record.ServingRecord) {
			return nil, ErrUnknown
		}
	}
	if errors.Is(err, grant.ErrNotFound) {
		return nil, ErrUnknown
	}
	if err != nil {
		return nil, err
	}
	return record, nil
}

// EnsureFresh returns the record that [Lookup.Find] found if its token may be
// served for [grant.MinTTL]. Otherwise it renews the token and returns the new
// record, within the timeout counted from now. It returns [ErrOverloaded]
// without waiting if too many calls wait already, and otherwise the errors of
// [TokenSource.EnsureFresh].
func (l *Lookup) EnsureFresh(ctx context.Context, id grant.ID, r *Record, now time.Time) (*grant.ServingRecord, error) {
	if l.tokens.CanServe(&r.ServingRecord, grant.MinTTL, now) {
		r.markServed(now)
		return &r.ServingRecord, nil
	}
	return l.renew(ctx, id, r, now.Add(l.timeout))
}

// renew waits for a renewal, within the limits on time and on waiting requests.
func (l *Lookup) renew(ctx context.Context, id grant.ID, r *Record, deadline time.Time) (*grant.ServingRecord, error) {
	select {
	case l.waiting <- struct{}{}:
		defer func() { <-l.waiting }()
	default:
		return nil, ErrOverloaded
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	ctx, span := telemetry.Tracer().Start(ctx, "callback", trace.WithAttributes(attribute.String("grant", string(id))))
	defer span.End()
	serving, err := l.tokens.EnsureFresh(ctx, id, r.ServingRecord, grant.MinTTL)
	if err != nil {
		return nil, err
	}
	if serving.Expires.Equal(r.Expires) {
		r.markServed(time.Now())
	}
	return &serving, nil
}
