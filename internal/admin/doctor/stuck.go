package doctor

import (
	"context"
	"fmt"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

// Stuck is a grant that does not get on.
type Stuck struct {
	grant.Grant
	store.Renewal
	Kind        StuckKind
	Cause       string    // for people, without secrets
	NextAttempt time.Time // when something will be tried; zero: nobody knows
}

// StuckKind is how a grant can be stuck.
type StuckKind string

// How a grant can be stuck. What is worse comes first, where it is several.
const (
	// Overdue: its renewal was due for some time, and nobody has claimed it.
	Overdue StuckKind = "overdue"
	// Uncertain: an answer of Zoom's was lost; its refresh token may be spent.
	Uncertain StuckKind = "uncertain"
	// Failing: its renewal fails, and is tried again.
	Failing StuckKind = "failing"
	// Unfinished: the registrar cannot bring it to its end.
	Incomplete StuckKind = "unfinished"
)

// FindStuck calls each with grants that have been stuck for longer than late,
// until it returns false. Those that only their user can mend are not among them.
func FindStuck(ctx context.Context, grants *store.Store, late time.Duration, each func(Stuck) bool) error {
	now, err := grants.Now(ctx)
	if err != nil {
		return err
	}
	seen := map[grant.ID]bool{}
	judge := func(found []grant.Grant) (more bool, err error) {
		ids := make([]grant.ID, len(found))
		for i, g := range found {
			ids[i] = g.ID
		}
		renewals, err := grants.ReadRenewals(ctx, ids)
		if err != nil {
			return false, err
		}
		for i, g := range found {
			s, stuck := judgeStuck(g, renewals[i], now, late)
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
	const most, page = 1000, 200
	planned, err := grants.ListPlanned(ctx, now.Add(-late), most)
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
		if more, err := judge(found); err != nil || !more {
			return err
		}
		planned = planned[n:]
	}
	for _, state := range []grant.State{grant.Degraded, grant.Pending, grant.Deleting} {
		for after := grant.ID(""); ; {
			found, err := grants.List(ctx, state, after, page)
			if err != nil {
				return err
			}
			if more, err := judge(found); err != nil || !more {
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

// judgeStuck says whether, and how, a grant is stuck.
func judgeStuck(g grant.Grant, r store.Renewal, now time.Time, late time.Duration) (Stuck, bool) {
	s := Stuck{Grant: g, Renewal: r, Cause: g.Reason, NextAttempt: r.Due}
	switch {
	case !r.Due.IsZero() && now.Sub(r.Due) > late:
		s.Kind, s.NextAttempt = Overdue, time.Time{}
		s.Cause = fmt.Sprintf("due for %v, and nobody has claimed it", now.Sub(r.Due).Round(time.Second))
	case r.Uncertain || !r.Intent.IsZero() && now.Sub(r.LeaseUntil) > late:
		s.Kind, s.Uncertain = Uncertain, true
	case r.Failures > 0 && g.State != grant.ReauthorizationRequired:
		s.Kind = Failing
		s.Cause = fmt.Sprintf("failed %d times: %s", r.Failures, g.Reason)
	case (g.State == grant.Pending || g.State == grant.Deleting) && (g.Attempts > 0 || now.Sub(g.Updated) > late):
		s.Kind, s.NextAttempt = Incomplete, r.Work
		if g.Attempts > 0 {
			s.Cause = fmt.Sprintf("tried %d times: %s", g.Attempts, g.Reason)
		}
	default:
		return Stuck{}, false
	}
	return s, true
}
