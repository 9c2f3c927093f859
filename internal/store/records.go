package store

import (
	"context"
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

func (s *core) decryptText(id grant.ID, d *decoder, field, encrypted string) secret.Text {
	return secret.New(string(s.decrypt(id, d, field, encrypted)))
}

func (s *core) decrypt(id grant.ID, d *decoder, field, encrypted string) []byte {
	if encrypted == "" {
		return nil
	}
	plain, err := s.seal.Decrypt([]byte(encrypted), string(id), field)
	if err != nil {
		d.fail(field, err)
	}
	return plain
}

// A callback secret is stored as its fingerprint and its end in ms, big-endian.
const secretLength = len(grant.Fingerprint{}) + 8

func (s *core) decryptSecrets(id grant.ID, d *decoder, encrypted string) []grant.CallbackSecret {
	plain := s.decrypt(id, d, fieldSecrets, encrypted)
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
			keys[i].NotAfter = time.UnixMilli(int64(ms)).UTC() //nolint:gosec // the range it was written with
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

func (s *core) encryptTokens(id grant.ID, tokens grant.Tokens) (encrypted encryptedTokens, err error) {
	encrypted.access, err = s.seal.Encrypt([]byte(tokens.Access.Reveal()), string(id), fieldAccess)
	if err != nil {
		return encrypted, err
	}
	encrypted.refresh, err = s.seal.Encrypt([]byte(tokens.Refresh.Reveal()), string(id), fieldRefresh)
	return encrypted, err
}

// encryptedFields are the encrypted fields of a record.
var encryptedFields = [...]string{fieldAccess, fieldRefresh, fieldSecrets}

// encryptedRecord is the encrypted fields of a grant; "" if absent.
type encryptedRecord struct {
	id     grant.ID
	values [len(encryptedFields)]string
}

// keys returns the keys that have encrypted any of the values.
func (r encryptedRecord) keys() map[uint32]bool {
	keys := map[uint32]bool{}
	for _, value := range r.values {
		if value != "" {
			keys[seal.KeyID(value)] = true
		}
	}
	return keys
}

// readEncrypted reads the encrypted fields of grants, in the order of the ids.
func (s *core) readEncrypted(ctx context.Context, ids []string) ([]encryptedRecord, error) {
	commands := make([]*redis.SliceCmd, len(ids))
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, id := range ids {
			commands[i] = pipe.HMGet(ctx, grantKey(grant.ID(id)), encryptedFields[:]...)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	records := make([]encryptedRecord, len(ids))
	for i, id := range ids {
		records[i].id = grant.ID(id)
		for n, value := range commands[i].Val() {
			records[i].values[n], _ = value.(string)
		}
	}
	return records, nil
}

const walkPage = 100

// walk reads the encrypted fields of every grant, page by page.
func (s *core) walk(ctx context.Context, page func([]encryptedRecord) error) error {
	for shard := range grant.Shards {
		for low := "-"; ; {
			ids, err := s.redis.ZRangeByLex(ctx, usersKey(shard, ""), &redis.ZRangeBy{Min: low, Max: "+", Count: walkPage}).Result()
			if err != nil {
				return err
			}
			if len(ids) == 0 {
				break
			}
			low = "(" + ids[len(ids)-1]
			records, err := s.readEncrypted(ctx, ids)
			if err != nil {
				return err
			}
			if err := page(records); err != nil {
				return err
			}
		}
	}
	return nil
}
