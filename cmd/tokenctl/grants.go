package main

import (
	"context"
	"fmt"
	"time"

	"tokenprovider/internal/admin/doctor"
	"tokenprovider/internal/app"
	"tokenprovider/internal/grant"
)

type grantsDue struct {
	Within time.Duration `default:"5m" help:"Time within which the grants are due. 0: only overdue grants."`
	Limit  int           `default:"50" help:"Maximum number of grants."`
	app.Records
}

// Help implements [kong.HelpProvider].
func (*grantsDue) Help() string {
	return `Sorted by time. Overdue grants wait for a token server; a second or so is normal.

Example:

  tokenctl grants due --within 0s`
}

func (g *grantsDue) run(ctx context.Context, s *session) error {
	grants, err := g.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = g.Close() }()
	now, err := grants.Now(ctx)
	if err != nil {
		return err
	}
	before := now.Add(g.Within)
	planned, err := grants.ListPlanned(ctx, before, g.Limit)
	if err != nil {
		return err
	}
	all, err := grants.CountOverdue(ctx, before)
	if err != nil {
		return err
	}
	ids := make([]grant.ID, len(planned))
	for i, p := range planned {
		ids[i] = p.ID
	}
	found, err := grants.ByID(ctx, ids)
	if err != nil {
		return err
	}
	byID := map[grant.ID]grant.Grant{}
	for _, one := range found {
		byID[one.ID] = one
	}
	rows := s.table("DUE", "USER", "APP", "STATE", "EXPIRES", "GRANT")
	for _, p := range planned {
		one := byID[p.ID]
		if err := s.object(map[string]any{
			"grant": p.ID, "due_time": p.At, "overdue_seconds": max(0, int(now.Sub(p.At).Seconds())),
			"user_id": one.User, "zoom_app": one.App, "state": apiState(one.State), "access_token_expire_time": one.AccessExpires,
		}); err != nil {
			return err
		}
		rows.row(ago(p.At), one.User, one.App, word(string(one.State)), ago(one.AccessExpires), string(p.ID))
	}
	rows.flush()
	switch {
	case all == 0:
		s.say("nothing is due within %v", g.Within)
	case all > len(planned):
		s.say("and %d more", all-len(planned))
	}
	return nil
}

// apiState returns the API's name of a state.
func apiState(state grant.State) string {
	if state == "" {
		return ""
	}
	return fromState(string(state)).String()
}

type grantsStuck struct {
	Late  time.Duration `default:"2m" help:"Minimum time without progress."`
	Limit int           `default:"100" help:"Maximum number of grants."`
	app.Records
}

// Help implements [kong.HelpProvider].
func (*grantsStuck) Help() string {
	return `A stuck grant is overdue (no token server renews it), uncertain (a response from Zoom was lost, and the refresh token may be spent), failing (its renewal fails and is retried), or incomplete (the registrar cannot complete a registration or removal). Users who must consent again are not listed: only they can act (users list --state reauthorization_required).

Example:

  tokenctl grants stuck`
}

func (g *grantsStuck) run(ctx context.Context, s *session) error {
	grants, err := g.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = g.Close() }()
	rows := s.table("USER", "APP", "STATE", "STUCK", "NEXT ATTEMPT", "CAUSE")
	n, more := 0, false
	var printing error
	err = doctor.FindStuck(ctx, grants, g.Late, func(one doctor.Stuck) bool {
		if n == g.Limit {
			more = true
			return false
		}
		n++
		printing = s.object(map[string]any{
			"grant": one.Grant.ID, "user_id": one.User, "zoom_app": one.App, "state": apiState(one.State),
			"stuck": one.Kind, "cause": one.Cause, "failures": one.Failures, "uncertain": one.Uncertain, "next_attempt_time": nullable(one.NextAttempt),
		})
		rows.row(one.User, one.App, word(string(one.State)), string(one.Kind), ago(one.NextAttempt), one.Cause)
		return printing == nil
	})
	rows.flush()
	if err != nil || printing != nil {
		return fmt.Errorf("grants stuck: %w", orElse(err, printing))
	}
	switch {
	case n == 0:
		s.say("nothing is stuck")
	case more:
		s.say("and more (see --limit)")
	}
	return nil
}

// nullable returns a time for JSON: null if it is zero.
func nullable(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
