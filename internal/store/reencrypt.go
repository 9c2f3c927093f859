package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"tokenprovider/internal/seal"
)

// ReencryptProgress is the progress of [Encryption.Reencrypt].
type ReencryptProgress struct {
	Scanned       int // grants read
	Reencrypted   int // re-encrypted grants
	Undecryptable int // grants with a value that no key decrypts
}

// Reencrypt re-encrypts the values of other keys with the primary key, at most
// perSecond grants per second (0: no limit). It reports its progress after each page;
// report may be nil. It runs beside everything else, and may be repeated.
func (s *Encryption) Reencrypt(ctx context.Context, perSecond int, report func(ReencryptProgress)) (ReencryptProgress, error) {
	var done ReencryptProgress
	limit := rate.Inf
	if perSecond > 0 {
		limit = rate.Limit(perSecond)
	}
	pace := rate.NewLimiter(limit, walkPage)
	err := s.walk(ctx, func(encrypted []encryptedRecord) error {
		before := done.Reencrypted
		if err := s.reencryptPage(ctx, encrypted, &done); err != nil {
			return err
		}
		// Reading a grant costs a tenth of re-encrypting it.
		if err := pace.WaitN(ctx, min(walkPage, done.Reencrypted-before+len(encrypted)/10)); err != nil {
			return err
		}
		if report != nil {
			report(done)
		}
		return nil
	})
	if err != nil {
		return done, fmt.Errorf("re-encrypting: %w", err)
	}
	if err := s.reencryptMark(ctx); err != nil {
		return done, fmt.Errorf("re-encrypting: %w", err)
	}
	return done, nil
}

func (s *Encryption) reencryptPage(ctx context.Context, encrypted []encryptedRecord, done *ReencryptProgress) error {
	primary := s.seal.Primary()
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, r := range encrypted {
			done.Scanned++
			var changes []any
			broken := false
			for i, value := range r.values {
				if value == "" || seal.KeyID(value) == primary {
					continue
				}
				plain, err := s.seal.Decrypt([]byte(value), string(r.id), encryptedFields[i])
				if errors.Is(err, seal.ErrDecrypt) {
					broken = true
					continue
				}
				if err != nil {
					return err
				}
				again, err := s.seal.Encrypt(plain, string(r.id), encryptedFields[i])
				if err != nil {
					return err
				}
				changes = append(changes, encryptedFields[i], value, again)
			}
			if broken {
				done.Undecryptable++
			}
			if len(changes) > 0 {
				done.Reencrypted++
				s.variant(reencryptScript).Eval(ctx, pipe, recordKeys(r.id), append([]any{string(r.id)}, changes...)...)
			}
		}
		return nil
	})
	return err
}

// reencryptMark re-encrypts the keyset's mark.
func (s *Encryption) reencryptMark(ctx context.Context) error {
	stored, err := s.redis.Get(ctx, keysetKey).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil
	}
	if err != nil {
		return err
	}
	if seal.KeyID(stored) == s.seal.Primary() {
		return nil
	}
	if _, err := s.seal.Decrypt(stored, keysetKey, "mark"); err != nil {
		return ErrKeyset
	}
	mark, err := s.seal.Encrypt([]byte(keysetText), keysetKey, "mark")
	if err != nil {
		return err
	}
	return s.redis.Set(ctx, keysetKey, mark, 0).Err()
}

const reencryptedByKey = prefix + "reencrypted_by"

// ReencryptedBy returns the key of the last complete re-encryption, 0 if there was
// none.
func (s *Encryption) ReencryptedBy(ctx context.Context) (uint32, error) {
	id, err := s.redis.Get(ctx, reencryptedByKey).Uint64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the key of the last re-encryption: %w", err)
	}
	return uint32(id), nil //nolint:gosec // the range it was written with
}

// SetReencryptedBy records that everything is encrypted by a key.
func (s *Encryption) SetReencryptedBy(ctx context.Context, id uint32) error {
	if err := s.redis.Set(ctx, reencryptedByKey, id, 0).Err(); err != nil {
		return fmt.Errorf("recording the key of the re-encryption: %w", err)
	}
	return nil
}

// LockReencryption locks re-encryption across all replicas; see
// [Locks.LockRegistration].
func (s *Encryption) LockReencryption(ctx context.Context, ttl time.Duration) (unlock func(), ok bool, err error) {
	return s.lock(ctx, prefix+"reencrypt_lock", ttl)
}
