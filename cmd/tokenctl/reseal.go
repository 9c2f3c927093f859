package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tokenprovider/internal/app"
	"tokenprovider/internal/store"
)

type reseal struct {
	PerSecond int `default:"1000" help:"Grants a second, at most. 0: as many as Redis takes."`
	app.Records
}

// Help implements [kong.HelpProvider].
func (*reseal) Help() string {
	return `Everything goes on meanwhile. It may be broken off and repeated: what is done is done. Every process must have read the keyset's file by now.

Example:

  tokenctl reseal --per-second 500`
}

func (r *reseal) run(ctx context.Context, s *session) error {
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
		return errors.New("reseal: a registrar is sealing again at this moment; its log tells how far it is")
	}
	defer unlock()
	states, err := grants.CountByState(ctx)
	if err != nil {
		return err
	}
	all := 0
	for _, n := range states {
		all += n
	}
	progress := s.progress("grants")
	defer progress.done()
	primary := r.Keyset().Primary()
	done, err := grants.Reencrypt(ctx, r.PerSecond, func(p store.ReencryptProgress) { progress.at(p.Seen, all) })
	progress.done()
	if err != nil {
		return fmt.Errorf("after %d grants: %w", done.Seen, err)
	}
	s.say("%s looked at, %d sealed again by key %d", count(done.Seen, "grant"), done.Resealed, primary)
	if err := s.object(map[string]any{"grants": done.Seen, "resealed": done.Resealed, "broken": done.Broken, "key": primary}); err != nil {
		return err
	}
	if done.Broken > 0 {
		return fmt.Errorf("reseal: %d grants do not open with any key of the keyset: is one missing or disabled?", done.Broken)
	}
	return grants.SetReencryptedBy(ctx, primary)
}
