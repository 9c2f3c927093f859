package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tokenprovider/internal/grant"
)

// ConsentOutcome is what came of a consent: a code or a refresh token that a user was
// registered with. The zero value is void: the user was removed since.
type ConsentOutcome struct {
	// Stored: the grant that came of it is, or was, the user's.
	Stored bool
	// Conflict: the Zoom user has a credential at Recall that is not ours. The two
	// ids are Recall's.
	Conflict                      bool
	ConflictUser, ConflictAccount string
}

func (o ConsentOutcome) text() string {
	switch {
	case o.Stored:
		return "stored"
	case o.Conflict:
		return "taken\x00" + o.ConflictUser + "\x00" + o.ConflictAccount
	}
	return "void"
}

func parseOutcome(text string) (ConsentOutcome, error) {
	switch word, rest, _ := strings.Cut(text, "\x00"); word {
	case "stored":
		return ConsentOutcome{Stored: true}, nil
	case "void":
		return ConsentOutcome{}, nil
	case "taken":
		user, account, _ := strings.Cut(rest, "\x00")
		return ConsentOutcome{Conflict: true, ConflictUser: user, ConflictAccount: account}, nil
	}
	return ConsentOutcome{}, fmt.Errorf("what came of a consent is %q, which this version does not know", text)
}

// ErrConsentUsed means: Zoom has answered this consent already; see [ConsentOutcome].
var ErrConsentUsed = errors.New("the consent was spent before")

// ClaimConsent claims the right to spend a consent, by its fingerprint; it is also the
// probe that Redis can be written. It answers nil if the consent may be presented
// to Zoom; [ErrConsentUsed], with what came of it; or a [*grant.HeldError] while
// somebody who may have Zoom's answer, and may have died with it, is waited for.
func (s *Store) ClaimConsent(ctx context.Context, id grant.ID, consent string, lateAnswer time.Duration) (ConsentOutcome, error) {
	word, answer, err := s.run(ctx, claimConsentScript, id, consent, lateAnswer.Milliseconds(), rand.Text())
	switch {
	case err != nil:
		return ConsentOutcome{}, fmt.Errorf("claiming a consent of %s: %w", id, err)
	case word == "claimed":
		return ConsentOutcome{}, nil
	case word == "held":
		text, _ := answer[0].(string)
		wait, err := parseMillis(text)
		if err != nil {
			return ConsentOutcome{}, fmt.Errorf("claiming a consent of %s: %w", id, err)
		}
		return ConsentOutcome{}, &grant.HeldError{For: wait}
	}
	outcome, err := parseOutcome(word)
	if err != nil {
		return ConsentOutcome{}, err
	}
	return outcome, ErrConsentUsed
}

// ReleaseConsent ends a claim that has brought no grant. With an outcome, that is what
// [Store.ClaimConsent] answers from then on; with nil, the consent may be tried again.
func (s *Store) ReleaseConsent(ctx context.Context, id grant.ID, consent string, outcome *ConsentOutcome) error {
	text := ""
	if outcome != nil {
		text = outcome.text()
	}
	if _, _, err := s.run(ctx, releaseConsentScript, id, consent, text); err != nil {
		return fmt.Errorf("ending the claim of a consent of %s: %w", id, err)
	}
	return nil
}

// AcceptConsent stores Zoom's answer to a consent, as the user's grant from now on,
// whatever was recorded of the grant before: failures, a lease, its loss. It may
// be repeated, and may come late. It answers nil when the answer is stored, by
// this call or an earlier one; [grant.ErrUnreplicated] when it is, but on fewer
// replicas than were asked for; [grant.ErrSuperseded] when the user has consented
// again, or was removed, since; [grant.ErrDeleting] when the user is being
// removed. It also reports whether the answer was missing: if it had been accepted
// before, Redis has forgotten it.
func (s *Store) AcceptConsent(ctx context.Context, id grant.ID, c grant.Consent, due time.Time) (missing bool, err error) {
	sealed, err := s.sealTokens(id, c.Tokens)
	if err != nil {
		return false, err
	}
	word, replicas, err := s.runReplicated(ctx, acceptConsentScript, id,
		c.Fingerprint, millis(c.Tokens.Issued), millis(due), c.ZoomUser, c.ZoomAccount,
		"app", c.App, "user", c.User,
		"refresh_fingerprint", RefreshFingerprint(c.Tokens.Refresh), fieldRefresh, sealed.refresh, fieldAccess, sealed.access,
		"refreshed", strconv.FormatInt(millis(c.Tokens.Issued), 10), "expires", strconv.FormatInt(millis(c.Tokens.Expires), 10))
	switch {
	case err != nil:
		return false, fmt.Errorf("accepting grant %s: %w", id, err)
	case word != "accepted" && word != "already":
		return false, wordError(word)
	case replicas < s.waitReplicas:
		err = fmt.Errorf("accepting grant %s: on %d replicas of %d: %w", id, replicas, s.waitReplicas, grant.ErrUnreplicated)
	}
	return word == "accepted", err
}
