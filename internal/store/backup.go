package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
)

// Backup reads all grants in clear, and restores them.
type Backup struct{ *core }

// BackupRecord is a grant's record as text, for a backup. It is not encrypted: it has
// the tokens in clear.
type BackupRecord struct {
	ID   grant.ID
	Text secret.Text
}

// transientFields are derived or short-lived, and not part of a backup.
var transientFields = []string{"state", "version", "visible_hash", "change", "updated", "lease", "lease_until", "served", "listed", "attempts", "retry_at"}

// ReadBackup calls page with every grant, in batches.
func (s *Backup) ReadBackup(ctx context.Context, page func([]BackupRecord) error) error {
	err := s.walk(ctx, func(encrypted []encryptedRecord) error {
		records := make([]*redis.MapStringStringCmd, len(encrypted))
		if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i, r := range encrypted {
				records[i] = pipe.HGetAll(ctx, grantKey(r.id))
			}
			return nil
		}); err != nil {
			return err
		}
		dumped := make([]BackupRecord, 0, len(encrypted))
		for i, r := range encrypted {
			if len(records[i].Val()) == 0 {
				continue // removed meanwhile
			}
			text, err := s.dump(r.id, records[i].Val())
			if err != nil {
				return fmt.Errorf("grant %s: %w", r.id, err)
			}
			dumped = append(dumped, BackupRecord{r.id, text})
		}
		return page(dumped)
	})
	if err != nil {
		return fmt.Errorf("reading all grants: %w", err)
	}
	return nil
}

func (s *Backup) dump(id grant.ID, record map[string]string) (secret.Text, error) {
	fields := make(map[string][]byte, len(record))
	for field, value := range record {
		if slices.Contains(transientFields, field) {
			continue
		}
		fields[field] = []byte(value)
		if slices.Contains(encryptedFields[:], field) {
			plain, err := s.seal.Decrypt([]byte(value), string(id), field)
			if err != nil {
				return secret.Text{}, err
			}
			fields[field] = plain
		}
	}
	text, err := json.Marshal(fields)
	return secret.New(string(text)), err
}

// Restore restores grants from a backup, except those that exist. It returns the
// number of restored grants, and may be repeated.
//
// The refresh token may have been spent since the backup, and the access token may
// have ended. So the access token is dropped, and the grant becomes uncertain: its
// refresh token is tried once. Until then the grant is [grant.StateDegraded] with the
// given reason.
func (s *Backup) Restore(ctx context.Context, dumped []BackupRecord, reason string) (restored int, err error) {
	replies := make([]*redis.Cmd, len(dumped))
	_, err = s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, d := range dumped {
			args, err := s.encodeBackup(d)
			if err != nil {
				return err
			}
			replies[i] = s.variant(restoreScript).Eval(ctx, pipe, recordKeys(d.ID), append([]any{string(d.ID), reason}, args...)...)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("restoring grants: %w", err)
	}
	for _, reply := range replies {
		words, err := reply.StringSlice()
		if err != nil || len(words) == 0 {
			return restored, fmt.Errorf("restoring grants: %w", errors.Join(err, errors.New("a script returned nothing")))
		}
		if words[0] == "restored" {
			restored++
		}
	}
	return restored, nil
}

// encodeBackup returns the fields and values of a restored record, encrypted.
func (s *Backup) encodeBackup(d BackupRecord) (args []any, err error) {
	var fields map[string][]byte
	if err := json.Unmarshal([]byte(d.Text.Reveal()), &fields); err != nil {
		return nil, fmt.Errorf("grant %s: not a record", d.ID) // the error may quote it
	}
	if grant.NewID(string(fields["app"]), string(fields["user"])) != d.ID {
		return nil, fmt.Errorf("grant %s: it is the record of another user", d.ID)
	}
	delete(fields, fieldAccess)
	for field, value := range fields {
		if slices.Contains(encryptedFields[:], field) {
			if value, err = s.seal.Encrypt(value, string(d.ID), field); err != nil {
				return nil, err
			}
		}
		args = append(args, field, value)
	}
	return args, nil
}
