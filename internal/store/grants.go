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

// The fields of a record that hold sealed values.
const (
	fieldAccess  = "access"
	fieldRefresh = "refresh"
	fieldKeys    = "keys"
)

// RefreshFingerprint is how scripts tell refresh tokens apart.
func RefreshFingerprint(refresh secret.Text) string {
	return seal.Fingerprint("refresh", refresh.Reveal())
}

// Get reads a grant. It answers [grant.ErrNotFound] if there is none.
func (s *Store) Get(ctx context.Context, id grant.ID) (grant.Grant, error) {
	fields, err := s.redis.HGetAll(ctx, grantKey(id)).Result()
	if err != nil {
		return grant.Grant{}, fmt.Errorf("reading grant %s: %w", id, err)
	}
	return s.decode(id, fields)
}

// servingFields are what a callback needs of a record.
var servingFields = [...]string{"state", "expires", "plan", fieldAccess, fieldKeys}

// ReadServingRecord reads what a callback needs, in one read. It answers
// [grant.ErrNotFound] or [ErrUnavailable]. Where there is no grant it opens a decoy, so
// that its time does not tell whether there is one.
func (s *Store) ReadServingRecord(ctx context.Context, id grant.ID) (grant.ServingRecord, error) {
	values, err := s.reads.read(ctx, id)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, redis.ErrPoolTimeout): // says nothing of Redis
		return grant.ServingRecord{}, fmt.Errorf("reading grant %s: %w", id, err)
	case err != nil:
		return grant.ServingRecord{}, fmt.Errorf("reading grant %s: %w: %w", id, ErrUnavailable, err)
	}
	var fields [len(servingFields)]string
	for i := range fields {
		fields[i], _ = values[i].(string)
	}
	if fields[0] == "" {
		_, _ = s.openServing(nobody, s.decoy)
		return grant.ServingRecord{}, grant.ErrNotFound
	}
	return s.openServing(id, fields)
}

// nobody is no user's grant: a user's id is not empty.
var nobody = grant.NewID("", "")

// newDecoy makes a record of nobody's that takes as long to open as a user's.
func (s *Store) newDecoy() [len(servingFields)]string {
	token := secret.New(strings.Repeat("x", 800)) // Zoom's have 700 to 900 bytes
	tokens, errTokens := s.sealTokens(nobody, grant.Tokens{Access: token, Refresh: token})
	keys, errKeys := s.sealKeys(nobody, []grant.CallbackSecret{{}})
	if errTokens != nil || errKeys != nil {
		keys = nil // a keyset that cannot seal: nothing works then
	}
	return [len(servingFields)]string{string(grant.Active), "1", "1", string(tokens.access), string(keys)}
}

func (s *Store) openServing(id grant.ID, fields [len(servingFields)]string) (grant.ServingRecord, error) {
	var d decoder
	serving := grant.ServingRecord{
		State:     grant.State(fields[0]),
		Expires:   d.time("expires", fields[1]),
		RenewTime: d.time("plan", fields[2]),
		Access:    s.openText(id, &d, fieldAccess, fields[3]),
		Secrets:   s.openKeys(id, &d, fields[4]),
	}
	if d.err != nil {
		return grant.ServingRecord{}, fmt.Errorf("reading grant %s: %w", id, d.err)
	}
	return serving, nil
}

// ReadRefreshToken reads the refresh token, to revoke it. Whoever wants to spend it has
// to claim it.
func (s *Store) ReadRefreshToken(ctx context.Context, id grant.ID) (secret.Text, error) {
	sealed, err := s.redis.HGet(ctx, grantKey(id), fieldRefresh).Result()
	if errors.Is(err, redis.Nil) {
		return secret.Text{}, grant.ErrNotFound
	}
	if err != nil {
		return secret.Text{}, fmt.Errorf("reading grant %s: %w", id, err)
	}
	var d decoder
	return s.openText(id, &d, fieldRefresh, sealed), d.err
}

// Identity is whose grant it is, by Zoom's ids.
type Identity struct{ ZoomUser, ZoomAccount string }

// Change changes a grant if it is still at version, and returns what it became.
// It answers [grant.ErrNotFound] or [grant.ErrConflict] if somebody else
// has changed it since.
func (s *Store) Change(ctx context.Context, id grant.ID, version int64, c Change) (grant.Grant, error) {
	var fields []any
	set := func(field, value string) { fields = append(fields, field, value) }
	if c.Identity != nil {
		set("ask", "")
	}
	for _, f := range userFields {
		if value := f.changed(&c); value != nil {
			set(f.name, *value)
		}
	}
	if c.ReplacedCredential != nil {
		set("former", *c.ReplacedCredential)
	}
	if c.UnrecordedZoomUsers != nil {
		text := ""
		for _, user := range *c.UnrecordedZoomUsers {
			text += user + "\x00"
		}
		set("strays", text)
	}
	if c.Secrets != nil {
		sealed, err := s.sealKeys(id, *c.Secrets)
		if err != nil {
			return grant.Grant{}, err
		}
		set(fieldKeys, string(sealed))
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

// Remove removes a grant if it is still at version. The outcome is what
// [Store.ClaimConsent] answers from then on to the grant's own consent; what else the
// user was registered with lately is void. It answers [grant.ErrNotFound] or
// [grant.ErrConflict].
func (s *Store) Remove(ctx context.Context, id grant.ID, version int64, outcome ConsentOutcome) error {
	word, _, err := s.run(ctx, removeScript, id, version, outcome.text())
	switch {
	case err != nil:
		return fmt.Errorf("removing grant %s: %w", id, err)
	case word != "removed":
		return wordError(word)
	}
	return nil
}

// decode reads a record.
func (s *Store) decode(id grant.ID, fields map[string]string) (grant.Grant, error) {
	if len(fields) == 0 {
		return grant.Grant{}, grant.ErrNotFound
	}
	var d decoder
	g := grant.Grant{
		ID:                  id,
		App:                 fields["app"],
		User:                fields["user"],
		State:               grant.State(fields["state"]),
		ReplacedCredential:  fields["former"],
		Consent:             fields["consent"],
		Secrets:             s.openKeys(id, &d, fields[fieldKeys]),
		Revoke:              fields["revoke"] != "",
		OwnerUnverified:     fields["ask"] != "",
		UnrecordedZoomUsers: strings.FieldsFunc(fields["strays"], func(r rune) bool { return r == 0 }),
		Attempts:            int(d.int("attempts", fields["attempts"])),
		ListedTime:          d.time("seen", fields["seen"]),
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

// decoder reads the fields of a record and keeps the first fault.
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

func (s *Store) openText(id grant.ID, d *decoder, field, sealed string) secret.Text {
	return secret.New(string(s.open(id, d, field, sealed)))
}

func (s *Store) open(id grant.ID, d *decoder, field, sealed string) []byte {
	if sealed == "" {
		return nil
	}
	plain, err := s.seal.Decrypt([]byte(sealed), string(id), field)
	if err != nil {
		d.fail(field, err)
	}
	return plain
}

// A callback key is stored as its fingerprint and its end, in ms, big-endian.
const keyLength = len(grant.Fingerprint{}) + 8

func (s *Store) openKeys(id grant.ID, d *decoder, sealed string) []grant.CallbackSecret {
	plain := s.open(id, d, fieldKeys, sealed)
	if len(plain) == 0 {
		return nil
	}
	if len(plain)%keyLength != 0 {
		d.fail(fieldKeys, errors.New("of another version"))
		return nil
	}
	keys := make([]grant.CallbackSecret, len(plain)/keyLength)
	for i := range keys {
		n := copy(keys[i].Fingerprint[:], plain)
		if ms := binary.BigEndian.Uint64(plain[n:]); ms != 0 {
			keys[i].NotAfter = time.UnixMilli(int64(ms)).UTC() //nolint:gosec // as it was written
		}
		plain = plain[keyLength:]
	}
	return keys
}

func (s *Store) sealKeys(id grant.ID, keys []grant.CallbackSecret) ([]byte, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	plain := make([]byte, 0, len(keys)*keyLength)
	for _, key := range keys {
		plain = append(plain, key.Fingerprint[:]...)
		var ms uint64
		if !key.NotAfter.IsZero() {
			ms = uint64(millis(key.NotAfter)) //nolint:gosec // read back as it is
		}
		plain = binary.BigEndian.AppendUint64(plain, ms)
	}
	return s.seal.Encrypt(plain, string(id), fieldKeys)
}

type sealedTokens struct{ access, refresh []byte }

func (s *Store) sealTokens(id grant.ID, tokens grant.Tokens) (sealed sealedTokens, err error) {
	sealed.access, err = s.seal.Encrypt([]byte(tokens.Access.Reveal()), string(id), fieldAccess)
	if err != nil {
		return sealed, err
	}
	sealed.refresh, err = s.seal.Encrypt([]byte(tokens.Refresh.Reveal()), string(id), fieldRefresh)
	return sealed, err
}
