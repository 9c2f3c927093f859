package renewal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
)

// uncommitted is the responses that may have to be committed, or committed again.
// Its lock is never held during I/O.
type uncommitted struct {
	mu         sync.Mutex
	responses  map[string]*response // by key; until they are verified
	failovers  int64                // of Redis, that were handled
	resumeTime time.Time            // no token is spent before it
	replayed   bool                 // the journal of earlier processes was replayed
}

// response is a response from Zoom that is not verified to be in Redis.
type response struct {
	journal.Entry
	zoomUser, zoomAccount string // of a consent, if known

	// Guarded by uncommitted.mu.
	committed    time.Time // when Redis acknowledged it; zero: not yet
	acknowledged bool      // Redis has acknowledged it at some time: if it is missing, Redis has lost it
	tries        int
}

func (a response) key() string { return string(a.ID) + " " + a.Spent }

// load adds the responses of earlier processes.
func (u *uncommitted) load(entries []journal.Entry) {
	u.responses = make(map[string]*response)
	for _, e := range entries {
		a := &response{Entry: e}
		u.responses[a.key()] = a
	}
	u.replayed = len(entries) == 0
}

func (u *uncommitted) add(a *response) *response {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.responses[a.key()] = a
	return a
}

// addAgain adds the entries of the journal after a failover.
func (u *uncommitted) addAgain(entries []journal.Entry) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, e := range entries {
		a := &response{Entry: e}
		previous, ok := u.responses[a.key()]
		a.acknowledged = u.replayed && (!ok || previous.acknowledged) // a verified one is not in responses
		u.responses[a.key()] = a
	}
}

func (u *uncommitted) remove(a *response) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.responses, a.key())
}

// pending is a response to commit, and whether it was committed before.
type pending struct {
	*response
	again bool
}

// pending returns the responses that are not committed, and those that were committed
// before the given time, oldest first.
func (u *uncommitted) pending(before time.Time) []pending {
	u.mu.Lock()
	defer u.mu.Unlock()
	var found []pending
	for _, a := range u.responses {
		if a.committed.Before(before) {
			found = append(found, pending{a, !a.committed.IsZero()})
		}
	}
	slices.SortFunc(found, func(a, b pending) int {
		return cmp.Or(a.Tokens.Issued.Compare(b.Tokens.Issued), cmp.Compare(a.ID, b.ID))
	})
	return found
}

func (u *uncommitted) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.responses)
}

// record records the result of a commit. lost reports that Redis had lost the response;
// obsolete, that no further commit can succeed.
func (u *uncommitted) record(a *response, missing bool, err error) (lost, obsolete bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	lost = a.acknowledged && missing
	a.tries++
	switch {
	case err == nil:
		a.committed, a.acknowledged = time.Now(), true
	case errors.Is(err, grant.ErrSuperseded), errors.Is(err, grant.ErrNotFound):
		// Another replica may have to replay its predecessor first. After two tries
		// and the pause none will.
		obsolete = a.tries >= 2 && u.replayed && !time.Now().Before(u.resumeTime)
	}
	return lost, obsolete
}

// commit commits a response once.
func (r *Renewer) commit(ctx context.Context, a *response) error {
	missing, err := replay(ctx, r.Store, a, r.PlanRenewal(a.Tokens))
	if errors.Is(err, errConsentTooOld) {
		r.Log.Error("response to a consent replayed too late; the user must register again",
			zap.String("grant", string(a.ID)), zap.Duration("age", time.Since(a.Tokens.Issued)))
	}
	lost, obsolete := r.uncommitted.record(a, missing, err)
	if lost {
		r.metrics.lostCommits.Inc()
		r.Log.Warn("acknowledged response lost by Redis; committed again", zap.String("grant", string(a.ID)))
	}
	if obsolete {
		r.finalize(a)
	}
	return err
}

// finalize marks a response that needs no more commits. The journal retains it for a
// while.
func (r *Renewer) finalize(a *response) {
	r.uncommitted.remove(a)
	r.Journal.MarkCommitted(a.ID, a.Spent)
}

// errConsentTooOld means that Redis no longer has the consent's outcome.
var errConsentTooOld = fmt.Errorf("response to a consent too old: %w", grant.ErrSuperseded)

// replay commits a response by its kind, and reports whether Redis did not have it.
func replay(ctx context.Context, grants Grants, a *response, due time.Time) (missing bool, err error) {
	if !a.OfConsent() {
		return grants.Commit(ctx, a.ID, a.Spent, a.Tokens, due)
	}
	if time.Since(a.Tokens.Issued) > grant.ConsentMemory {
		return false, errConsentTooOld
	}
	return grants.AcceptConsent(ctx, a.ID, grant.Consent{
		App: a.App, User: a.User, Fingerprint: a.Spent, Tokens: a.Tokens,
		ZoomUser: a.zoomUser, ZoomAccount: a.zoomAccount,
	}, due)
}

// Replay commits an entry of the journal of a process that is not running. It may be
// repeated. It returns the errors of [Grants], and [grant.ErrSuperseded] for a consent
// that is too old.
func Replay(ctx context.Context, grants Grants, e journal.Entry) error {
	_, err := replay(ctx, grants, &response{Entry: e}, grant.MatureTime(e.Tokens.Issued, e.Tokens.Expires))
	return err
}

// PauseRemaining returns the time for which no token or code may be spent: because Redis
// may have lost the record of what is spent, or because this process is suspended. During
// the pause after a failover every replica replays its journal.
func (r *Renewer) PauseRemaining() time.Duration {
	r.handleFailover()
	r.uncommitted.mu.Lock()
	replayed, pause := r.uncommitted.replayed, time.Until(r.uncommitted.resumeTime)
	r.uncommitted.mu.Unlock()
	if !replayed {
		return time.Second
	}
	if r.SuspendReason != nil && r.SuspendReason() != nil {
		pause = max(pause, time.Second)
	}
	return max(0, pause)
}

// handleFailover starts the pause after a failover, once for each, and adds the
// journal's entries to those to be committed.
func (r *Renewer) handleFailover() {
	failovers := r.Store.Failovers()
	u := &r.uncommitted
	u.mu.Lock()
	handled := failovers <= u.failovers // less: a reading from before another call's
	if !handled {
		u.failovers = failovers
		u.resumeTime = time.Now().Add(r.PauseAfterFailover)
	}
	u.mu.Unlock()
	if handled {
		return
	}
	entries := r.Journal.Entries()
	u.addAgain(entries)
	r.metrics.failovers.Inc()
	r.Log.Warn("Redis restarted or failed over; pausing renewals, replaying the journal",
		zap.Duration("for", r.PauseAfterFailover), zap.Int("entries", len(entries)))
}

// Run maintains the renewer until ctx ends. It replays the journal of an earlier
// process, commits and verifies responses, detects failovers, and adopts other
// replicas' pauses.
func (r *Renewer) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		r.maintain(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *Renewer) maintain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.Lease)
	defer cancel()
	if err := r.Store.CheckFailover(ctx); err != nil {
		return // without Redis nothing can be committed, and nothing is spent
	}
	r.handleFailover()
	r.adoptPauses(ctx)
	if err := r.verifyCommits(ctx, time.Now().Add(-r.VerifyDelay)); err == nil {
		r.uncommitted.mu.Lock()
		r.uncommitted.replayed = true
		r.uncommitted.mu.Unlock()
	}
}

// verifyCommits commits the responses that are not verified to be in Redis. A commit
// of a response that is there changes nothing, and so verifies it.
func (r *Renewer) verifyCommits(ctx context.Context, before time.Time) error {
	failovers := r.Store.Failovers()
	for _, a := range r.uncommitted.pending(before) {
		err := r.commit(ctx, a.response)
		switch {
		case errors.Is(err, grant.ErrSuperseded), errors.Is(err, grant.ErrNotFound):
			if a.again { // it was committed, and the grant has changed since
				r.finalize(a.response)
			}
		case errors.Is(err, grant.ErrUnreplicated):
			return nil // the next round continues
		case errors.Is(err, grant.ErrDeleting): // a new consent waits for the removal
		case err != nil:
			return err
		case a.again && r.Store.Failovers() == failovers:
			r.finalize(a.response)
		}
	}
	return nil
}

// awaitCommits waits until every response is verified, or ctx ends.
func (r *Renewer) awaitCommits(ctx context.Context) error {
	for {
		err := r.verifyCommits(ctx, time.Now().Add(-r.VerifyDelay))
		n := r.uncommitted.count()
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d responses remain in the journal, not verified in Redis: %w", n, errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
