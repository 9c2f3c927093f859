package renewal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
)

// A code is spent once, like a refresh token, and its answer is kept in the same
// way: whoever registers a user calls Keep as soon as Zoom has answered, then
// AcceptConsent.

// PauseRemaining returns for how long nothing may be spent at Zoom, because Redis may
// have forgotten what is spent already.
func (r *Renewer) PauseRemaining() time.Duration { return r.holding() }

// JournalConsent puts Zoom's answer to a consent into the journal. From then on it is not
// lost, and comes into Redis sooner or later, unless [Renewer.DiscardConsent] is called.
func (r *Renewer) JournalConsent(e journal.Entry, answered time.Time) {
	if err := r.Journal.Add(e); err != nil {
		r.Log.Error("Zoom's answer to a consent is not in the journal: it is lost if this process dies before Redis has it",
			zap.String("grant", string(e.ID)), zap.String("app", e.App), zap.Error(err))
		r.metrics.unjournaled.Inc()
	}
	r.metrics.exposure.Observe(time.Since(answered).Seconds())
}

// CommitConsent stores what was kept as the user's grant; zoomUser and zoomAccount are
// whose it is, or empty if Zoom has not said. It tries until ctx ends; after that
// the answer waits in the journal for Redis. It answers [grant.ErrSuperseded] if
// the user has consented again, or was removed, since.
func (r *Renewer) CommitConsent(ctx context.Context, e journal.Entry, zoomUser, zoomAccount string) error {
	kept := r.safety.add(&answer{Entry: e, zoomUser: zoomUser, zoomAccount: zoomAccount})
	err := r.persist(ctx, kept)
	if errors.Is(err, grant.ErrUnreplicated) { // the recovery sees to the replicas
		return nil
	}
	if err != nil {
		return fmt.Errorf("storing the user's grant: %w", err)
	}
	return nil
}

// DiscardConsent ends the care for what was kept: it is of no use.
func (r *Renewer) DiscardConsent(e journal.Entry) { r.Journal.MarkCommitted(e.ID, e.Spent) }

// persist commits an answer, as often as it takes, until ctx ends.
func (r *Renewer) persist(ctx context.Context, a *answer) error {
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 20*time.Millisecond, time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := r.commit(ctx, a)
		if errors.Is(err, grant.ErrSuperseded) || errors.Is(err, grant.ErrNotFound) || errors.Is(err, grant.ErrUnreplicated) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pace), backoff.WithMaxElapsedTime(0))
	return err
}
