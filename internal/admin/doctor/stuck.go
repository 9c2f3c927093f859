package doctor

import (
	"context"
	"fmt"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

// Stuck is a grant without progress.
type Stuck struct {
	grant.Grant
	store.RenewalState
	Kind        StuckKind
	Cause       string    // human-readable, without secrets
	NextAttempt time.Time // by the clock of Redis; zero: unknown
}

// StuckKind is the way in which a grant is stuck.
type StuckKind string

// The kinds. If several apply to a grant, the first one counts.
const (
	// Overdue: its renewal is due, and no process has claimed it.
	Overdue StuckKind = "overdue"
	// Uncertain: a response from Zoom was lost; the refresh token may be spent.
	Uncertain StuckKind = "uncertain"
	// Failing: its renewal fails, and is retried.
	Failing StuckKind = "failing"
	// Incomplete: the registrar cannot complete its registration or removal.
	Incomplete StuckKind = "incomplete"
)

// FindStuck calls each, once, with every grant that has been stuck for longer than
// late, until each returns false. It omits grants whose user must consent again. At
// most 1,000 overdue grants are found.
func FindStuck(ctx context.Context, grants *store.Store, late time.Duration, each func(Stuck) bool) error {
	now, err := grants.Now(ctx)
	if err != nil {
		return err
	}
	seen := map[grant.ID]bool{}
	report := func(found []grant.Grant) (more bool, err error) {
		ids := make([]grant.ID, len(found))
		for i, g := range found {
			ids[i] = g.ID
		}
		renewals, err := grants.ReadRenewals(ctx, ids)
		if err != nil {
			return false, err
		}
		for i, g := range found {
			s, stuck := classify(g, renewals[i], now, late)
			if !stuck || seen[g.ID] {
				continue
			}
			seen[g.ID] = true
			if !each(s) {
				return false, nil
			}
		}
		return true, nil
	}
	const limit, page = 1000, 200
	planned, err := grants.ListPlanned(ctx, now.Add(-late), limit)
	if err != nil {
		return err
	}
	for len(planned) > 0 {
		n := min(page, len(planned))
		ids := make([]grant.ID, n)
		for i, p := range planned[:n] {
			ids[i] = p.ID
		}
		found, err := grants.ByID(ctx, ids)
		if err != nil {
			return err
		}
		if more, err := report(found); err != nil || !more {
			return err
		}
		planned = planned[n:]
	}
	for _, state := range []grant.State{grant.StateDegraded, grant.StatePending, grant.StateDeleting} {
		for after := grant.ID(""); ; {
			found, err := grants.List(ctx, state, after, page)
			if err != nil {
				return err
			}
			if more, err := report(found); err != nil || !more {
				return err
			}
			if len(found) < page {
				break
			}
			after = found[len(found)-1].ID
		}
	}
	return nil
}

// classify reports whether a grant is stuck, and its kind.
func classify(g grant.Grant, r store.RenewalState, now time.Time, late time.Duration) (Stuck, bool) {
	s := Stuck{Grant: g, RenewalState: r, Cause: g.Reason, NextAttempt: r.Due}
	switch {
	case !r.Due.IsZero() && now.Sub(r.Due) > late:
		s.Kind, s.NextAttempt = Overdue, time.Time{}
		s.Cause = fmt.Sprintf("due for %v, and not claimed", now.Sub(r.Due).Round(time.Second))
	case r.Uncertain || !r.Intent.IsZero() && now.Sub(r.LeaseUntil) > late:
		s.Kind, s.Uncertain = Uncertain, true
	case r.Failures > 0 && g.State != grant.StateReauthorizationRequired:
		s.Kind = Failing
		s.Cause = fmt.Sprintf("failed %s: %s", count(r.Failures, "time"), g.Reason)
	case (g.State == grant.StatePending || g.State == grant.StateDeleting) && (g.Attempts > 0 || now.Sub(g.Updated) > late):
		s.Kind, s.NextAttempt = Incomplete, r.Work
		if g.Attempts > 0 {
			s.Cause = fmt.Sprintf("attempted %s: %s", count(g.Attempts, "time"), g.Reason)
		}
	default:
		return Stuck{}, false
	}
	return s, true
}
