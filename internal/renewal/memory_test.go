package renewal_test

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/store"
)

// record is a grant as the store's scripts store it.
type record struct {
	app                               string
	tokens                            grant.Tokens
	predecessor                       string // fingerprint of the refresh token that was spent for tokens
	plan, due                         time.Time
	planned                           bool // in the due index
	lease                             string
	leaseUntil, intent, retryAt       time.Time
	served                            time.Time
	uncertain, gone, deleting, linked bool
	failures                          int
	reason                            string
}

func (r *record) fingerprint() string { return store.RefreshFingerprint(r.tokens.Refresh) }

// memory is a model of the store: it does what the Lua scripts do.
// TestMemoryMatchesTheStore compares the two.
type memory struct {
	mu        sync.Mutex
	now       func() time.Time
	records   map[grant.ID]record
	pauses    map[string]time.Time
	failovers int64
	calls     int

	committed func(id grant.ID, access string) // called for every commit that changes something; may be nil

	// Faults that break the protocol on purpose.
	anyPredecessor  bool // commit any spent token
	anyHolder       bool // any replica may end a lease
	leaseIgnored    bool // claim a grant that is held
	failoversHidden bool // failovers are not counted
	intentIgnored   bool // a claim is never uncertain
}

func newMemory() *memory {
	return &memory{now: time.Now, records: map[grant.ID]record{}, pauses: map[string]time.Time{}}
}

// at returns the time as in scripts, in milliseconds.
func (m *memory) at() time.Time { return m.now().Truncate(time.Millisecond) }

// AcceptConsent is not part of the model: no schedule registers users.
func (m *memory) AcceptConsent(context.Context, grant.ID, grant.Consent, time.Time) (bool, error) {
	return false, errors.ErrUnsupported
}

func (m *memory) Claim(_ context.Context, id grant.ID, owner string, terms grant.ClaimTerms) (grant.Claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	r, known := m.records[id]
	if !known {
		return grant.Claim{}, grant.ErrNotFound
	}
	defer func() { m.records[id] = r }()
	switch {
	case r.deleting:
		r.planned = false
		return grant.Claim{}, grant.ErrDeleting
	case r.gone:
		r.planned = false
		return grant.Claim{}, grant.ErrReauthorize
	}
	at := m.at()
	later := func(plan time.Time) time.Duration {
		r.due, r.planned = plan, true
		return plan.Sub(at)
	}
	if r.lease != owner {
		byPlan := terms.ValidUntil.IsZero()
		if byPlan {
			if !r.planned || r.due.After(at) {
				return grant.Claim{}, grant.ErrFresh
			}
			free := r.served.Add(terms.HandOffGuard)
			if free.After(at) && r.tokens.Expires.After(free.Add(grant.HandOffTTL)) {
				return grant.Claim{}, &grant.HeldError{For: later(free)}
			}
		} else if !r.tokens.Expires.Before(terms.ValidUntil.Truncate(time.Millisecond)) {
			return grant.Claim{}, grant.ErrFresh
		}
		if !m.leaseIgnored {
			if r.leaseUntil.After(at) {
				return grant.Claim{}, &grant.HeldError{For: later(r.leaseUntil)}
			}
			if until := r.leaseUntil.Add(terms.LateResponseWait); r.lease != "" && until.After(at) {
				return grant.Claim{}, &grant.HeldError{For: later(until)}
			}
		}
		if r.retryAt.After(at) {
			return grant.Claim{}, &grant.BackoffError{For: later(r.retryAt)}
		}
		if !byPlan && grant.MatureTime(r.tokens.Issued, r.tokens.Expires).After(at) {
			return grant.Claim{}, grant.ErrFresh
		}
		if !r.intent.IsZero() && !m.intentIgnored {
			r.uncertain = true
		}
		r.lease, r.leaseUntil, r.intent = owner, at.Add(terms.Lease), at
		r.due, r.planned = r.leaseUntil, true
	}
	return grant.Claim{
		ID: id, Owner: owner, App: r.app, Refresh: r.tokens.Refresh, Spent: r.fingerprint(),
		Uncertain: r.uncertain, Failures: r.failures, Overdue: at.Sub(r.plan),
	}, nil
}

func (m *memory) Commit(_ context.Context, id grant.ID, spent string, tokens grant.Tokens, due time.Time) (missing bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	r, known := m.records[id]
	if !known {
		return false, grant.ErrNotFound
	}
	successor := store.RefreshFingerprint(tokens.Refresh)
	stored := r.fingerprint()
	if stored == successor && stored != spent {
		return false, nil
	}
	sibling := r.predecessor == spent && r.tokens.Issued.Before(tokens.Issued.Truncate(time.Millisecond))
	if stored != spent && !sibling && !m.anyPredecessor {
		return false, grant.ErrSuperseded
	}
	if spent == successor && !r.tokens.Expires.Before(tokens.Expires) {
		return false, nil
	}
	r.tokens, r.plan, r.predecessor = tokens, due, spent
	r.lease, r.leaseUntil, r.intent, r.retryAt, r.served = "", time.Time{}, time.Time{}, time.Time{}, time.Time{}
	r.uncertain, r.failures, r.gone = false, 0, false
	r.due, r.planned = due, !r.deleting
	m.records[id] = r
	if m.committed != nil {
		m.committed(id, tokens.Access.Reveal())
	}
	return true, nil
}

func (m *memory) Fail(_ context.Context, c grant.Claim, outcome grant.Outcome, retryIn time.Duration, reason string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	r, known := m.records[c.ID]
	if !known || r.lease != c.Owner && !m.anyHolder || r.fingerprint() != c.Spent {
		return grant.ErrSuperseded
	}
	defer func() { m.records[c.ID] = r }()
	r.lease, r.leaseUntil = "", time.Time{}
	retryAt := m.at().Add(retryIn.Truncate(time.Millisecond))
	if outcome == grant.OutcomeReleased {
		if !r.uncertain {
			r.intent = time.Time{}
		}
		r.due, r.planned = retryAt, true
		return nil
	}
	r.failures++
	r.reason = reason
	if outcome == grant.OutcomeGone {
		r.gone, r.planned = true, false
		r.intent, r.uncertain, r.retryAt = time.Time{}, false, time.Time{}
		return nil
	}
	r.retryAt, r.due, r.planned = retryAt, retryAt, true
	if outcome == grant.OutcomeUnspent && !r.uncertain {
		r.intent = time.Time{}
	}
	return nil
}

func (m *memory) ReadServingRecord(_ context.Context, id grant.ID) (grant.ServingRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	r, known := m.records[id]
	if !known {
		return grant.ServingRecord{}, grant.ErrNotFound
	}
	serving := grant.ServingRecord{State: grant.StateActive, Access: r.tokens.Access, Expires: r.tokens.Expires, RenewTime: r.plan}
	switch {
	case r.deleting:
		serving.State = grant.StateDeleting
	case r.gone:
		serving.State = grant.StateReauthorizationRequired
	}
	return serving, nil
}

func (m *memory) MarkServed(_ context.Context, id grant.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if r, known := m.records[id]; known {
		r.served = m.at()
		m.records[id] = r
	}
	return nil
}

func (m *memory) Pause(_ context.Context, app string, d time.Duration, _ string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if until := m.at().Add(d); until.After(m.pauses[app]) {
		m.pauses[app] = until
	}
	return nil
}

func (m *memory) PauseRemaining(_ context.Context, app string) (time.Duration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, m.pauses[app].Sub(m.at())), nil
}

func (m *memory) Failovers() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failoversHidden {
		return 0
	}
	return m.failovers
}

func (m *memory) CheckFailover(context.Context) error { return nil }

// due returns the grants that are due.
func (m *memory) due() (ids []grant.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.at()
	for id, r := range m.records {
		if r.planned && !r.due.After(at) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *memory) snapshot() map[grant.ID]record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.records)
}

// restore restores an old state, as a failover to a lagging replica does.
func (m *memory) restore(old map[grant.ID]record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = maps.Clone(old)
	m.failovers++
}

// memoryJournal is a journal that survives its process.
type memoryJournal struct {
	mu        sync.Mutex
	entries   []journal.Entry
	committed map[string]bool
	loses     bool // breaks the protocol on purpose: entries are lost
}

func newMemoryJournal() *memoryJournal { return &memoryJournal{committed: map[string]bool{}} }

func (p *memoryJournal) Add(_ context.Context, e journal.Entry) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.loses {
		p.entries = append(p.entries, e)
	}
	return nil
}

func (p *memoryJournal) MarkCommitted(id grant.ID, spent string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.committed[string(id)+spent] = true
}

func (p *memoryJournal) Entries() []journal.Entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]journal.Entry(nil), p.entries...)
}

var errDown = errors.New("connection refused")

var _ renewal.Store = (*memory)(nil)
