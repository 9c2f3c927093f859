package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
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

var servingFields = []string{"state", fieldAccess, "expires", "plan", fieldKeys}

// Serving reads what a callback needs, in one read. It answers
// [grant.ErrNotFound] or [ErrDown]. Where there is no grant it opens a decoy, so
// that its time does not tell whether there is one.
func (s *Store) Serving(ctx context.Context, id grant.ID) (grant.Serving, error) {
	values, err := s.redis.HMGet(ctx, grantKey(id), servingFields...).Result()
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, redis.ErrPoolTimeout): // says nothing of Redis
		return grant.Serving{}, fmt.Errorf("reading grant %s: %w", id, err)
	case err != nil:
		return grant.Serving{}, fmt.Errorf("reading grant %s: %w: %w", id, ErrDown, err)
	}
	fields := make(map[string]string, len(values))
	for i, name := range servingFields {
		fields[name], _ = values[i].(string)
	}
	if fields["state"] == "" {
		_, _ = s.openServing(nobody, s.decoy)
		return grant.Serving{}, grant.ErrNotFound
	}
	return s.openServing(id, fields)
}

// nobody is no user's grant: a user's id is not empty.
var nobody = grant.NewID("", "")

// newDecoy makes a record of nobody's that takes as long to open as a user's.
func (s *Store) newDecoy() map[string]string {
	token := secret.New(strings.Repeat("x", 800)) // Zoom's have 700 to 900 bytes
	tokens, errTokens := s.sealTokens(nobody, grant.Tokens{Access: token, Refresh: token})
	keys, errKeys := s.sealKeys(nobody, []grant.CallbackKey{{}})
	if errTokens != nil || errKeys != nil {
		return nil // a keyset that cannot seal: nothing works then
	}
	return map[string]string{
		"state": string(grant.Active), "expires": "1", "plan": "1",
		fieldAccess: string(tokens.access), fieldKeys: string(keys),
	}
}

func (s *Store) openServing(id grant.ID, fields map[string]string) (grant.Serving, error) {
	serving := grant.Serving{State: grant.State(fields["state"])}
	d := decoder{fields: fields}
	serving.Expires = d.time("expires")
	serving.Plan = d.time("plan")
	serving.Keys = s.openKeys(id, &d)
	serving.Access = s.openText(id, &d, fieldAccess)
	if d.err != nil {
		return grant.Serving{}, fmt.Errorf("reading grant %s: %w", id, d.err)
	}
	return serving, nil
}

// Refresh reads the refresh token, to revoke it. Whoever wants to spend it has
// to claim it.
func (s *Store) Refresh(ctx context.Context, id grant.ID) (secret.Text, error) {
	sealed, err := s.redis.HGet(ctx, grantKey(id), fieldRefresh).Result()
	if errors.Is(err, redis.Nil) {
		return secret.Text{}, grant.ErrNotFound
	}
	if err != nil {
		return secret.Text{}, fmt.Errorf("reading grant %s: %w", id, err)
	}
	d := decoder{fields: map[string]string{fieldRefresh: sealed}}
	return s.openText(id, &d, fieldRefresh), d.err
}

// Change is what to change in a grant. Nil and zero leave things as they are.
type Change struct {
	Consent    *Consent
	Identity   *Identity
	Credential *string // id at Recall; "" if there is none any more
	Former     *string
	Keys       *[]grant.CallbackKey
	Reason     *string
	Deleting   bool // cannot be taken back
	Revoke     bool // when it is removed, also revoke it at Zoom
}

// Identity is whose grant it is, by Zoom's ids.
type Identity struct{ ZoomUser, ZoomAccount string }

// Consent is a user's new consent. It ends whatever was recorded of the grant
// before: failures, a lease, its loss.
type Consent struct {
	App, User   string
	Fingerprint string // of the code or refresh token that it came from
	Tokens      grant.Tokens
	Due         time.Time
}

// Change changes a grant if it is still at version, and returns what it became.
// Version 0 creates it. It answers [grant.ErrConflict] if somebody else has
// changed it since.
func (s *Store) Change(ctx context.Context, id grant.ID, version int64, c Change) (grant.Grant, error) {
	var (
		fields  []any
		plan    string
		consent = "0"
	)
	set := func(field, value string) { fields = append(fields, field, value) }
	if c.Consent != nil {
		consent, plan = "1", strconv.FormatInt(millis(c.Consent.Due), 10)
		set("app", c.Consent.App)
		set("user", c.Consent.User)
		set("consent", c.Consent.Fingerprint)
		tokens, err := s.sealTokens(id, c.Consent.Tokens)
		if err != nil {
			return grant.Grant{}, err
		}
		set("refresh_fingerprint", RefreshFingerprint(c.Consent.Tokens.Refresh))
		set(fieldRefresh, string(tokens.refresh))
		set(fieldAccess, string(tokens.access))
		set("refreshed", strconv.FormatInt(millis(c.Consent.Tokens.Issued), 10))
		set("expires", strconv.FormatInt(millis(c.Consent.Tokens.Expires), 10))
		set("consented", strconv.FormatInt(millis(c.Consent.Tokens.Issued), 10))
	}
	if c.Identity != nil {
		set("zoom_user", c.Identity.ZoomUser)
		set("zoom_account", c.Identity.ZoomAccount)
	}
	for field, value := range map[string]*string{"credential": c.Credential, "former": c.Former, "reason": c.Reason} {
		if value != nil {
			set(field, *value)
		}
	}
	if c.Keys != nil {
		sealed, err := s.sealKeys(id, *c.Keys)
		if err != nil {
			return grant.Grant{}, err
		}
		set(fieldKeys, string(sealed))
	}
	if c.Deleting {
		plan = "never"
		set("deleting", "1")
	}
	if c.Revoke {
		set("revoke", "1")
	}
	args := append([]any{version, rand.Text(), plan, consent}, fields...)
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

// Remove removes a grant if it is still at version.
func (s *Store) Remove(ctx context.Context, id grant.ID, version int64) error {
	word, _, err := s.run(ctx, removeScript, id, version)
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
	d := decoder{fields: fields}
	g := grant.Grant{
		ID:            id,
		App:           fields["app"],
		User:          fields["user"],
		State:         grant.State(fields["state"]),
		Reason:        fields["reason"],
		ZoomUser:      fields["zoom_user"],
		ZoomAccount:   fields["zoom_account"],
		Credential:    fields["credential"],
		Former:        fields["former"],
		Consent:       fields["consent"],
		Keys:          s.openKeys(id, &d),
		Revoke:        fields["revoke"] != "",
		AccessExpires: d.time("expires"),
		Refreshed:     d.time("refreshed"),
		Created:       d.time("created"),
		Updated:       d.time("updated"),
		Version:       d.int("version"),
	}
	if d.err != nil {
		return grant.Grant{}, fmt.Errorf("reading grant %s: %w", id, d.err)
	}
	return g, nil
}

// decoder reads the fields of a record and keeps the first fault.
type decoder struct {
	fields map[string]string
	err    error
}

func (d *decoder) fail(field string, err error) {
	if d.err == nil {
		d.err = fmt.Errorf("field %s: %w", field, err)
	}
}

func (d *decoder) int(field string) int64 {
	text := d.fields[field]
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		d.fail(field, err)
	}
	return n
}

func (d *decoder) time(field string) time.Time {
	if n := d.int(field); n != 0 {
		return time.UnixMilli(n).UTC()
	}
	return time.Time{}
}

func (s *Store) openText(id grant.ID, d *decoder, field string) secret.Text {
	sealed := d.fields[field]
	if sealed == "" {
		return secret.Text{}
	}
	plain, err := s.seal.Open([]byte(sealed), string(id), field)
	if err != nil {
		d.fail(field, err)
	}
	return secret.New(string(plain))
}

func (s *Store) openKeys(id grant.ID, d *decoder) []grant.CallbackKey {
	plain := s.openText(id, d, fieldKeys)
	if plain.IsZero() {
		return nil
	}
	var keys []grant.CallbackKey
	if err := json.Unmarshal([]byte(plain.Reveal()), &keys); err != nil {
		d.fail(fieldKeys, err)
	}
	return keys
}

func (s *Store) sealKeys(id grant.ID, keys []grant.CallbackKey) ([]byte, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	plain, err := json.Marshal(keys)
	if err != nil {
		return nil, fmt.Errorf("encoding callback keys: %w", err)
	}
	return s.seal.Seal(plain, string(id), fieldKeys)
}

type sealedTokens struct{ access, refresh []byte }

func (s *Store) sealTokens(id grant.ID, tokens grant.Tokens) (sealed sealedTokens, err error) {
	sealed.access, err = s.seal.Seal([]byte(tokens.Access.Reveal()), string(id), fieldAccess)
	if err != nil {
		return sealed, err
	}
	sealed.refresh, err = s.seal.Seal([]byte(tokens.Refresh.Reveal()), string(id), fieldRefresh)
	return sealed, err
}
