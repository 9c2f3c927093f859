package renewal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
)

// An authorization code works once, like a refresh token, and its response is kept in
// the same way: the registrar calls JournalConsent as soon as Zoom has responded, then
// CommitConsent or DiscardConsent.

// JournalConsent writes Zoom's response to a consent, received at the given time, to
// the journal. If neither [Renewer.CommitConsent] nor [Renewer.DiscardConsent] follows,
// the next process commits it.
func (r *Renewer) JournalConsent(ctx context.Context, e journal.Entry, received time.Time) {
	r.journalResponse(ctx, e.App, e, received)
}

// CommitConsent stores a journaled response as the user's grant. zoomUser and
// zoomAccount identify its owner, or are empty if unknown. It retries until ctx ends;
// after that the response is retried from the journal. It returns
// [grant.ErrSuperseded] if the user has consented again, or was removed, since.
func (r *Renewer) CommitConsent(ctx context.Context, e journal.Entry, zoomUser, zoomAccount string) error {
	err := r.commitWithRetries(ctx, r.uncommitted.add(&response{Entry: e, zoomUser: zoomUser, zoomAccount: zoomAccount}))
	if errors.Is(err, grant.ErrUnreplicated) { // verifyCommits waits for the replicas
		return nil
	}
	if err != nil {
		return fmt.Errorf("storing the user's grant: %w", err)
	}
	return nil
}

// DiscardConsent records that a journaled response needs no commit.
func (r *Renewer) DiscardConsent(e journal.Entry) { r.Journal.MarkCommitted(e.ID, e.Spent) }

// commitWithRetries commits a response until Redis returns a verdict or ctx ends.
func (r *Renewer) commitWithRetries(ctx context.Context, a *response) error {
	intervals := backoff.NewExponentialBackOff()
	intervals.InitialInterval, intervals.MaxInterval = 20*time.Millisecond, time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := r.commit(ctx, a)
		if errors.Is(err, grant.ErrSuperseded) || errors.Is(err, grant.ErrNotFound) || errors.Is(err, grant.ErrUnreplicated) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(intervals), backoff.WithMaxElapsedTime(0))
	return err
}
