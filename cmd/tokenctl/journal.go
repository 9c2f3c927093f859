package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tokenprovider/internal/admin/doctor"
	"tokenprovider/internal/app"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/store"
)

// directory is the argument of a journal's directory.
type directory struct {
	JournalDir string `arg:"" optional:"" name:"directory" env:"JOURNAL_DIR" default:"journal" help:"Directory of the journal: JOURNAL_DIR of its process."`
}

type journalShow struct {
	directory
	Offline bool `help:"No check of Redis for the responses."`
	app.Records
}

// Check implements [config.Checker].
func (j *journalShow) Check(fault func(setting, text string)) {
	j.Encryption.Check(fault)
	if !j.Offline {
		j.Redis.Check(fault)
	}
}

// IsOptional implements [config.OptionalSettings].
func (j *journalShow) IsOptional(setting string) bool { return j.Offline && setting == "REDIS_URL" }

// Help implements [kong.HelpProvider].
func (*journalShow) Help() string {
	return `Lists the responses with their users, and their status in Redis: stored, missing (to be committed), superseded (Redis has a later one), no_grant (the user was removed). It can run while a process uses the journal. No token is shown.

Example:

  tokenctl journal show /var/lib/tokenserver/journal`
}

// entry is an entry of a journal in JSON.
type entry struct {
	Grant   grant.ID             `json:"grant"`
	Kind    string               `json:"kind"` // renewal or consent
	User    string               `json:"user_id,omitempty"`
	App     string               `json:"zoom_app,omitempty"`
	Issued  time.Time            `json:"issue_time"`
	Expires time.Time            `json:"access_token_expire_time"`
	InRedis store.ResponseStatus `json:"in_redis,omitempty"`
	Error   string               `json:"error,omitempty"`
}

// describe returns the users of entries, and their status in Redis. grants may be
// nil: there is no Redis to check.
func describe(ctx context.Context, grants *store.Store, entries []journal.Entry) ([]entry, error) {
	if grants == nil {
		described := make([]entry, len(entries))
		for i, e := range entries {
			described[i] = describeOne(e, e.User, e.App, "")
		}
		return described, nil
	}
	statuses, err := grants.CheckResponses(ctx, doctor.JournaledResponses(entries))
	if err != nil {
		return nil, err
	}
	ids := make([]grant.ID, len(entries))
	for i, e := range entries {
		ids[i] = e.ID
	}
	found, err := grants.ByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	grantOf := map[grant.ID]grant.Grant{}
	for _, g := range found {
		grantOf[g.ID] = g
	}
	described := make([]entry, len(entries))
	for i, e := range entries {
		user, app := grantOf[e.ID].User, grantOf[e.ID].App
		if e.OfConsent() {
			user, app = e.User, e.App
		}
		described[i] = describeOne(e, user, app, statuses[i])
	}
	return described, nil
}

func describeOne(e journal.Entry, user, app string, status store.ResponseStatus) entry {
	kind := "renewal"
	if e.OfConsent() {
		kind = "consent"
	}
	return entry{
		Grant: e.ID, Kind: kind, User: user, App: app,
		Issued: e.Tokens.Issued.UTC(), Expires: e.Tokens.Expires.UTC(), InRedis: status,
	}
}

func (j *journalShow) run(ctx context.Context, s *session) error {
	entries, running, err := journal.Read(j.JournalDir, j.Keyset())
	if err != nil {
		return err
	}
	var grants *store.Store
	if !j.Offline {
		if grants, err = j.Open(ctx); err != nil {
			return err
		}
		defer func() { _ = j.Close() }()
	}
	described, err := describe(ctx, grants, entries)
	if err != nil {
		return err
	}
	rows := s.table("ISSUED", "KIND", "USER", "APP", "IN REDIS", "GRANT")
	for _, e := range described {
		if err := s.object(e); err != nil {
			return err
		}
		rows.row(ago(e.Issued), e.Kind, e.User, e.App, string(e.InRedis), string(e.Grant))
	}
	rows.flush()
	switch {
	case len(entries) == 0:
		s.say("the journal is empty")
	case running:
		s.say("a process uses this journal, and commits the missing responses itself")
	}
	return nil
}

type journalReplay struct {
	directory
	app.Records
}

// Help implements [kong.HelpProvider].
func (*journalReplay) Help() string {
	return `For the journal of a process that will not start again, on a volume left behind. It refuses while a process uses the journal. A response is committed only if Redis has the refresh token that was spent for it, so the command can be repeated, and run late; a response to a consent is accepted for a day. The directory stays unchanged: remove it when no entry is missing.

Example:

  tokenctl journal replay /mnt/left-behind/journal`
}

func (j *journalReplay) run(ctx context.Context, s *session) error {
	grants, err := j.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }()
	unlock, err := journal.Lock(j.JournalDir)
	switch {
	case errors.Is(err, journal.ErrLocked):
		return errors.New("journal replay: another process uses this journal, and commits the missing responses itself (see tokenctl journal show). Stop that process to replay it here")
	case err != nil:
		return fmt.Errorf("journal replay: %w", err)
	}
	defer unlock()
	entries, _, err := journal.Read(j.JournalDir, j.Keyset())
	if err != nil {
		return err
	}
	before, err := describe(ctx, grants, entries)
	if err != nil {
		return err
	}
	failed, committed := 0, 0
	faults := make([]string, len(entries))
	for i, e := range entries {
		err := renewal.Replay(ctx, grants, e)
		switch {
		case errors.Is(err, grant.ErrSuperseded), errors.Is(err, grant.ErrNotFound):
		case err != nil:
			failed++
			faults[i] = err.Error()
		}
	}
	after, err := describe(ctx, grants, entries)
	if err != nil {
		return err
	}
	rows := s.table("ISSUED", "KIND", "USER", "APP", "IN REDIS BEFORE", "NOW", "GRANT")
	for i, e := range after {
		if before[i].InRedis != store.ResponseStored && e.InRedis == store.ResponseStored {
			committed++
		}
		e.Error = faults[i]
		if err := s.object(struct {
			entry
			Before store.ResponseStatus `json:"in_redis_before"`
		}{e, before[i].InRedis}); err != nil {
			return err
		}
		rows.row(ago(e.Issued), e.Kind, e.User, e.App, string(before[i].InRedis), string(e.InRedis), string(e.Grant))
	}
	rows.flush()
	s.say("%s, of which Redis was missing %d", count(len(entries), "response"), committed)
	if failed > 0 {
		return fmt.Errorf("journal replay: %s not committed; run it again. The first error: %s", count(failed, "response"), first(faults))
	}
	return nil
}

func first(texts []string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}
