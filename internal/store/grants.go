package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
)

// The encrypted fields of a record.
const (
	fieldAccess  = "access"
	fieldRefresh = "refresh"
	fieldSecrets = "secrets"
)

// RefreshFingerprint returns the fingerprint by which scripts compare refresh tokens.
func RefreshFingerprint(refresh secret.Text) string {
	return seal.Fingerprint("refresh", refresh.Reveal())
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
	return [len(servingFields)]string{string(grant.Active), "1", "1", string(tokens.access), string(keys)}
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
	sealed, err := s.redis.HGet(ctx, grantKey(id), fieldRefresh).Result()
	if errors.Is(err, redis.Nil) {
		return secret.Text{}, grant.ErrNotFound
	}
	if err != nil {
		return secret.Text{}, fmt.Errorf("reading grant %s: %w", id, err)
	}
	var d decoder
	return s.decryptText(id, &d, fieldRefresh, sealed), d.err
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
		sealed, err := s.encryptSecrets(id, *c.Secrets)
		if err != nil {
			return grant.Grant{}, err
		}
		set(fieldSecrets, string(sealed))
	}
	if c.Deleting {
		set("deleting", "1")
	}
	if c.Revoke {
		set("revoke", "1")
	}
	args := append([]any{version, rand.Text()}, fields...)
	word, answer, err := s.run(ctx, changeScript, id, args...)
	switch {
	case err != nil:
		return grant.Grant{}, fmt.Errorf("changing grant %s: %w", id, err)
	case word != "changed":
		return grant.Grant{}, wordError(word)
	}
	pairs, _ := answer[0].([]any)
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

// decode decodes and decrypts a record.
func (s *core) decode(id grant.ID, fields map[string]string) (grant.Grant, error) {
	if len(fields) == 0 {
		return grant.Grant{}, grant.ErrNotFound
	}
	var d decoder
	g := grant.Grant{
		ID:                  id,
		App:                 fields["app"],
		User:                fields["user"],
		State:               grant.State(fields["state"]),
		ReplacedCredential:  fields["replaced_credential"],
		Consent:             fields["consent"],
		Secrets:             s.decryptSecrets(id, &d, fields[fieldSecrets]),
		Revoke:              fields["revoke"] != "",
		OwnerUnverified:     fields["owner_unverified"] != "",
		UnrecordedZoomUsers: strings.FieldsFunc(fields["unrecorded_zoom_users"], func(r rune) bool { return r == 0 }),
		Attempts:            int(d.int("attempts", fields["attempts"])),
		ListedTime:          d.time("listed", fields["listed"]),
		AccessExpires:       d.time("expires", fields["expires"]),
		Refreshed:           d.time("refreshed", fields["refreshed"]),
		Created:             d.time("created", fields["created"]),
		Consented:           d.time("consented", fields["consented"]),
		Updated:             d.time("updated", fields["updated"]),
		Version:             d.int("version", fields["version"]),
	}
	for _, f := range userFields {
		*f.of(&g) = fields[f.name]
	}
	if d.err != nil {
		return grant.Grant{}, fmt.Errorf("reading grant %s: %w", id, d.err)
	}
	return g, nil
}

// decoder decodes fields of a record and keeps the first error.
type decoder struct{ err error }

func (d *decoder) fail(field string, err error) {
	if d.err == nil {
		d.err = fmt.Errorf("field %s: %w", field, err)
	}
}

func (d *decoder) int(field, text string) int64 {
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		d.fail(field, err)
	}
	return n
}

func (d *decoder) time(field, text string) time.Time {
	if n := d.int(field, text); n != 0 {
		return time.UnixMilli(n).UTC()
	}
	return time.Time{}
}

func (s *core) decryptText(id grant.ID, d *decoder, field, sealed string) secret.Text {
	return secret.New(string(s.decrypt(id, d, field, sealed)))
}

func (s *core) decrypt(id grant.ID, d *decoder, field, sealed string) []byte {
	if sealed == "" {
		return nil
	}
	plain, err := s.seal.Decrypt([]byte(sealed), string(id), field)
	if err != nil {
		d.fail(field, err)
	}
	return plain
}

// A callback secret is stored as its fingerprint and its end in ms, big-endian.
const secretLength = len(grant.Fingerprint{}) + 8

func (s *core) decryptSecrets(id grant.ID, d *decoder, sealed string) []grant.CallbackSecret {
	plain := s.decrypt(id, d, fieldSecrets, sealed)
	if len(plain) == 0 {
		return nil
	}
	if len(plain)%secretLength != 0 {
		d.fail(fieldSecrets, errors.New("unknown format"))
		return nil
	}
	keys := make([]grant.CallbackSecret, len(plain)/secretLength)
	for i := range keys {
		n := copy(keys[i].Fingerprint[:], plain)
		if ms := binary.BigEndian.Uint64(plain[n:]); ms != 0 {
			keys[i].NotAfter = time.UnixMilli(int64(ms)).UTC() //nolint:gosec // as it was written
		}
		plain = plain[secretLength:]
	}
	return keys
}

func (s *core) encryptSecrets(id grant.ID, keys []grant.CallbackSecret) ([]byte, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	plain := make([]byte, 0, len(keys)*secretLength)
	for _, key := range keys {
		plain = append(plain, key.Fingerprint[:]...)
		var ms uint64
		if !key.NotAfter.IsZero() {
			ms = uint64(millis(key.NotAfter)) //nolint:gosec // read back as it is
		}
		plain = binary.BigEndian.AppendUint64(plain, ms)
	}
	return s.seal.Encrypt(plain, string(id), fieldSecrets)
}

type encryptedTokens struct{ access, refresh []byte }

func (s *core) encryptTokens(id grant.ID, tokens grant.Tokens) (sealed encryptedTokens, err error) {
	sealed.access, err = s.seal.Encrypt([]byte(tokens.Access.Reveal()), string(id), fieldAccess)
	if err != nil {
		return sealed, err
	}
	sealed.refresh, err = s.seal.Encrypt([]byte(tokens.Refresh.Reveal()), string(id), fieldRefresh)
	return sealed, err
}
