package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tokenprovider/internal/app"
	"tokenprovider/internal/store"
)

type reencrypt struct {
	PerSecond int `default:"1000" help:"Maximum grants per second. 0: no limit."`
	app.Records
}

// Help implements [kong.HelpProvider].
func (*reencrypt) Help() string {
	return `The system keeps running. The command can be interrupted and repeated. Every process must have reloaded the keyset's file before.

Example:

  tokenctl reencrypt --per-second 500`
}

func (r *reencrypt) run(ctx context.Context, s *session) error {
	grants, err := r.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	unlock, ok, err := grants.LockReencryption(ctx, time.Minute)
	switch {
	case err != nil:
		return err
	case !ok:
		return errors.New("reencrypt: a registrar is re-encrypting now; see its log for the progress")
	}
	defer unlock()
	total, err := countGrants(ctx, grants)
	if err != nil {
		return err
	}
	progress := s.progress("grants")
	defer progress.done()
	primary := r.Keyset().Primary()
	done, err := grants.Reencrypt(ctx, r.PerSecond, func(p store.ReencryptProgress) { progress.at(p.Scanned, total) })
	progress.done()
	if err != nil {
		return fmt.Errorf("reencrypt: after %s: %w", count(done.Scanned, "grant"), err)
	}
	s.say("%s checked, %d re-encrypted with key %d", count(done.Scanned, "grant"), done.Reencrypted, primary)
	if err := s.object(map[string]any{"grants": done.Scanned, "reencrypted": done.Reencrypted, "undecryptable": done.Undecryptable, "key": primary}); err != nil {
		return err
	}
	if done.Undecryptable > 0 {
		return fmt.Errorf("reencrypt: no key of the keyset decrypts %s: check for a missing or disabled key", count(done.Undecryptable, "grant"))
	}
	return grants.SetReencryptedBy(ctx, primary)
}

// countGrants returns the number of all grants.
func countGrants(ctx context.Context, grants *store.Store) (total int, err error) {
	states, err := grants.CountByState(ctx)
	for _, n := range states {
		total += n
	}
	return total, err
}
