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

// safety is what is known of answers that may have to be committed again.
type safety struct {
	mu     sync.Mutex
	unsafe map[string]*answer // not known to be in Redis for good
	breaks int64              // of Redis, as far as they were dealt with
	resume time.Time          // no token is spent before
	begun  bool               // the journal of the process before was looked at
}

// answer is an answer of Zoom's on its way into Redis.
type answer struct {
	journal.Entry
	zoomUser, zoomAccount string    // of an answer to a consent, if Zoom has said
	committed             time.Time // zero: not yet
	had                   bool      // Redis has had it: if it is missing, Redis has forgotten it
	tries                 int
}

func (e answer) key() string { return string(e.ID) + " " + e.Spent }

// start takes over what the process before has left.
func (s *safety) start(entries []journal.Entry) {
	s.unsafe = make(map[string]*answer)
	for _, e := range entries {
		a := &answer{Entry: e}
		s.unsafe[a.key()] = a
	}
	s.begun = len(entries) == 0
}

func (s *safety) add(a *answer) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsafe[a.key()] = a
	return a
}

// waiting returns the answers that have to be looked at: those not committed,
// and those committed before the given time, in the order in which they came.
func (s *safety) waiting(before time.Time) []look {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []look
	for _, a := range s.unsafe {
		if a.committed.Before(before) {
			found = append(found, look{a, !a.committed.IsZero()})
		}
	}
	slices.SortFunc(found, func(a, b look) int {
		return cmp.Or(a.Tokens.Issued.Compare(b.Tokens.Issued), cmp.Compare(a.ID, b.ID))
	})
	return found
}

// look is an answer to look at, and whether it has been committed before.
type look struct {
	*answer
	again bool
}

func (s *safety) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unsafe)
}

// commit commits an answer once.
func (r *Renewer) commit(ctx context.Context, a *answer) error {
	r.safety.mu.Lock()
	had := a.had
	r.safety.mu.Unlock()
	missing, err := r.store(ctx, a)
	r.safety.mu.Lock()
	defer r.safety.mu.Unlock()
	a.tries++
	if had && missing {
		r.metrics.forgotten.Inc()
		r.Log.Warn("Redis had forgotten an answer of Zoom's: it was committed again", zap.String("grant", string(a.ID)))
	}
	switch {
	case err == nil:
		a.committed, a.had = time.Now(), true
	case errors.Is(err, grant.ErrSuperseded), errors.Is(err, grant.ErrNotFound):
		// Another replica may have to bring the one before it first. After two
		// looks nobody will.
		if a.tries >= 2 && r.safety.begun && !time.Now().Before(r.safety.resume) {
			r.forgetLocked(a)
		}
	}
	return err
}

// store brings an answer into Redis, by what it is the answer to, and reports
// whether it was not there.
func (r *Renewer) store(ctx context.Context, a *answer) (missing bool, err error) {
	missing, err = bring(ctx, r.Store, a, r.PlanRenewal(a.Tokens))
	if errors.Is(err, errTooLate) {
		r.Log.Error("the journal has brought an answer to a consent too late: the user has to register again",
			zap.String("grant", string(a.ID)), zap.Duration("age", time.Since(a.Tokens.Issued)))
	}
	return missing, err
}

// errTooLate means: nobody knows any more what came of the consent.
var errTooLate = fmt.Errorf("the answer to a consent comes too late: %w", grant.ErrSuperseded)

func bring(ctx context.Context, grants Grants, a *answer, due time.Time) (missing bool, err error) {
	if !a.OfConsent() {
		return grants.Commit(ctx, a.ID, a.Spent, a.Tokens, due)
	}
	if time.Since(a.Tokens.Issued) > grant.ConsentMemory {
		return false, errTooLate
	}
	return grants.AcceptConsent(ctx, a.ID, grant.Consent{
		App: a.App, User: a.User, Fingerprint: a.Spent, Tokens: a.Tokens,
		ZoomUser: a.zoomUser, ZoomAccount: a.zoomAccount,
	}, due)
}

// Replay brings an entry of a journal into Redis whose process does not run any
// more. It may be repeated. It answers what [Grants] does; [grant.ErrSuperseded]
// also to a consent that is too old.
func Replay(ctx context.Context, grants Grants, e journal.Entry) error {
	_, err := bring(ctx, grants, &answer{Entry: e}, grant.MatureTime(e.Tokens.Issued, e.Tokens.Expires))
	return err
}

// forget ends the care for an answer. The journal still has it for a while.
func (r *Renewer) forget(a *answer) {
	r.safety.mu.Lock()
	defer r.safety.mu.Unlock()
	r.forgetLocked(a)
}

func (r *Renewer) forgetLocked(a *answer) {
	delete(r.safety.unsafe, a.key())
	r.Journal.MarkCommitted(a.ID, a.Spent)
}

// holding returns for how long no token may be spent because Redis may have
// forgotten which ones are spent already, or because this process has to stand
// aside. In the first case every replica commits again what its journal has.
func (r *Renewer) holding() time.Duration {
	breaks, now := r.Store.Failovers(), time.Now()
	r.safety.mu.Lock()
	defer r.safety.mu.Unlock()
	if breaks != r.safety.breaks {
		r.safety.breaks = breaks
		r.safety.resume = now.Add(r.PauseAfterFailover)
		again := r.Journal.Entries()
		for _, e := range again {
			a := &answer{Entry: e}
			before, known := r.safety.unsafe[a.key()]
			a.had = r.safety.begun && (!known || before.had) // what nobody cares for any more was there
			r.safety.unsafe[a.key()] = a
		}
		r.metrics.breaks.Inc()
		r.Log.Warn("Redis may have forgotten what it had acknowledged: holding renewals, and committing again what the journal has",
			zap.Duration("for", r.PauseAfterFailover), zap.Int("entries", len(again)))
	}
	if !r.safety.begun {
		return time.Second
	}
	hold := r.safety.resume.Sub(now)
	if r.SuspendReason != nil && r.SuspendReason() != nil {
		hold = max(hold, time.Second)
	}
	return max(0, hold)
}

// Run keeps the rotator safe until ctx ends: it commits what the journal has
// from an earlier process, what Redis did not take and what it has forgotten,
// watches for Redis forgetting, and takes over other replicas' pauses.
func (r *Renewer) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		r.tend(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *Renewer) tend(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.Lease)
	defer cancel()
	if err := r.Store.CheckFailover(ctx); err != nil {
		return // Redis is down: nothing can be done, and nothing is spent
	}
	r.holding()
	r.takePauses(ctx)
	if err := r.settle(ctx, time.Now().Add(-r.VerifyDelay)); err == nil {
		r.safety.mu.Lock()
		r.safety.begun = true
		r.safety.mu.Unlock()
	}
}

// settle looks at the answers that are not known to be in Redis for good.
// Committing is how one looks: it changes nothing if all is well.
func (r *Renewer) settle(ctx context.Context, before time.Time) error {
	breaks := r.Store.Failovers()
	for _, a := range r.safety.waiting(before) {
		err := r.commit(ctx, a.answer)
		switch {
		case errors.Is(err, grant.ErrSuperseded), errors.Is(err, grant.ErrNotFound):
			if a.again { // it was committed, and more has happened since
				r.forget(a.answer)
			}
		case errors.Is(err, grant.ErrUnreplicated):
			return nil // the next round sees to the rest
		case errors.Is(err, grant.ErrDeleting): // an answer to a consent waits for the removal
		case err != nil:
			return err
		case a.again && r.Store.Failovers() == breaks:
			r.forget(a.answer)
		}
	}
	return nil
}

// settleAll waits until every answer is in Redis for good, as far as can be
// known, or ctx ends.
func (r *Renewer) settleAll(ctx context.Context) error {
	for {
		err := r.settle(ctx, time.Now().Add(-r.VerifyDelay))
		left := r.safety.left()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of Zoom's answers wait in the journal for Redis: %w", left, errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
