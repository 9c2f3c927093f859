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

// Consents records what became of each code or refresh token that a user was
// registered with. A consent is claimed, then accepted or released:
//
//	absent, open → spending   ClaimConsent, by one replica at a time
//	spending → spending       ClaimConsent, once the holder is considered dead
//	spending → stored         AcceptConsent: the grant is stored
//	spending → open           ReleaseConsent without outcome: it may be tried again
//	spending → void, conflict    ReleaseConsent with an outcome: final
//	any → void                Grants.Remove: the user was removed
//
// Outcomes are kept for [grant.ConsentMemory]. AcceptConsent may be repeated, and
// may come late.
type Consents struct{ *core }

// ConsentOutcome is the outcome of a consent: of a code or a refresh token that a
// user was registered with. The zero value is void: the user was removed since.
type ConsentOutcome struct {
	// Stored: its grant was stored as the user's.
	Stored bool
	// Conflict: the Zoom user has a credential at Recall that was not created here.
	// Both ids are Recall's.
	Conflict                      bool
	ConflictUser, ConflictAccount string
}

func (o ConsentOutcome) text() string {
	switch {
	case o.Stored:
		return "stored"
	case o.Conflict:
		return "conflict\x00" + o.ConflictUser + "\x00" + o.ConflictAccount
	}
	return "void"
}

func parseOutcome(text string) (ConsentOutcome, error) {
	switch word, rest, _ := strings.Cut(text, "\x00"); word {
	case "stored":
		return ConsentOutcome{Stored: true}, nil
	case "void":
		return ConsentOutcome{}, nil
	case "conflict":
		user, account, _ := strings.Cut(rest, "\x00")
		return ConsentOutcome{Conflict: true, ConflictUser: user, ConflictAccount: account}, nil
	}
	return ConsentOutcome{}, fmt.Errorf("outcome %q of a consent is unknown to this version", text)
}

// ErrConsentUsed means that the consent has an outcome; see [ConsentOutcome].
var ErrConsentUsed = errors.New("the consent was used before")

// ClaimConsent claims the right to present a consent to Zoom, by its fingerprint. The
// write also proves that Redis is writable. It returns nil if the consent may be
// presented; [ErrConsentUsed] with its outcome; or a [*grant.HeldError] while another
// replica may have Zoom's response. A call with a lost reply leaves the claim until
// lateResponse has passed.
func (s *Consents) ClaimConsent(ctx context.Context, id grant.ID, consent string, lateResponse time.Duration) (ConsentOutcome, error) {
	word, reply, err := s.run(ctx, claimConsentScript, id, consent, lateResponse.Milliseconds(), rand.Text())
	switch {
	case err != nil:
		return ConsentOutcome{}, fmt.Errorf("claiming a consent of %s: %w", id, err)
	case word == "claimed":
		return ConsentOutcome{}, nil
	case word == "held":
		text, _ := reply[0].(string)
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

// ReleaseConsent ends a claim without a grant. [Consents.ClaimConsent] returns the
// outcome from then on; if it is nil, the consent may be tried again.
func (s *Consents) ReleaseConsent(ctx context.Context, id grant.ID, consent string, outcome *ConsentOutcome) error {
	text := ""
	if outcome != nil {
		text = outcome.text()
	}
	if _, _, err := s.run(ctx, releaseConsentScript, id, consent, text); err != nil {
		return fmt.Errorf("ending the claim of a consent of %s: %w", id, err)
	}
	return nil
}

// AcceptConsent stores Zoom's response to a consent as the user's grant. It clears
// earlier failures, the lease and the loss of the grant. It may be repeated, and may
// come late. It returns nil if the response is stored, by this call or an earlier
// one; [grant.ErrUnreplicated] if it is stored on fewer replicas than required;
// [grant.ErrSuperseded] if the user has consented again or was removed since;
// [grant.ErrDeleting] if the user is being removed. It also reports whether this call
// has stored it: if an earlier call had, Redis lost that write.
func (s *Consents) AcceptConsent(ctx context.Context, id grant.ID, c grant.Consent, due time.Time) (missing bool, err error) {
	encrypted, err := s.encryptTokens(id, c.Tokens)
	if err != nil {
		return false, err
	}
	word, replicas, err := s.runReplicated(ctx, acceptConsentScript, id,
		c.Fingerprint, millis(c.Tokens.Issued), millis(due), c.ZoomUser, c.ZoomAccount,
		"app", c.App, "user", c.User,
		"refresh_fingerprint", RefreshFingerprint(c.Tokens.Refresh), fieldRefresh, encrypted.refresh, fieldAccess, encrypted.access,
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
