package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
)

// Grants reads, changes and removes single grants.
//
// Get, ByID and the Read methods may be repeated. Change and Remove compare the
// version that was read and fail with [grant.ErrConflict] if it is not the stored
// one. After a lost reply the caller reads the grant again.
type Grants struct {
	*core
	batcher *readBatcher
	decoy   [len(servingFields)]string // a record of no user, see [Grants.ReadServingRecord]
}

// Get reads a grant. It returns [grant.ErrNotFound] if there is none.
func (s *Grants) Get(ctx context.Context, id grant.ID) (grant.Grant, error) {
	fields, err := s.redis.HGetAll(ctx, grantKey(id)).Result()
	if err != nil {
		return grant.Grant{}, fmt.Errorf("reading grant %s: %w", id, err)
	}
	return s.decode(id, fields)
}

// servingFields are the fields that a callback needs.
var servingFields = [...]string{"state", "expires", "renew_at", fieldAccess, fieldSecrets}

// ReadServingRecord reads the fields that a callback needs, in one read. It returns
// [grant.ErrNotFound] or [ErrUnavailable]. Without a grant it decrypts a decoy, so that
// its duration does not reveal whether there is one.
func (s *Grants) ReadServingRecord(ctx context.Context, id grant.ID) (grant.ServingRecord, error) {
	values, err := s.batcher.read(ctx, id)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, redis.ErrPoolTimeout): // not a fault of Redis
		return grant.ServingRecord{}, fmt.Errorf("reading grant %s: %w", id, err)
	case err != nil:
		return grant.ServingRecord{}, fmt.Errorf("reading grant %s: %w: %w", id, ErrUnavailable, err)
	}
	var fields [len(servingFields)]string
	for i := range fields {
		fields[i], _ = values[i].(string)
	}
	if fields[0] == "" {
		_, _ = s.decryptServing(noID, s.decoy)
		return grant.ServingRecord{}, grant.ErrNotFound
	}
	return s.decryptServing(id, fields)
}

// noID is the ID of no grant: a user's id is not empty.
var noID = grant.NewID("", "")

// newDecoy makes a record that takes as long to decrypt as a user's.
func (s *Grants) newDecoy() [len(servingFields)]string {
	token := secret.New(strings.Repeat("x", 800)) // Zoom's have 700 to 900 bytes
	tokens, errTokens := s.encryptTokens(noID, grant.Tokens{Access: token, Refresh: token})
	keys, errKeys := s.encryptSecrets(noID, []grant.CallbackSecret{{}})
	if errTokens != nil || errKeys != nil {
		keys = nil // a keyset that cannot encrypt: nothing works then
	}
	return [len(servingFields)]string{string(grant.StateActive), "1", "1", string(tokens.access), string(keys)}
}

func (s *Grants) decryptServing(id grant.ID, fields [len(servingFields)]string) (grant.ServingRecord, error) {
	var d decoder
	serving := grant.ServingRecord{
		State:     grant.State(fields[0]),
		Expires:   d.time("expires", fields[1]),
		RenewTime: d.time("renew_at", fields[2]),
		Access:    s.decryptText(id, &d, fieldAccess, fields[3]),
		Secrets:   s.decryptSecrets(id, &d, fields[4]),
	}
	if d.err != nil {
		return grant.ServingRecord{}, fmt.Errorf("reading grant %s: %w", id, d.err)
	}
	return serving, nil
}

// ReadRefreshToken reads the refresh token, to revoke it. It must not be spent without
// a claim.
func (s *Grants) ReadRefreshToken(ctx context.Context, id grant.ID) (secret.Text, error) {
	encrypted, err := s.redis.HGet(ctx, grantKey(id), fieldRefresh).Result()
	if errors.Is(err, redis.Nil) {
		return secret.Text{}, grant.ErrNotFound
	}
	if err != nil {
		return secret.Text{}, fmt.Errorf("reading grant %s: %w", id, err)
	}
	var d decoder
	return s.decryptText(id, &d, fieldRefresh, encrypted), d.err
}

// Identity is the Zoom user of a grant.
type Identity struct{ ZoomUser, ZoomAccount string }

// Change changes a grant if it still has the version, and returns the changed grant.
// It returns [grant.ErrNotFound], or [grant.ErrConflict] if it has changed since.
func (s *Grants) Change(ctx context.Context, id grant.ID, version int64, c Change) (grant.Grant, error) {
	var fields []any
	set := func(field, value string) { fields = append(fields, field, value) }
	if c.Identity != nil {
		set("owner_unverified", "")
	}
	for _, f := range userFields {
		if value := f.changed(&c); value != nil {
			set(f.name, *value)
		}
	}
	if c.ReplacedCredential != nil {
		set("replaced_credential", *c.ReplacedCredential)
	}
	if c.UnrecordedZoomUsers != nil {
		text := ""
		for _, user := range *c.UnrecordedZoomUsers {
			text += user + "\x00"
		}
		set("unrecorded_zoom_users", text)
	}
	if c.Secrets != nil {
		encrypted, err := s.encryptSecrets(id, *c.Secrets)
		if err != nil {
			return grant.Grant{}, err
		}
		set(fieldSecrets, string(encrypted))
	}
	if c.Deleting {
		set("deleting", "1")
	}
	if c.Revoke {
		set("revoke", "1")
	}
	args := append([]any{version, rand.Text()}, fields...)
	word, reply, err := s.run(ctx, changeScript, id, args...)
	switch {
	case err != nil:
		return grant.Grant{}, fmt.Errorf("changing grant %s: %w", id, err)
	case word != "changed":
		return grant.Grant{}, wordError(word)
	}
	pairs, _ := reply[0].([]any)
	record := make(map[string]string, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		name, _ := pairs[i].(string)
		record[name], _ = pairs[i+1].(string)
	}
	return s.decode(id, record)
}

// Remove removes a grant if it still has the version. [Consents.ClaimConsent] returns
// the outcome for the grant's own consent from then on; the user's other consents
// become void. It returns [grant.ErrNotFound] or [grant.ErrConflict].
func (s *Grants) Remove(ctx context.Context, id grant.ID, version int64, outcome ConsentOutcome) error {
	word, _, err := s.run(ctx, removeScript, id, version, outcome.text())
	switch {
	case err != nil:
		return fmt.Errorf("removing grant %s: %w", id, err)
	case word != "removed":
		return wordError(word)
	}
	return nil
}

// Deauthorize marks a grant for removal because the user has removed the app at
// Zoom at the given time. It returns [grant.ErrFresh] if the user has consented
// again since, and [grant.ErrDeleting] if the grant is marked already.
func (s *Grants) Deauthorize(ctx context.Context, id grant.ID, at time.Time) error {
	word, _, err := s.run(ctx, deauthorizeScript, id, millis(at), "the user has removed the app at Zoom")
	switch {
	case err != nil:
		return fmt.Errorf("marking grant %s for removal: %w", id, err)
	case word != "marked":
		return wordError(word)
	}
	return nil
}

// ByID reads several grants at once, in no order; those that do not exist are
// left out.
func (s *Grants) ByID(ctx context.Context, ids []grant.ID) ([]grant.Grant, error) {
	return s.read(ctx, ids)
}
